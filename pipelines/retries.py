"""What is tried again: where a network, a disk or another process did not let go. A bad image stays bad."""

from dvc.lock import LockError
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed

LOCKED = "Locked"
UNREACHABLE = "Unreachable"


def failed(error: Exception) -> State[None]:
    """The failed state of a task: the error in its one line, without a traceback.

    It is called Unreachable where a network, a disk or DVC's lock did not let go, and is tried again then.
    """
    may_pass = isinstance(error, OSError | LockError) or isinstance(error.__cause__, OSError)
    return Failed(name=UNREACHABLE if may_pass else None, message=str(error))


def may_pass(_task: object, _run: TaskRun, state: State[object]) -> bool:
    """Tell Prefect to try again only what may pass by itself."""
    return state.name in {LOCKED, UNREACHABLE}
