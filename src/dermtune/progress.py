"""Progress bars with rate and time left: drawn on a terminal, silent elsewhere."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")


def progress(
    items: Iterable[T], description: str, total: int, *, step: int = 1, done: int = 0
) -> Iterator[T]:
    """Go through `items` with a bar on standard error; nothing is drawn where that is no terminal.

    Args:
        items: what to go through.
        description: stands before the bar.
        total: how many images there are in all.
        step: how many images an item is.
        done: how many were done before.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        bar = bars.add_task(description, total=total, completed=done)
        for item in items:
            yield item
            done = min(total, done + step)
            bars.update(bar, completed=done)


class _Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.0f} images/s")
