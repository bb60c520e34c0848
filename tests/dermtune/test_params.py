import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dermtune.errors import ConfigError
from dermtune.params import read_params, write_params

PARAMS = Path(__file__).parents[2] / "params.yaml"


def changed(folder: Path, key: str, value: object) -> Path:
    """params.yaml with one key set; `value` is written to the file as YAML."""
    values = YAML(typ="safe").load(PARAMS)
    *sections, last = key.split(".")
    place: Any = values
    for section in sections:
        place = place[section]
    place[last] = value
    path = folder / "params.yaml"
    YAML().dump(values, path)
    return path


def test_the_projects_own_params_are_valid() -> None:
    assert read_params(PARAMS).backbone.name == "tf_efficientnet_lite0"


def test_reading_them_loads_nothing_that_only_some_stages_need() -> None:
    code = (
        f"from dermtune.params import *; read_params(Path({str(PARAMS)!r})); import sys; print(*sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(shown.split())
    assert "dermtune.stages.ingest" in loaded
    assert not loaded & {"torch", "timm", "sklearn", "scipy", "matplotlib", "albumentations", "ray"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("finetune.learning_rate", 0.1, "finetune.learning_rate: unknown key"),
        ("train", {}, "train: unknown key"),
        ("finetune.lr", "fast", "finetune.lr: Input should be a valid number, got 'fast'"),
        ("finetune.epochs", 2.5, "finetune.epochs: .*integer.*, got 2.5"),
        ("finetune.epochs", True, "finetune.epochs: "),
        ("finetune.epochs", 0, "finetune.epochs: .*greater than or equal to 1, got 0"),
        ("seed", -1, "seed: .*, got -1"),
        ("seed", 2**40, "seed: .*, got 1099511627776"),
        (
            "calibrate.operating_points.mel.target",
            "mole",
            "calibrate.operating_points.mel.target: 'mole' is no class; the classes are ak, .*",
        ),
        ("ingest.label_map", {"nv": "nevus"}, "ingest.label_map.nv: 'nevus' is no class; "),
        ("finetune.folds", 1, "finetune.folds: expected 0 for none, or at least 2, got 1"),
        ("finetune.folds", 5, "finetune.folds: needs augment.plain: true"),
        ("calibrate.test_views", 3, "calibrate.test_views: .*1, 2, 4 or 8, got 3"),
        ("search.space.lr", {"low": 0.1, "high": 3.0}, "search.space.lr: .*less than or equal to 1, got 3.0"),
        ("search.space.lr", {"low": 2.0, "high": 1.0}, "search.space.lr.*expected low < high"),
        ("search.space.rate", {"choices": [1]}, "search.*cannot search rate; what can be: batch_size, "),
        ("backbone.cut", -1, "backbone.cut: .*, got -1"),
        ("ingest.source", "isic2031", "ingest.source: .*'synthetic', .*'ham10000', .*, got 'isic2031'"),
        ("ingest.split.val", 0.2, "ingest.split: .* must sum to 1"),
        ("augment.color", float("nan"), "augment.color: "),
        ("export.gates.auroc_macro", 70, "export.gates.auroc_macro: .*less than or equal to 1, got 70"),
    ],
)
def test_a_bad_value_gets_one_line_that_names_the_key(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_params(changed(tmp_path, key, value))
    assert "\n" not in str(caught.value)


def test_a_number_is_read_as_dvc_reads_it(tmp_path: Path) -> None:
    path = changed(tmp_path, "finetune.lr", 0.5)
    path.write_text(path.read_text().replace("lr: 0.5", "lr: 1e-3"))
    assert read_params(path).finetune.lr == 0.001


def test_values_are_written_back_and_all_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text())
    write_params(path, "finetune", {"lr": 0.00123, "dropout": 0})
    assert read_params(path).finetune.lr == 0.00123
    changed_lines = set(path.read_text().splitlines()) - set(PARAMS.read_text().splitlines())
    assert {line.split("#")[0].strip() for line in changed_lines} == {"lr: 0.00123", "dropout: 0"}
    assert any("# of the classifier" in line for line in changed_lines), "comments stay"


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    values = YAML(typ="safe").load(PARAMS)
    del values["finetune"]["lr"]
    YAML().dump(values, tmp_path / "params.yaml")
    with pytest.raises(ConfigError, match=r"finetune\.lr: missing"):
        read_params(tmp_path / "params.yaml")


def test_many_mistakes_are_cut_short(tmp_path: Path) -> None:
    path = changed(tmp_path, "embed", {f"key{number}": 1 for number in range(9)})
    with pytest.raises(ConfigError, match="and 7 more"):
        read_params(path)
