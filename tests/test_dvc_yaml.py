"""dvc.yaml against the code: dependencies are import closures, and a stage has one name everywhere."""

from importlib import import_module
from pathlib import Path
from typing import Any

import grimp
import pytest
from pipelines.alerts import STAGES
from ruamel.yaml import YAML

from dermtune.cli import cli
from dermtune.config import Config
from dermtune.params import Params
from dermtune.studies import StudyConfig

ROOT = Path(__file__).parents[1]
BESIDE = ("search",)  # stages in a dvc.yaml of their own, which `dvc repro` does not run
STUDIES = ("transfer", "robustness", "attacks", "bias", "microscope", "where", "cost")  # as well, all in one


def parse(path: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = YAML(typ="safe", pure=True).load(path)
    return parsed


@pytest.fixture(scope="module")
def dvc_yaml() -> dict[str, Any]:
    """dvc.yaml, and the stages beside it."""
    parsed = parse(ROOT / "dvc.yaml")
    parsed["stages"] |= {stage: parse(ROOT / stage / "dvc.yaml")["stages"][stage] for stage in BESIDE}
    return parsed


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph(
        "dermtune", "dermtune_bundle", exclude_type_checking_imports=True, cache_dir=None
    )


def source_file(module: str) -> str:
    path = Path("src", *module.split("."))
    return str(path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py"))


@pytest.mark.parametrize("stage", [*STAGES, *BESIDE, *STUDIES])
def test_code_deps_are_the_stages_import_closure(
    stage: str, dvc_yaml: dict[str, Any], imports: grimp.ImportGraph
) -> None:
    module = f"dermtune.{'studies' if stage in STUDIES else 'stages'}.{stage}"
    closure = {source_file(name) for name in imports.find_upstream_modules(module) | {module}}
    stages = dvc_yaml["stages"] | parse(ROOT / "study/dvc.yaml")["stages"]
    declared = [dep for dep in stages[stage]["deps"] if dep.startswith("src/")]

    assert sorted(dep for dep in declared if dep.endswith(".py")) == sorted(closure)
    # what is no module is read by one that is in the closure
    for other in (dep for dep in declared if not dep.endswith(".py")):
        readers = [path for path in closure if Path(other).name in (ROOT / path).read_text()]
        assert readers, other


@pytest.mark.parametrize("stage", [*STAGES, *BESIDE])
def test_a_stage_has_one_name_in_all_places(stage: str, dvc_yaml: dict[str, Any]) -> None:
    module = import_module(f"dermtune.stages.{stage}")
    section = Params.model_fields[stage].annotation
    declared = dvc_yaml["stages"][stage]

    assert callable(getattr(module, stage))
    assert section is getattr(module, f"{stage.capitalize()}Config")
    assert issubclass(section, Config)
    assert stage in cli.commands
    assert declared["cmd"].startswith(f"dermtune {stage} ")
    assert stage in declared["params"]
    out = f"${{data}}/{stage}"
    options = {"ingest": {"persist": True}, "search": {"cache": False}}
    assert declared["outs"] == ([{out: options[stage]}] if stage in options else [out])
    assert (ROOT / f"tests/dermtune/stages/test_{stage}.py").is_file()
    assert f"/data/{stage}/" in (ROOT / ".gitignore").read_text().splitlines()


def test_a_study_has_one_name_in_all_places() -> None:
    stages = parse(ROOT / "study/dvc.yaml")["stages"]
    assert tuple(stages) == STUDIES == tuple(StudyConfig.model_fields)
    for study, declared in stages.items():
        assert callable(getattr(import_module(f"dermtune.studies.{study}"), f"run_{study}_study"))
        assert study in cli.commands["study"].commands  # type: ignore[attr-defined]
        assert declared["cmd"].startswith(f"dermtune study {study} ")
        assert f"study.{study}" in declared["params"]
        assert declared["outs"] == [{f"${{data}}/study/{study}": {"cache": False}}]
        assert (ROOT / f"docs/studies/{study}.md").is_file()


def test_there_are_these_stages_and_no_others(dvc_yaml: dict[str, Any]) -> None:
    assert tuple(dvc_yaml["stages"]) == STAGES + BESIDE
    shared, of_flows = {"seed", "backbone", "compute"}, {"monitor", "retrain"}
    assert set(Params.model_fields) == {*STAGES, *BESIDE, *shared, *of_flows, "study"}


def test_bytecode_is_not_seen_by_dvc() -> None:
    assert "__pycache__" in (ROOT / ".dvcignore").read_text().splitlines()
