"""Running an edit while somebody watches: its progress now and then, a look at the picture, a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Event, Thread
from typing import TypeVar

from PIL import Image

from wordbrush.types import StepInfo

T = TypeVar("T")

_INTERVAL = 0.3
"""Seconds between two reports."""
_PREVIEW_SHARE = 0.15
"""Most of the time that may go into decoding pictures that are only looked at."""


class Cancelled(Exception):
    """What ran was stopped by its visitor."""


@dataclass(frozen=True)
class Progress:
    """How far it is."""

    done: int
    total: int
    preview: Image.Image | None = None
    """The picture as it emerges; None: as before."""


Report = Callable[[Progress], None]
"""Says how far it is; raises `Cancelled` if it is to stop."""


def watch(work: Callable[[Report], T], stop: Event) -> Generator[Progress, None, T]:
    """Run `work` in a thread of its own; yields its progress, returns what it returns, raises what it raises.

    Args:
        work: Gets a function to say how far it is.
        stop: Once set, the next report of `work` raises `Cancelled`.
    """
    reports: Queue[Progress] = Queue()
    results: list[T] = []
    errors: list[BaseException] = []

    def report(progress: Progress) -> None:
        if stop.is_set():
            raise Cancelled
        reports.put(progress)

    def run() -> None:
        try:
            results.append(work(report))
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            if (latest := _latest(reports)) is not None:
                yield latest
    finally:
        if thread.is_alive():  # whoever watched has gone
            stop.set()
        thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _latest(reports: Queue[Progress]) -> Progress | None:
    """The last report of an interval, with the last picture among them."""
    time.sleep(0.02)
    latest, preview = None, None
    while True:
        try:
            latest = reports.get_nowait()
        except Empty:
            break
        preview = latest.preview or preview
    return latest and Progress(latest.done, latest.total, preview)


class Steps:
    """An editor's `on_step` that reports, at most every so often, with a preview as often as it can afford.

    Args:
        report: Of `watch`.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._next_report = self._next_preview = 0.0

    def __call__(self, info: StepInfo) -> None:
        """After a step."""
        now = time.monotonic()
        preview = None
        last = info.step + 1 == info.num_steps
        if now >= self._next_preview and not last:
            preview = info.preview()[0]
            spent = time.monotonic() - now
            self._next_preview = now + max(_INTERVAL, spent / _PREVIEW_SHARE)
        self._report(Progress(info.step + 1, info.num_steps, preview))
