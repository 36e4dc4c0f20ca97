"""What a person sees of a run: bars on a terminal, else a line a minute, both on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wordbrush.datagen.filters import Funnel

Advance = Callable[[str], None]
"""Tells that one more is done, with a remark to show beside the bar."""


def funnel_text(funnel: Funnel) -> str:
    """Where pairs went, in one line."""
    fallen = "".join(f" - {count:,} {name.removeprefix('clip_')}" for name, count in funnel.failed.items())
    return f"{funnel.drawn:,} drawn{fallen} - {funnel.surplus:,} surplus = {funnel.kept:,} kept"


class Display:
    """Shows one stage after the other.

    Args:
        console: Where; standard error if not given.
        every: Seconds between two lines, where there is no terminal.
    """

    def __init__(self, console: Console | None = None, every: float = 60.0) -> None:
        self.console, self.every = console or Console(stderr=True), every

    @contextmanager
    def stage(self, name: str, total: int, done: int, unit: str) -> Generator[Advance]:
        """Show a stage of `total` units, of which `done` were there before."""
        bars = self._bars(unit)
        task = bars.add_task(name, total=total, completed=done, rate="", note="")
        begin = shown = time.monotonic()
        finished = 0

        def advance(note: str) -> None:
            nonlocal finished, shown
            finished += 1
            now = time.monotonic()
            rate = finished / max(now - begin, 1e-6)
            bars.update(task, advance=1, note=note, rate=f"{60 * rate:,.1f} a minute")
            if not self.console.is_terminal and now - shown >= self.every:
                shown = now
                left = timedelta(seconds=round((total - done - finished) / rate))
                line = (
                    f"{name}: {done + finished:,} of {total:,} {unit}, {60 * rate:,.1f} a minute, {left} left"
                )
                self.console.print(f"{line}; {note}" if note else line, highlight=False, soft_wrap=True)

        with bars:
            yield advance

    def _bars(self, unit: str) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn(f"{unit}, {{task.fields[rate]}}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
