"""Progress bars: drawn on a terminal, silent elsewhere."""

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def progress(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    """Go through `items` with a bar on standard error; nothing is drawn where that is no terminal."""
    console = Console(stderr=True)
    return track(items, description, total, console=console, disable=not console.is_terminal, transient=True)
