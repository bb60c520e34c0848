"""One writer in a workspace, and none locked out by the dead.

DVC locks a stage's files while it runs; a flow holds the workspace from its first stage to its last, so that
no other changes params.yaml in between. The operating system frees that lock when its holder is gone. DVC's
own lock file names process ids, and forgets those that are gone. After a restart of the machine or of a
container an id may be another program's, which would then block the workspace for ever.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from dvc.lock import LockError, make_lock
from dvc.rwlock import SCHEMA
from filelock import FileLock, Timeout
from prefect.logging import get_run_logger
from voluptuous import Invalid


@contextmanager
def own_workspace(project: Path) -> Iterator[None]:
    """Be the one flow that writes to a project; wait while another is.

    Args:
        project: the folder of dvc.yaml.
    """
    folder = project / ".dvc/tmp"
    if not folder.parent.is_dir():  # DVC will say that this is no project
        yield
        return
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / "dermtune.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        get_run_logger().info("another run works in %s; waiting for its end", project)
        lock.acquire(poll_interval=1)
    try:
        clear_dead_locks(project)
        yield
    finally:
        lock.release()


def clear_dead_locks(project: Path) -> None:
    """`free_dead_locks`, and tell in the log of the run."""
    if freed := free_dead_locks(project):
        get_run_logger().warning("a lock of a process that is gone was removed: %s", "; ".join(freed))


def free_dead_locks(project: Path) -> list[str]:
    """Remove DVC's file of locks if every process that it names is gone, or if it was cut short by a kill.

    Args:
        project: the folder of dvc.yaml.

    Returns:
        What held it, for people; nothing: a holder lives, or nothing is locked.
    """
    folder = project / ".dvc/tmp"
    path = folder / "rwlock"
    if not path.exists():
        return []
    with suppress(FileNotFoundError, LockError), make_lock(folder / "rwlock.lock", tmp_dir=folder):
        written = path.stat().st_mtime
        try:
            held = SCHEMA(json.loads(path.read_bytes()))
        except (ValueError, Invalid):  # who writes holds the lock that we hold
            path.unlink()
            return ["a file that was not written to its end"]
        readers = [one for several in held["read"].values() for one in several]
        holders = [*held["write"].values(), *readers]
        if holders and not any(is_alive(one["pid"], written) for one in holders):
            path.unlink()
            return sorted({one["cmd"] for one in holders})
    return []


def is_alive(pid: int, written: float) -> bool:
    """Is the process with this id the one that was noted? When in doubt, it is.

    Args:
        pid: its id.
        written: when the note was last written, as of `time.time`; who began later is another.
    """
    try:
        return float(psutil.Process(pid).create_time()) <= written + 1
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
