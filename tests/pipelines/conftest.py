"""A Prefect server for the session, and a scratch DVC project for a test."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pipelines  # noqa: F401 - sets Prefect's environment before Prefect is imported
import psutil
import pytest
from prefect.testing.utilities import prefect_test_harness

# In the wrong order on purpose: the flow has to read the graph, not the file.
STAGES = """\
stages:
  evaluate:
    cmd: mkdir data/evaluate && cp metrics.json data/evaluate/ && cat words.txt > data/evaluate/words.txt
    deps: [words.txt, metrics.json]
    outs: [data/evaluate]
  words:
    cmd: cat letters.txt letters.txt > words.txt; echo 'two words' >&2
    deps: [letters.txt]
    outs: [words.txt]
  letters:
    cmd: cp source.txt letters.txt; echo 'first letter'; echo 'second letter'
    deps: [source.txt]
    outs: [letters.txt]
"""
METRIC = '{"value": 0.875, "low": 0.8, "high": 0.9}'
METRICS = f"""\
{{"auroc": {{"macro": {METRIC}}}, "balanced_accuracy": {METRIC}, "average_precision": {{"macro": {METRIC}}},
 "threshold": {{"mel": 0.25}}, "sensitivity": {{"mel": {METRIC}}}, "specificity": {{"mel": {METRIC}}},
 "accuracy": {METRIC}, "brier": {METRIC}, "ece": {METRIC}}}
"""


@pytest.fixture(scope="session")
def has_ended() -> Callable[[int], bool]:
    """Is a process gone, or a zombie that nobody has asked for?"""

    def ask(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:  # also where it ends while it is asked
            return True

    return ask


@pytest.fixture(scope="session")
def server() -> Iterator[None]:
    """A real server on loopback with a database of its own; it takes 10 to 30 s to start."""
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[..., Path]:
    """Make a Git and DVC project of three small stages, or of the stages given."""

    def make(stages: str = STAGES) -> Path:
        project = tmp_path / "project"
        project.mkdir()
        dvc = [sys.executable, "-m", "dvc"]
        subprocess.run(["git", "init", "--quiet", project], check=True)
        subprocess.run([*dvc, "init", "--quiet"], check=True, cwd=project, env=os.environ)
        (project / "data").mkdir()
        (project / "dvc.yaml").write_text(stages)
        (project / "source.txt").write_text("a\n")
        (project / "metrics.json").write_text(METRICS)
        return project

    return make
