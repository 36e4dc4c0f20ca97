"""Ctrl-C that is heard only where the work can be kept, and that is never taken for an error."""

import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

_noted: list[int] = []
"""The signals that came since `noted_interrupts` began."""


def _handler() -> Callable[[int, FrameType | None], object] | None:
    """What Ctrl-C does now; None where it does nothing, or in a thread, which hears none."""
    if threading.current_thread() is not threading.main_thread():
        return None
    found = signal.getsignal(signal.SIGINT)
    return found if callable(found) else None


@contextmanager
def held_interrupts() -> Generator[None]:
    """A Ctrl-C within takes effect at the end of the block, unless that fails.

    Python hands signals to its main thread: in others the block is an ordinary one.
    """
    before = _handler()
    if before is None:
        yield
        return
    came: list[tuple[int, FrameType | None]] = []

    def hold(number: int, frame: FrameType | None) -> None:
        came.append((number, frame))

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        before(*came[0])


@contextmanager
def noted_interrupts() -> Generator[Callable[[], bool]]:
    """Yields what tells whether Ctrl-C came within the block; its effect is what it was.

    Libraries may turn it into errors of their own (of a file that is being loaded, "unable to load"), or
    pass over it: see `hear_interrupt`.
    """
    before = _handler()
    if before is None:
        yield lambda: False
        return
    _noted.clear()

    def note(number: int, frame: FrameType | None) -> None:
        _noted.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    tell, sys.unraisablehook = sys.unraisablehook, _tell_all_but_interrupts
    try:
        yield lambda: bool(_noted)
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = tell
        _noted.clear()


def _tell_all_but_interrupts(passed_over: "sys.UnraisableHookArgs") -> None:
    """What Python passes over, in a destructor say, it writes to standard error; Ctrl-C is heard later."""
    if not issubclass(passed_over.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(passed_over)


def hear_interrupt() -> None:
    """Raise the Ctrl-C that was noted and that a library passed over."""
    if _noted and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
