"""One DVC stage as one Prefect task: DVC says whether it must run, Prefect shows what became of it."""

import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from dermtune.progress import read_progress
from pipelines import guard
from pipelines.locks import clear_dead_locks
from pipelines.retries import LOCKED, may_pass

# What DVC advises people who ran it by hand.
_HINT = re.compile(
    r"To track the changes with git, run:|\tgit add .*|To enable auto staging, run:"
    r"|\tdvc config core.autostage true|Use `dvc push` to send your updates to remote storage\."
)
_BUSY = re.compile(r"ERROR: .*(?:Unable to acquire lock|is busy, it is being blocked by)")


@task(
    name="stage",
    task_run_name="{stage}",
    cache_policy=NO_CACHE,  # DVC is the only cache
    retries=240,  # two hours for another run in the same workspace to end
    retry_delay_seconds=30,
    retry_condition_fn=may_pass,
)
def run_stage(stage: str, project: Path, hours: float = 24) -> State[None]:
    """Bring one stage of dvc.yaml up to date; the stages before it must be so already.

    Args:
        stage: the stage's name, as `dvc stage list` shows it from the project's folder.
        project: the folder of dvc.yaml.
        hours: after which it is ended.

    Returns:
        Completed; Cached where DVC had nothing to run; Locked (and tried again) where another process
        holds DVC's lock; TimedOut; or Failed with the stage's own message.
    """
    logger = get_run_logger()
    lines: list[str] = []
    started = time.monotonic()
    with _guarded(
        # Wait for the workspace's short lock, so that a `dvc status` cannot undo hours of training.
        [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage],
        project,
        3600 * hours,
    ) as process:
        bar = _Bar(stage)
        for line in process.stdout or ():
            text = line.rstrip()
            if text and not _HINT.fullmatch(text):
                lines.append(text)
                logger.log(_level(text), "%s", text)
                bar.show(text)
    if not process.returncode:
        bar.fill()
    if process.returncode:
        clear_dead_locks(project)
    if process.returncode and time.monotonic() - started > 3600 * hours:
        return Failed(name="TimedOut", message=f"not done after {hours:g} hours; ended")
    return outcome(stage, process.returncode, lines)


def as_own(state: State[Any]) -> State[None]:
    """A task's final state as that of its flow, which would else only say that all states are completed.

    All failures are called so, for alerts wait for that name.
    """
    if state.is_completed():
        return Completed(name=state.name, message=state.message)
    return Failed(message=state.message)


class _Bar:
    """A progress artifact on the page of the run, moved by what the stage prints."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._artifact: UUID | None = None

    def show(self, line: str) -> None:
        """Move the bar, if the line tells of progress."""
        if (told := read_progress(line)) is None:
            return
        what, share = told
        if self._artifact is None:
            made = create_progress_artifact(
                progress=0.0, key=f"progress-{_plain(self._stage)}", description=what
            )
            self._artifact = UUID(str(made))  # it is typed as if this were a coroutine
        update_progress_artifact(self._artifact, progress=100 * share, description=what)

    def fill(self) -> None:
        """Show that the stage is done; what it printed last was before that."""
        if self._artifact is not None:
            update_progress_artifact(self._artifact, progress=100.0)


def _plain(stage: str) -> str:
    """`search` of `search/dvc.yaml:search`, for a name that Prefect takes."""
    return stage.rpartition(":")[2]


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
def _guarded(command: list[str], folder: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Run a command so that nothing that it started outlives the block, this process, or the time given."""
    scripts = str(Path(sys.executable).parent)  # where dvc.yaml's `dermtune` is
    process = subprocess.Popen(  # noqa: S603 - the command is ours, without a shell
        [sys.executable, "-S", "-E", guard.__file__, *command],
        cwd=folder,
        env=os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,  # the guard ends all when this closes
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    assert process.stdin  # noqa: S101 - for the type checker
    timer = threading.Timer(seconds, process.stdin.close)
    timer.start()
    try:
        with process:  # closes its streams, then waits
            yield process
            process.wait()
    finally:
        timer.cancel()
