"""Progress: a bar with rate and time left on a terminal, a line now and then elsewhere."""

import re
import sys
import time
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
_SECONDS = 5.0  # between two lines
_LINE = re.compile(r"(?P<what>[a-z][\w -]*): (?P<done>\d+) of (?P<total>[1-9]\d*)")


def progress(
    items: Iterable[T],
    description: str,
    total: int,
    *,
    step: int = 1,
    done: int = 0,
    unit: str = "images",
) -> Iterator[T]:
    """Go through `items` with a bar on standard error; where that is no terminal, a line every 5 seconds.

    Args:
        items: what to go through.
        description: stands before the bar.
        total: how many there are in all.
        step: how many an item is.
        done: how many were done before.
        unit: what is counted.
    """
    console = Console(stderr=True)
    told = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        bar = bars.add_task(description, total=total, completed=done)
        for item in items:
            yield item
            done = min(total, done + step)
            bars.update(bar, completed=done)
            if not console.is_terminal and time.monotonic() - told > _SECONDS:
                told = time.monotonic()
                sys.stderr.write(f"{description}: {done} of {total}\n")
                sys.stderr.flush()


def read_progress(line: str) -> tuple[str, float] | None:
    """What a line of `progress` says: its description, and the share that is done; None: it is another."""
    match = _LINE.fullmatch(line)
    return (match["what"], int(match["done"]) / int(match["total"])) if match else None


class _Rate(ProgressColumn):
    """Images, or what else is counted, a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.0f} {self._unit}/s")
