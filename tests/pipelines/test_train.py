import asyncio
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from pipelines.train import main, read_graph, train
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, State, TaskRun
from prefect.client.schemas.sorting import TaskRunSort

MakeProject = Callable[..., Path]

FAILING = """\
stages:
  first:
    cmd: echo one > one.txt
    outs: [one.txt]
  second:
    cmd: >-
      echo 'reading' && echo 'error: one.txt: no such class "mole"; known are mel, nv' >&2 && exit 2
    deps: [one.txt]
    outs: [two.txt]
  third:
    cmd: cp two.txt three.txt
    deps: [two.txt]
    outs: [three.txt]
"""
TUNED = """\
stages:
  tune:
    cmd: cp params.yaml tuned.yaml
    params: [lr]
    outs: [tuned.yaml]
"""
BESIDE = """\
stages:
  search:
    cmd: touch found.txt
    outs: [found.txt]
"""
ENDLESS = """\
stages:
  endless:
    cmd: echo $$ > pid && sleep 600 && touch out.txt
    outs: [out.txt]
"""


def run(project: Path) -> State[None]:
    return train(project, return_state=True)


async def _task_runs(state: State[None]) -> list[TaskRun]:
    flow_run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    async with get_client() as client:
        for _ in range(100):  # the server takes task runs in from a queue
            runs = await client.read_task_runs(
                flow_run_filter=flow_run, sort=TaskRunSort.EXPECTED_START_TIME_ASC
            )
            if runs and all(task_run.state and task_run.state.is_final() for task_run in runs):
                break
            await asyncio.sleep(0.2)
        return runs


def task_states(state: State[None]) -> dict[str, str | None]:
    return {task_run.name: task_run.state_name for task_run in asyncio.run(_task_runs(state))}


async def _logs(state: State[None], awaited: str) -> list[str]:
    flow_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    async with get_client() as client:
        for _ in range(100):  # logs are sent in batches
            messages = [log.message for log in await client.read_logs(log_filter=flow_run, limit=200)]
            if awaited in messages:
                break
            await asyncio.sleep(0.2)
        return messages


async def _artifacts(state: State[None]) -> list[Artifact]:
    flow_run = ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
    async with get_client() as client:
        return await client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=flow_run))


def test_the_graph_is_read_from_dvc_in_an_order_that_runs(make_project: MakeProject) -> None:
    assert list(read_graph(make_project()).items()) == [
        ("letters", []),
        ("words", ["letters"]),
        ("evaluate", ["words"]),
    ]


@pytest.mark.usefixtures("server")
def test_each_stage_is_a_task_run_and_unchanged_ones_are_cached(make_project: MakeProject) -> None:
    project = make_project()

    first = run(project)
    second = run(project)
    (project / "source.txt").write_text("b\n")
    third = run(project)
    (project / "source.txt").write_text("a\n")
    fourth = run(project)

    ran = {"letters": "Completed", "words": "Completed", "evaluate": "Completed"}
    cached = dict.fromkeys(ran, "Cached")
    assert first.is_completed()
    assert task_states(first) == ran
    assert task_states(second) == cached
    assert second.message == "0 stages ran, 3 cached"
    assert task_states(third) == ran, "a changed source is noticed downstream"
    assert task_states(fourth) == cached, "what DVC has in its run cache is not run again"
    assert (project / "data/evaluate/words.txt").read_text() == "a\na\n"


@pytest.mark.usefixtures("server")
def test_output_and_metrics_are_on_the_page_of_the_run(make_project: MakeProject) -> None:
    project = make_project()

    state = run(project)

    logs = asyncio.run(_logs(state, "two words"))
    assert {"first letter", "second letter", "two words"} <= set(logs)
    (artifact,) = asyncio.run(_artifacts(state))
    assert artifact.key == "metrics"
    assert "| Balanced accuracy | 0.875 [0.800, 0.900] |" in str(artifact.data)
    assert f"`{project / 'data/evaluate/report.html'}`" in str(artifact.data)
    assert f"`{project / 'data/export'}`" in str(artifact.data)


@pytest.mark.usefixtures("server")
def test_a_run_is_an_experiment_with_its_name_and_params(make_project: MakeProject) -> None:
    project = make_project(TUNED)
    (project / "params.yaml").write_text("lr: 0.1 # of the classifier\n")
    (project / "search").mkdir()
    (project / "search/dvc.yaml").write_text(BESIDE)  # never run, and no part of it

    def git(*command: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *command], cwd=project, check=True
        )

    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    assert train(project, {"lr": 0.2}, "bolder", return_state=True).is_completed()
    shown = [sys.executable, "-m", "dvc", "exp", "show", "--csv"]
    table = subprocess.run(shown, cwd=project, check=True, capture_output=True, text=True).stdout
    (row,) = [row for row in csv.DictReader(table.splitlines()) if row["Experiment"] == "bolder"]
    assert row["lr"] == "0.2"
    assert (project / "params.yaml").read_text() == "lr: 0.2 # of the classifier\n"
    wrong = train(project, {"rate": 1}, return_state=True)
    assert wrong.is_failed()
    assert "rate" in str(wrong.message)


@pytest.mark.usefixtures("server")
def test_a_failed_stage_fails_the_flow_with_its_own_message(make_project: MakeProject) -> None:
    state = run(make_project(FAILING))

    assert state.is_failed()
    assert state.message == 'second: one.txt: no such class "mole"; known are mel, nv'
    assert task_states(state) == {"first": "Completed", "second": "Failed"}
    logs = asyncio.run(_logs(state, 'error: one.txt: no such class "mole"; known are mel, nv'))
    assert not any("Traceback" in line or "NoneType" in line for line in logs)


@pytest.mark.usefixtures("server")
def test_a_project_that_dvc_cannot_read_fails_with_dvcs_message(make_project: MakeProject) -> None:
    state = run(make_project("stages:\n  first:\n    cmd: echo ${missing}\n"))

    assert state.is_failed()
    assert "Could not find 'missing'" in str(state.message)


@pytest.fixture
def _sigterm_restored() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("server", "_sigterm_restored")
def test_the_command_ends_with_the_message_and_a_failing_exit_code(make_project: MakeProject) -> None:
    result = CliRunner().invoke(main, ["--project", str(make_project(FAILING))])

    assert result.exit_code == 1
    assert 'error: second: one.txt: no such class "mole"; known are mel, nv' in result.stderr


def test_sigterm_leaves_neither_stage_nor_temporary_server_behind(
    make_project: MakeProject, tmp_path: Path, has_ended: Callable[[int], bool]
) -> None:
    project = make_project(ENDLESS)
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    flow = subprocess.Popen(
        [sys.executable, "-m", "pipelines.train", "--project", project],
        cwd=Path(__file__).parents[2],
        env=environment | {"PREFECT_HOME": str(tmp_path / "prefect")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (project / "pid").exists():
        assert flow.poll() is None, "the flow ended before its stage began"
        time.sleep(0.1)
    family = psutil.Process(flow.pid).children(recursive=True)
    commands = [" ".join(process.cmdline()) for process in family]
    assert any("uvicorn" in command for command in commands)
    assert any("sleep 600" in command for command in commands)

    started = time.monotonic()
    flow.terminate()
    code = flow.wait(timeout=60)

    assert code == 128 + signal.SIGTERM
    assert all(has_ended(process.pid) for process in family)
    assert time.monotonic() - started < 20
