"""With real processes: what a flow started ends with it, however it ends."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from pipelines import guard

HasEnded = Callable[[int], bool]
FAMILY = """\
import os, subprocess, sys, time
if sys.argv[2] == "stubborn":
    import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""
HOLDER = """\
import subprocess, sys, time
subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)
time.sleep(600)
"""


def wait_for_pids(path: Path) -> list[int]:
    while not path.exists() or len(path.read_text().split()) < 2:
        time.sleep(0.05)
    return [int(pid) for pid in path.read_text().split()]


def guarded(tmp_path: Path, manner: str) -> list[str]:
    return [sys.executable, guard.__file__, sys.executable, "-c", FAMILY, str(tmp_path / "pids"), manner]


@pytest.mark.parametrize("manner", ["obedient", "stubborn"])
def test_a_killed_flow_leaves_nothing_running(tmp_path: Path, manner: str, has_ended: HasEnded) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, *guarded(tmp_path, manner)])
    family = wait_for_pids(tmp_path / "pids")
    (the_guard,) = psutil.Process(holder.pid).children()
    holder.kill()
    holder.wait()
    deadline = time.monotonic() + 10
    while not all(map(has_ended, [*family, the_guard.pid])):
        assert time.monotonic() < deadline, "somebody outlived the flow"
        time.sleep(0.05)


def test_sigterm_to_the_guard_ends_all(tmp_path: Path, has_ended: HasEnded) -> None:
    with subprocess.Popen(guarded(tmp_path, "obedient"), stdin=subprocess.PIPE) as process:
        family = wait_for_pids(tmp_path / "pids")
        process.terminate()
        assert process.wait(timeout=10) == 128 + signal.SIGTERM
        assert all(map(has_ended, family))


def run(command: str) -> int:
    """Standard input stays open until the command has ended."""
    guarded = [sys.executable, guard.__file__, "sh", "-c", command]
    with subprocess.Popen(guarded, stdin=subprocess.PIPE) as process:
        return process.wait(timeout=20)


@pytest.mark.parametrize(("command", "code"), [("exit 3", 3), ("true", 0), ("kill -9 $$", 128 + 9)])
def test_the_commands_own_exit_code_is_given(command: str, code: int) -> None:
    assert run(command) == code


def test_what_a_command_leaves_behind_is_ended(tmp_path: Path, has_ended: HasEnded) -> None:
    assert run(f"sleep 600 & echo $! $! > {tmp_path / 'pids'}") == 0
    assert all(map(has_ended, wait_for_pids(tmp_path / "pids")))
