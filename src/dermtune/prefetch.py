"""Make the next thing while the current one is being used."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """Go through `items`, each made in a thread of its own while the one before it is in use.

    Reading, converting and running arrays leave Python's lock free, so the two really overlap. What making
    an item raises is raised where the item is asked for.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
        coming = pool.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield item  # type: ignore[misc]  # `end` is told apart above
