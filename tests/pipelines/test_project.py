"""The project's own dvc.yaml, on a tiny synthetic set: real DVC, a real flow."""

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest
from pipelines.train import read_graph
from ruamel.yaml import YAML

from dermtune.sources import SourceImage
from dermtune.sources.synthetic import synthetic
from dermtune.table import read_table

ROOT = Path(__file__).parents[2]
STAGES = ["ingest", "augment", "embed", "finetune", "calibrate", "evaluate", "export"]
BIN = Path(sys.executable).parent
T = TypeVar("T")


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


def draw() -> tuple[list[SourceImage], list[SourceImage]]:
    """Images of forty lesions, and of three more that come later."""
    images = synthetic(lesions=43, seed=1)
    late = sorted({image.lesion_id for image in images if image.label == "nv"})[-3:]
    return (
        [image for image in images if image.lesion_id not in late],
        [image for image in images if image.lesion_id in late],
    )


def add_images(project: Path, images: list[SourceImage]) -> None:
    """Put images into data/raw, in HAM10000's layout."""
    folder, table = project / "data/raw/images", project / "data/raw/HAM10000_metadata.csv"
    folder.mkdir(exist_ok=True)
    for image in images:
        (folder / f"{image.image_id}.jpg").write_bytes(image.content())
    columns = ["lesion_id", "image_id", "label", "dx_type", "age", "sex", "site"]
    rows = [",".join(str(getattr(image, column) or "") for column in columns) for image in images]
    before = table.read_text() if table.exists() else "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
    table.write_text(before + "\n".join(rows) + "\n")


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
        "data/splits.csv",
        ".dvc/config",
        ".dvc/plots",
    ):
        source, target = ROOT / name, project / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    shutil.copytree(ROOT / "src", project / "src", ignore=shutil.ignore_patterns("__pycache__"))
    set_params(
        project,
        ingest={"source": "ham10000", "synthetic_lesions": 40},
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
    add_images(project, draw()[0])
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
    assert [name for name in tracked if name.startswith("data/")] == [
        "data/raw/README.md",
        "data/splits.csv",
    ]


def test_every_file_that_a_stage_writes_is_documented(project: Path) -> None:
    documented = (ROOT / "docs/formats.md").read_text()
    for path in (project / "data").rglob("*"):
        if path.is_file() and "raw" not in path.parts:
            numbered = re.sub(r"-\d+(?=\.)", "-00" if path.suffix == ".npy" else "-000", path.name)
            assert numbered in documented or f"*{path.suffix}" in documented, path


def test_a_second_repro_runs_nothing(clean: Path) -> None:
    second = run(clean, "dvc", "repro")
    assert stages_run(second.stdout) == []
    assert "Data and pipelines are up to date" in second.stdout


def test_an_experiment_runs_what_its_parameter_touches_and_is_compared(clean: Path) -> None:
    ran = run(clean, "dvc", "exp", "run", "--name", "surer", "--set-param", "evaluate.bootstrap=101")
    assert stages_run(ran.stdout) == ["evaluate", "export"]
    rows = list(csv.DictReader(run(clean, "dvc", "exp", "show", "--csv").stdout.splitlines()))
    (row,) = [row for row in rows if row["Experiment"] == "surer"]
    assert row["evaluate.bootstrap"] == "101"
    assert 0 <= float(row["auroc_macro"]) <= 1
    difference = json.loads(run(clean, "dvc", "params", "diff", "--json").stdout)
    assert list(difference["params.yaml"]) == ["evaluate.bootstrap"]
    assert difference["params.yaml"]["evaluate.bootstrap"]["new"] == 101
    metrics = json.loads(run(clean, "dvc", "metrics", "diff", "--all", "--json").stdout)
    assert "auroc_macro" in metrics["data/evaluate/headline.json"]


@pytest.mark.slow
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
    assert len(plots) == 18
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
            {"finetune": {"rate": 1}, "ingest": {"max_quarantine": 0.04}},
            "error: params.yaml: finetune.rate: unknown key",
        ),
        ({"ingest": {"synthetic_lesions": "many"}}, "error: params.yaml: ingest.synthetic_lesions: "),
        (
            {"backbone": {"cut": 9}, "ingest": {"max_quarantine": 0.04}},
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


def test_the_graph_is_these_stages(clean: Path) -> None:
    assert list(read_graph(clean)) == STAGES


def test_a_finished_bundle_is_measured_on_another_source(clean: Path, tmp_path: Path) -> None:
    command = ["dermtune", "evaluate", "--bundle", "data/export", "--out", str(tmp_path / "out")]
    run(clean, *command, "--source", "synthetic", "--path", "data/raw", "--label", "vasc=nv")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["n_images"] == len(synthetic(lesions=40, seed=YAML().load(clean / "params.yaml")["seed"]))
    failed = run(clean, *command, check=False)
    assert failed.returncode == 2
    assert "give --images and --model, or --bundle, --source and --path" in failed.stderr


def test_a_bundle_is_no_better_than_itself(clean: Path) -> None:
    shown = run(clean, "dermtune", "compare", "data/export", "data/export", "--draws", "100").stdout
    assert shown.startswith("AUROC, malignant: ")
    verdicts = ("cannot tell the models apart.", "undefined on these images.", "too few lesions to say more.")
    assert all(line.endswith(verdicts) for line in shown.splitlines())


@pytest.mark.slow
def test_what_a_leak_would_have_bought_is_told(clean: Path, tmp_path: Path) -> None:
    shown = run(clean, "dermtune", "study", "leakage", "--share", "1", "--out", str(tmp_path)).stdout
    assert "100% of the test lesions leaked (first: none, second: these):" in shown
    assert "AUROC, macro" in shown
    with (tmp_path / "leakage.csv").open() as file:
        assert {row["share"] for row in csv.DictReader(file)} == {"1"}


class Service:
    """A copy of the project, deployed to a real server with a real worker; read through Prefect's API."""

    def __init__(self, project: Path, url: str, worker: psutil.Process) -> None:
        self.project, self.url, self.worker = project, url, worker

    def prefect(self, *command: str) -> None:
        environment = os.environ | {"PREFECT_API_URL": self.url, "PWD": str(self.project)}
        arguments = [sys.executable, "-m", "prefect", "--no-prompt", *command]
        subprocess.run(arguments, cwd=self.project, env=environment, check=True, capture_output=True)

    def ask(self, path: str, **body: object) -> Any:  # noqa: ANN401 (JSON)
        return httpx.post(f"{self.url}/{path}", json=body, timeout=300).json()

    def ended(self) -> list[str]:
        """States of the flow runs that have ended, the first first."""
        runs = self.ask("flow_runs/filter", sort="START_TIME_ASC", limit=200)
        return [run["state_name"] for run in runs if run["end_time"]]

    def running(self) -> str:
        (run,) = self.ask("flow_runs/filter", flow_runs={"state": {"type": {"any_": ["RUNNING"]}}})
        return str(run["id"])

    def stage(self, name: str) -> psutil.Process | None:
        """The process of a stage."""
        for process in psutil.process_iter(["cmdline"]):
            if [*map(str, process.info["cmdline"] or ())][1:3] == [str(BIN / "dermtune"), name]:
                with suppress(psutil.NoSuchProcess):
                    if Path(process.cwd()) == self.project:
                        return process
        return None

    def wait(self, until: Callable[[], T | None], seconds: float = 300) -> T:
        deadline = time.monotonic() + seconds
        while not (found := until()):
            assert time.monotonic() < deadline, self.ended()
            time.sleep(0.1)
        return found


@pytest.fixture
def service(clean: Path, tmp_path: Path) -> Iterator[Service]:
    project = tmp_path / "project"
    shutil.copytree(clean, project, symlinks=True)
    shutil.copytree(ROOT / "pipelines", project / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "prefect.yaml", project)
    run(project, "git", "add", ".")
    run(project, "git", "commit", "--quiet", "--message", "flows")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PREFECT_HOME": str(tmp_path / "home"), "PREFECT_WORKER_QUERY_SECONDS": "1"}
    log = tmp_path / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "pipelines.server", "--port", str(port)],
            cwd=ROOT,
            env=environment | {"PREFECT_API_URL": ""},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    while b"started!" not in log.read_bytes():
        assert server.poll() is None, log.read_text()
        time.sleep(0.2)
    (worker,) = (one for one in psutil.Process(server.pid).children() if "worker" in one.cmdline())
    found = Service(project, f"http://127.0.0.1:{port}/api", worker)
    found.prefect("deploy", "--all")
    yield found
    server.terminate()
    server.wait(timeout=60)


@pytest.mark.slow
def test_nights_alone(service: Service, has_ended: Callable[[int], bool]) -> None:
    """Scheduled every few seconds: a kill, a first champion, nothing new, a cancelled run, a refusal."""
    project = service.project
    trained = (project / "dvc.lock").read_bytes()
    stored = YAML(typ="safe").load(trained)["stages"]["finetune"]["outs"][0]["md5"]
    (project / ".dvc/cache/files/md5" / stored[:2] / stored[2:]).unlink()
    for gone in (".dvc/cache/runs", "data/finetune"):
        shutil.rmtree(project / gone)
    service.prefect("deployment", "schedule", "create", "retrain/retrain", "--interval", "15")

    service.wait(lambda: next((project / "data/checkpoints").glob("*.safetensors"), None))
    finetune = service.stage("finetune")
    (flow,) = service.worker.children()
    flow.kill()
    service.wait(lambda: "Crashed" in service.ended())
    assert finetune is None or has_ended(finetune.pid)
    service.wait(lambda: "Promoted" in service.ended())
    assert (project / "dvc.lock").read_bytes() == trained, "what was resumed is what was trained at once"
    service.wait(lambda: "Unchanged" in service.ended())

    tested = read_table(project / "data/ingest/images.parquet", split="test")["lesion_id"]
    (project / "data/raw/images/unlisted.jpg").write_bytes(b"no image, and in no table")
    add_images(project, draw()[1])
    ingest = service.wait(lambda: service.stage("ingest"))
    cancelled, asked = service.running(), time.monotonic()
    service.ask(f"flow_runs/{cancelled}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
    service.wait(lambda: has_ended(ingest.pid), seconds=10)
    assert time.monotonic() - asked < 10
    service.wait(lambda: "Cancelled" in service.ended())

    service.wait(lambda: "Refused" in service.ended())
    ended = service.ended()
    assert ended[:2] == ["Crashed", "Promoted"]
    now = read_table(project / "data/ingest/images.parquet", split="test")["lesion_id"]
    assert set(tested) <= set(now), "what was tested on stays so"
    assert {*ended} == {"Crashed", "Promoted", "Unchanged", "Cancelled", "Refused"}
    (refused,) = service.ask("flow_runs/filter", flow_runs={"state": {"name": {"any_": ["Refused"]}}})
    assert "all lesions: AUROC, malignant: " in refused["state"]["message"]
    tasks = service.ask("task_runs/filter", flow_runs={"id": {"any_": [refused["id"]]}})
    states = {task["name"]: task["state_name"] for task in tasks}
    assert states == {"source": "Completed", **dict.fromkeys(STAGES, "Completed"), "compare": "Refused"}
    artifacts = service.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [refused["id"]]}})
    shown = {artifact["key"]: str(artifact["data"]) for artifact in artifacts}
    assert {"metrics", "plots", "report", "bundle", "verdict"} <= {*shown}
    assert "| metric | value | champion | difference |" in shown["metrics"]
    assert "1 set aside" in shown["metrics"]
    assert shown["verdict"].startswith("**Refused.** ")
    assert "the test split was used for so far: 1." in shown["verdict"]
    assert refused["name"] in run(project, "dvc", "exp", "list", "--name-only").stdout.split()
    history = run(project, "dermtune", "registry", "list").stdout
    assert "the first that passed the gates" in history
    assert "never promoted" in history
