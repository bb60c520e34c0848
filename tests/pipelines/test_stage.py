import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from pipelines.retries import LOCKED
from pipelines.stage import as_own, outcome, run_stage
from prefect import flow
from prefect.client.schemas.objects import State

SLOW = """\
stages:
  slow:
    cmd: touch began; sleep 8; touch slow.txt
    outs: [slow.txt]
"""


@pytest.mark.parametrize(
    ("code", "lines", "name", "message"),
    [
        (0, ["Running stage 'fit':", "> dermtune fit"], "Completed", "ran"),
        (0, ["Stage 'fit' didn't change, skipping", "Data and pipelines are up to date."], "Cached", None),
        (0, ["Stage 'fit' is cached - skipping run, checking out outputs"], "Cached", None),
        (255, ["error: a.csv: empty", "ERROR: failed to reproduce 'fit'"], "Failed", "a.csv: empty"),
        (255, ["error: old", "error: new", "done"], "Failed", "new"),
        (255, ["ERROR: failed to reproduce 'fit': missing"], "Failed", "failed to reproduce 'fit': missing"),
        (255, ["some words"], "Failed", "some words"),
        (-9, [], "Failed", "dvc repro ended with exit code -9"),
        (
            255,
            ["ERROR: 'data/fit' is busy, it is being blocked by:", "  (PID 7): dvc repro", "", "If there"],
            LOCKED,
            "another process holds DVC's lock (PID 7): dvc repro",
        ),
    ],
)
def test_what_dvc_printed_decides_the_state(
    code: int, lines: list[str], name: str, message: str | None
) -> None:
    state = outcome("fit", code, lines)

    assert state.name == name
    assert message is None or state.message == message


@pytest.mark.usefixtures("server")
def test_a_stage_that_hangs_is_ended_and_locks_nobody_out(
    make_project: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    project = make_project(SLOW.replace("sleep 8", "test -e quick || sleep 617"))

    @flow
    def patient(hours: float) -> State[None]:
        return as_own(run_stage("slow", project, hours, return_state=True))

    started = time.monotonic()
    state = patient(5 / 3600, return_state=True)
    assert (state.name, state.message) == ("Failed", "not done after 0.00138889 hours; ended")
    assert time.monotonic() - started < 5 + 12
    assert not [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", "617"]]
    (project / "quick").touch()
    assert patient(1, return_state=True).name == "Completed"
    assert "Retry" not in caplog.text


@pytest.mark.usefixtures("server")
def test_a_workspace_in_use_is_waited_for(
    make_project: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    project = make_project(SLOW)

    @flow
    def impatient() -> None:
        run_stage.with_options(retry_delay_seconds=2)("slow", project)

    with subprocess.Popen([sys.executable, "-m", "dvc", "repro", "--quiet"], cwd=project) as other:
        while not (project / "began").exists():
            time.sleep(0.1)
        impatient()

    assert other.returncode == 0
    assert f"another process holds DVC's lock (PID {other.pid})" in caplog.text
    assert "Retry 1/" in caplog.text
    assert "Finished in state Cached" in caplog.text
