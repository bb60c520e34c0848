"""One DVC stage as one Prefect task: DVC says whether it must run, Prefect shows what became of it."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

LOCKED = "Locked"
_BUSY = re.compile(r"ERROR: .*(?:Unable to acquire lock|is busy, it is being blocked by)")
_GRACE = 10.0  # seconds between asking a stage to end and ending it


def is_locked(_task: object, _run: TaskRun, state: State[object]) -> bool:
    """Tell Prefect to try again only where another process holds DVC's lock."""
    return state.name == LOCKED


@task(
    name="stage",
    task_run_name="{stage}",
    cache_policy=NO_CACHE,  # DVC is the only cache
    retries=240,  # two hours for another run in the same workspace to end
    retry_delay_seconds=30,
    retry_condition_fn=is_locked,
)
def run_stage(stage: str, project: Path) -> State[None]:
    """Bring one stage of dvc.yaml up to date; the stages before it must be so already.

    Args:
        stage: the stage's name, as `dvc stage list` shows it from the project's folder.
        project: the folder of dvc.yaml.

    Returns:
        Completed; Cached where DVC had nothing to run; Locked (and tried again) where another process
        holds DVC's lock; or Failed with the stage's own message.
    """
    logger = get_run_logger()
    lines: list[str] = []
    with _in_own_group(
        # Wait for the workspace's short lock, so that a `dvc status` cannot undo hours of training.
        [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage],
        project,
    ) as process:
        for line in process.stdout or ():
            if text := line.rstrip():
                lines.append(text)
                logger.log(_level(text), "%s", text)
    return outcome(stage, process.returncode, lines)


def outcome(stage: str, code: int, lines: list[str]) -> State[None]:
    """What became of a stage, from the exit code of `dvc repro --single-item` and what it printed."""
    if code == 0:
        ran = f"Running stage '{stage}':" in lines
        return Completed(message="ran") if ran else Completed(name="Cached", message="nothing to run")
    if any(_BUSY.match(line) for line in lines):
        holders = [line.strip() for line in lines if line.startswith("  (PID ")]
        return Failed(name=LOCKED, message=" ".join(["another process holds DVC's lock", *holders]))
    return Failed(message=_own_message(lines) or f"dvc repro ended with exit code {code}")


def _own_message(lines: list[str]) -> str | None:
    """The stage's last `error: …` line, else DVC's, else whatever came last."""
    for prefix in ("error: ", "ERROR: ", ""):
        for line in reversed(lines):
            if line.startswith(prefix):
                return line.removeprefix(prefix)
    return None


def _level(line: str) -> int:
    if line.startswith(("error: ", "ERROR: ")):
        return logging.ERROR
    return logging.WARNING if line.lower().startswith("warning: ") else logging.INFO


@contextmanager
def _in_own_group(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a command so that nothing that it started outlives the block.

    A signal to DVC alone leaves the stage's process running; one to the process group reaches both.
    """
    scripts = str(Path(sys.executable).parent)  # where dvc.yaml's `dermtune` is
    process = subprocess.Popen(  # noqa: S603 - the command is ours, without a shell
        command,
        cwd=folder,
        env=os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    with process:
        try:
            yield process
            process.wait()
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End every process of the group: ask, wait, then insist."""
    deadline = time.monotonic() + _GRACE
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            process.poll()  # a leader that nobody reaps would count as alive
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
