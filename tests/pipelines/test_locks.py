"""Against DVC's own lock file, written by a real `dvc repro`."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from pipelines.locks import free_dead_locks, is_alive

SLOW = """\
stages:
  slow:
    cmd: touch began && exec sleep 600
    outs: [slow.txt]
"""


@pytest.fixture
def holder(make_project: Callable[..., Path]) -> Iterator[tuple[Path, "subprocess.Popen[bytes]"]]:
    project = make_project(SLOW)
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "--quiet"], cwd=project, start_new_session=True
    )
    while not (project / "began").exists():
        assert process.poll() is None
        time.sleep(0.05)
    yield project, process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def test_a_lock_is_freed_only_when_its_owner_is_gone(holder: tuple[Path, "subprocess.Popen[bytes]"]) -> None:
    project, process = holder
    lock = project / ".dvc/tmp/rwlock"
    assert str(process.pid) in lock.read_text()
    assert free_dead_locks(project) == []
    assert str(process.pid) in lock.read_text(), "its owner works"

    os.killpg(process.pid, 9)
    process.wait()
    content = lock.read_text()
    (command,) = free_dead_locks(project)
    assert command.endswith("repro --quiet")
    assert not lock.exists()

    # after a restart of the machine, the same number is another program
    lock.write_text(content.replace(str(process.pid), str(os.getpid())))
    blocked = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "--dry"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert blocked.returncode == 0 or "is busy" in blocked.stderr
    blocked = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "is busy, it is being blocked by" in blocked.stderr
    before = psutil.Process().create_time() - 3600
    os.utime(lock, (before, before))
    assert len(free_dead_locks(project)) == 1
    assert not lock.exists()


def test_one_living_owner_keeps_the_whole_file(holder: tuple[Path, "subprocess.Popen[bytes]"]) -> None:
    project, _ = holder
    lock = project / ".dvc/tmp/rwlock"
    held = json.loads(lock.read_text())
    held["write"]["elsewhere"] = {"pid": 2**22 + 1, "cmd": "dvc repro"}
    lock.write_text(json.dumps(held))
    assert free_dead_locks(project) == []
    assert "elsewhere" in lock.read_text()


def test_nothing_locked_and_no_project_are_no_errors(tmp_path: Path) -> None:
    assert free_dead_locks(tmp_path) == []
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    assert free_dead_locks(tmp_path) == []


@pytest.mark.parametrize("content", ["", "{ half", "[]", '{"write": {"a": {"pid": 3}}}', '{"write": null}'])
def test_a_file_that_a_kill_cut_short_locks_nobody_out(tmp_path: Path, content: str) -> None:
    """DVC, which writes it in place, would refuse every command from then on."""
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / ".dvc/tmp/rwlock").write_text(content)
    assert free_dead_locks(tmp_path) == ["a file that was not written to its end"]
    assert not (tmp_path / ".dvc/tmp/rwlock").exists()


def test_a_process_is_alive_if_it_was_there_when_the_lock_was_written() -> None:
    began = psutil.Process().create_time()
    assert is_alive(os.getpid(), began + 5)
    assert not is_alive(os.getpid(), began - 5), "the number is another program's by now"
    assert not is_alive(2**22 + 1, began + 5)
