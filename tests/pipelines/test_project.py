"""The project's own dvc.yaml, on a tiny synthetic set: real DVC, a real flow."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pipelines.train import read_graph, train
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
STAGES = ["ingest", "augment", "embed", "finetune", "calibrate", "evaluate", "export"]
BIN = Path(sys.executable).parent


def run(project: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    identity = {
        f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    return subprocess.run(
        command,
        cwd=project,
        check=check,
        capture_output=True,
        text=True,
        env=os.environ | identity | {"PATH": path},
    )


def set_params(project: Path, **changes: dict[str, object]) -> None:
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    for section, values in changes.items():
        params[section].update(values)
    yaml.dump(params, project / "params.yaml")


def stages_run(output: str) -> list[str]:
    return re.findall(r"Running stage '(?:[\w/]+\.yaml:)?(\w+)'", output)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project after its first `dvc repro`, committed."""
    project = tmp_path_factory.mktemp("project")
    for name in (
        "dvc.yaml",
        "search/dvc.yaml",
        "params.yaml",
        ".dvcignore",
        ".gitignore",
        "data/raw/README.md",
        ".dvc/config",
        ".dvc/plots",
    ):
        source, target = ROOT / name, project / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    shutil.copytree(ROOT / "src", project / "src", ignore=shutil.ignore_patterns("__pycache__"))
    set_params(
        project,
        ingest={"synthetic_lesions": 40},
        augment={"views": 2},
        backbone={"cut": 5, "input_size": 64},
        finetune={"epochs": 2},
        search={
            "trials": 2,
            "part": 1,
            "epochs": 1,
            "space": {"lr": {"low": 0.001, "high": 0.1, "log": True}},
        },
        evaluate={"bootstrap": 100},
        export={"gates": {"auroc_macro": 0.0, "balanced_accuracy": 0.0}},
    )
    run(project, "git", "init", "--quiet")
    first = run(project, "dvc", "repro")
    assert stages_run(first.stdout) == STAGES
    run(project, "git", "add", ".")
    run(project, "git", "commit", "--quiet", "--message", "first")
    return project


@pytest.fixture
def clean(project: Path) -> Path:
    run(project, "git", "reset", "--quiet", "--hard")
    run(project, "dvc", "checkout", "--quiet")
    return project


def test_git_sees_the_lock_and_nothing_that_dvc_keeps(project: Path) -> None:
    tracked = run(project, "git", "ls-files").stdout.split()
    assert "dvc.lock" in tracked
    assert [name for name in tracked if name.startswith("data/")] == ["data/raw/README.md"]


def test_every_file_that_a_stage_writes_is_documented(project: Path) -> None:
    documented = (ROOT / "docs/formats.md").read_text()
    for path in (project / "data").rglob("*"):
        if path.is_file() and path.parent.name != "raw":
            numbered = re.sub(r"-\d+(?=\.)", "-00" if path.suffix == ".npy" else "-000", path.name)
            assert numbered in documented or f"*{path.suffix}" in documented, path


def test_a_second_repro_runs_nothing(clean: Path) -> None:
    second = run(clean, "dvc", "repro")
    assert stages_run(second.stdout) == []
    assert "Data and pipelines are up to date" in second.stdout


def test_an_experiment_runs_finetune_and_what_follows_and_is_compared(clean: Path) -> None:
    ran = run(clean, "dvc", "exp", "run", "--name", "gentle", "--set-param", "finetune.lr=1e-4")
    assert stages_run(ran.stdout) == ["finetune", "calibrate", "evaluate", "export"]
    rows = list(csv.DictReader(run(clean, "dvc", "exp", "show", "--csv").stdout.splitlines()))
    (row,) = [row for row in rows if row["Experiment"] == "gentle"]
    assert float(row["finetune.lr"]) == 1e-4
    assert 0 <= float(row["auroc_macro"]) <= 1
    difference = json.loads(run(clean, "dvc", "params", "diff", "--json").stdout)
    assert list(difference["params.yaml"]) == ["finetune.lr"]
    assert difference["params.yaml"]["finetune.lr"]["new"] == 1e-4
    metrics = json.loads(run(clean, "dvc", "metrics", "diff", "--all", "--json").stdout)
    assert "auroc_macro" in metrics["data/evaluate/headline.json"]


def test_a_search_runs_nothing_before_it_and_its_winner_is_written_back(clean: Path) -> None:
    before = (clean / "params.yaml").read_bytes()
    assert stages_run(run(clean, "dvc", "repro", "search/dvc.yaml").stdout) == ["search"]
    assert (clean / "params.yaml").read_bytes() == before
    assert stages_run(run(clean, "dvc", "repro", "search/dvc.yaml").stdout) == []

    set_params(clean, search={"trials": 4})
    searched = run(clean, "dermtune", "search")
    assert "trial 3 of 4 done" in searched.stdout, "the two trials before are not run again"
    best = json.loads((clean / "data/search/best.json").read_text())
    difference = json.loads(run(clean, "dvc", "params", "diff", "--json").stdout)["params.yaml"]
    changed = {key: change["new"] for key, change in difference.items() if key.startswith("finetune.")}
    assert changed in ({"finetune.lr": best["lr"]}, {}), "nothing, where the recipe in use is the best"


def test_plots_are_drawn(clean: Path) -> None:
    shown = json.loads(run(clean, "dvc", "plots", "show", "--json").stdout)
    plots = shown["data"]
    assert not shown.get("errors")
    assert len(plots) == 16
    assert all(plots.values())
    roc = plots["ROC, one class against the rest"][0]["content"]
    assert {point["class"] for point in roc["data"]["values"]} == {
        "akiec",
        "bcc",
        "bkl",
        "df",
        "mel",
        "nv",
        "vasc",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"finetune": {"rate": 1}, "ingest": {"synthetic_lesions": 41}},
            "error: params.yaml: finetune.rate: unknown key",
        ),
        ({"ingest": {"synthetic_lesions": "many"}}, "error: params.yaml: ingest.synthetic_lesions: "),
        (
            {"backbone": {"cut": 9}, "ingest": {"synthetic_lesions": 41}},
            "error: backbone.cut: tf_efficientnet_lite0 has 7 blocks",
        ),
    ],
)
def test_bad_params_get_one_line_before_any_work(
    clean: Path, change: dict[str, dict[str, object]], message: str
) -> None:
    set_params(clean, **change)
    failed = run(clean, "dvc", "repro", check=False)
    assert failed.returncode != 0
    assert stages_run(failed.stdout) == ["ingest"]
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(message)
    assert "Traceback" not in failed.stderr


def test_a_model_that_misses_a_gate_is_not_exported(clean: Path) -> None:
    set_params(clean, export={"gates": {"auroc_macro": 1.0, "balanced_accuracy": 0.0}})
    failed = run(clean, "dvc", "repro", check=False)
    assert "error: not exported: auroc_macro is " in failed.stderr
    assert not (clean / "data/export").exists()


@pytest.mark.usefixtures("server")
def test_the_flow_runs_the_projects_graph(clean: Path) -> None:
    assert list(read_graph(clean)) == STAGES
    cached = train(clean, return_state=True)
    assert cached.message == "0 stages ran, 7 cached"
    set_params(clean, evaluate={"bootstrap": 101})
    changed = train(clean, return_state=True)
    assert changed.message == "2 stages ran, 5 cached"


def write_source(folder: Path) -> None:
    """HAM10000's layout, of melanomas and nevi in plain colours."""
    (folder / "images").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for number in range(24):
        label, color = ("mel", (90, 50, 40)) if number % 2 else ("odd", (200, 150, 120))
        pixels = rng.normal(color, 12, (60, 80, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"images/I{number}.jpg")
        rows.append(f"L{number},I{number},{label},histo,50,female,back")
    (folder / "HAM10000_metadata.csv").write_text("\n".join(rows) + "\n")


def test_a_finished_bundle_is_measured_on_another_source(clean: Path, tmp_path: Path) -> None:
    write_source(tmp_path / "source")
    command = ["dermtune", "evaluate", "--bundle", "data/export", "--source", "ham10000"]
    rest = ["--path", str(tmp_path / "source"), "--label", "odd=nv", "--out", str(tmp_path / "out")]
    run(clean, *command, *rest)
    assert json.loads((tmp_path / "out/metrics.json").read_text())["n_images"] == 24
    failed = run(clean, *command, "--out", str(tmp_path / "out"), check=False)
    assert failed.returncode == 2
    assert "give --images and --model, or --bundle, --source and --path" in failed.stderr


def test_a_bundle_is_no_better_than_itself(clean: Path) -> None:
    shown = run(clean, "dermtune", "compare", "data/export", "data/export", "--draws", "100").stdout
    assert shown.startswith("AUROC, malignant: ")
    verdicts = ("cannot tell the models apart.", "undefined on these images.", "too few lesions to say more.")
    assert all(line.endswith(verdicts) for line in shown.splitlines())


def test_what_a_leak_would_have_bought_is_told(clean: Path, tmp_path: Path) -> None:
    shown = run(clean, "dermtune", "study", "leakage", "--share", "1", "--out", str(tmp_path)).stdout
    assert "100% of the test lesions leaked (first: none, second: these):" in shown
    assert "AUROC, macro" in shown
    with (tmp_path / "leakage.csv").open() as file:
        assert {row["share"] for row in csv.DictReader(file)} == {"1"}
