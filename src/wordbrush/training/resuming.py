"""A run goes on by itself where it stopped; this keeps it from going on as another run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from filelock import FileLock

from wordbrush.errors import UsageError
from wordbrush.provenance import atomic_file
from wordbrush.training.config import LoopConfig
from wordbrush.training.loop import has_state, processes

RECORD = "run.json"
PROCESSES = "processes"


def check_run(config: LoopConfig, *, resume: bool | None, free: Collection[str]) -> None:
    """Records what a run in a new output folder is; compares one that goes on with its record.

    Args:
        config: The run's settings.
        resume: True: there must be a state to go on from. False: there must be none. None: either.
        free: Settings that may change when a run goes on.

    Raises:
        UsageError: There is a state, or none, against what was asked; or the run was another one.
    """
    path, found = config.output / RECORD, has_state(config.output)
    if resume is True and not found:
        raise UsageError(f"nothing to resume: {config.output} holds no state")
    if resume is False and found:
        raise UsageError(f"{config.output} holds the state of a run: choose another --output, or delete it")
    now: dict[str, Any] = config.model_dump(mode="json", exclude=set(free))
    now[PROCESSES] = processes().num_processes
    if found and path.exists():
        _compare(json.loads(path.read_text()), now, config.output)
    elif processes().is_main_process:
        config.output.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, overwrite=True) as file:
            file.write((json.dumps(now, indent=2) + "\n").encode())


def _compare(before: dict[str, Any], now: dict[str, Any], output: Path) -> None:
    for name in now:
        if name in before and before[name] != now[name]:
            what = name if name == PROCESSES else f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{output} holds a run with {what} {before[name]}, not {now[name]}: "
                "go on with the same settings, or choose another --output"
            )


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """A file or folder that the first process makes, if it is not there; the others wait for it.

    Other runs that need it at the same time wait, too.

    Args:
        path: Appears only once it is whole.
        make: Writes it under another name, where a killed run may have left a part of it.
    """
    if not processes().is_main_process:
        while not path.exists():
            time.sleep(0.5)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / ".lock"):
        if not path.exists():
            partial = path.with_name(f".{path.name}")
            make(partial)
            partial.replace(path)
    return path
