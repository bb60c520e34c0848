import threading
from collections.abc import Iterator

import pytest

from dermtune.prefetch import prefetch


def test_items_come_in_order() -> None:
    assert list(prefetch(range(5))) == [0, 1, 2, 3, 4]
    assert list(prefetch([])) == []


def test_the_next_item_is_made_while_the_current_one_is_in_use() -> None:
    made = [threading.Event() for _ in range(3)]

    def items() -> Iterator[int]:
        for index, event in enumerate(made):
            event.set()
            yield index

    for index in prefetch(items()):
        assert made[min(index + 1, 2)].wait(timeout=10)


def test_what_making_an_item_raises_is_raised_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("disk gone")

    found = prefetch(items())
    assert next(found) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(found)


def test_it_can_be_left_early() -> None:
    found = prefetch(iter(range(10**9)))
    assert next(found) == 0
    found.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
