"""What is tried again: where a network, a disk or another process did not let go. A bad image stays bad."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from dvc.exceptions import DvcException
from dvc.lock import LockError
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed

from dermtune_bundle.errors import DermtuneError

P = ParamSpec("P")
R = TypeVar("R")
LOCKED = "Locked"
UNREACHABLE = "Unreachable"


def patient_task(name: str) -> Callable[[Callable[P, R]], Task[P, R | State[None]]]:
    """Make a function a task that fails with an error's one line, and tries again what may pass by itself."""

    def decorate(function: Callable[P, R]) -> Task[P, R | State[None]]:
        @task(
            name=name,
            task_run_name=name,
            cache_policy=NO_CACHE,
            retries=3,
            retry_delay_seconds=[10, 60, 300],
            retry_condition_fn=may_pass,
        )
        @wraps(function)
        def tell(*args: P.args, **kwargs: P.kwargs) -> R | State[None]:
            try:
                return function(*args, **kwargs)
            except (DermtuneError, DvcException) as error:
                return failed(error)

        return tell

    return decorate


def failed(error: Exception) -> State[None]:
    """The failed state of a task: the error in its one line, without a traceback.

    It is called Unreachable where a network, a disk or DVC's lock did not let go, and is tried again then.
    """
    may_pass = isinstance(error, OSError | LockError) or isinstance(error.__cause__, OSError)
    return Failed(name=UNREACHABLE if may_pass else None, message=str(error))


def may_pass(_task: object, _run: TaskRun, state: State[object]) -> bool:
    """Tell Prefect to try again only what may pass by itself."""
    return state.name in {LOCKED, UNREACHABLE}
