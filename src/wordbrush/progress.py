"""A bar for long commands, on standard error and only where that is a terminal; it hears Ctrl-C, too."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from wordbrush.interrupts import hear_interrupt

if TYPE_CHECKING:
    from wordbrush.types import OnStep

Show = Callable[[str, int, int], None]
"""What is done, and how much of how much."""


def on_step(show: Show) -> "OnStep":
    """Shows how far an edit is."""
    return lambda info: show("Editing", info.step + 1, info.num_steps)


def silent(text: str, done: int, total: int) -> None:
    """Shows nothing."""


@contextmanager
def progress() -> Generator[Callable[..., None]]:
    """Yields show(text, done, total), which draws a bar on standard error if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda *_: hear_interrupt()
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        def show(text: str, done: int | None = None, total: int | None = None) -> None:
            hear_interrupt()
            bars.update(task, description=text, completed=done, total=total)

        yield show
