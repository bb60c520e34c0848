import pytest
from dvc.lock import LockError
from pipelines.retries import LOCKED, UNREACHABLE, failed, may_pass
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from dermtune.errors import DataError, SourceError


def unreachable() -> SourceError:
    try:
        try:
            raise TimeoutError("no answer")
        except OSError as error:
            raise SourceError("s3://x: cannot be used") from error
    except SourceError as found:
        return found


@pytest.mark.parametrize(
    ("error", "is_tried_again"),
    [
        (unreachable(), True),
        (ConnectionError("reset"), True),
        (LockError("busy"), True),
        (SourceError("no such column"), False),
        (DataError("damaged"), False),
        (KeyError("a defect of ours"), False),
    ],
)
def test_what_may_pass_by_itself_is_tried_again(error: Exception, is_tried_again: bool) -> None:  # noqa: FBT001
    state = failed(error)
    assert may_pass(None, None, state) == is_tried_again
    assert state.is_failed()
    assert state.message == str(error)


@pytest.mark.parametrize(
    ("state", "is_tried_again"),
    [
        (Failed(name=LOCKED), True),
        (Failed(name=UNREACHABLE), True),
        (Failed(message="a.csv: empty"), False),
        (Completed(), False),
    ],
)
def test_the_name_of_a_state_tells(state: State[None], is_tried_again: bool) -> None:  # noqa: FBT001
    assert may_pass(None, None, state) == is_tried_again
