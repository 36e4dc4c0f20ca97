"""Instructions with the names of their tasks: files of them, their split, and those of the storybook."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from wordbrush.errors import UsageError, one_line
from wordbrush.storybook.edits import draw_edit
from wordbrush.storybook.scenes import Split, scene_rng
from wordbrush.storybook.vision import draw_vision_edit
from wordbrush.tasks import TASKS
from wordbrush.triplets import normalise

_HELD_OUT = 10  # one labelled instruction in so many is kept for the test
_VISION = 0.45  # share of the storybook's instructions


class Labelled(BaseModel):
    """An instruction and the name of its task."""

    instruction: str = Field(min_length=1)
    task: str


def read_labelled(path: Path) -> list[Labelled]:
    """The rows of a JSONL file.

    Raises:
        UsageError: the file cannot be read, or a line (it is named) has no instruction or an unknown task.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the instructions of {path}: {one_line(error)}") from error
    return [_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(path: Path, number: int, line: str) -> Labelled:
    try:
        row = Labelled.model_validate_json(line)
    except ValidationError as error:
        raise UsageError(f"{path}, line {number}: {error.errors()[0]['msg']}") from error
    if row.task not in TASKS:
        raise UsageError(f"{path}, line {number}: {row.task!r} is no task; one of {', '.join(TASKS)}")
    return row


def of_split(rows: Iterable[Labelled], split: Split) -> list[Labelled]:
    """The rows of a split, told by a hash of the instruction: the same wherever the row stands."""
    return [row for row in rows if _is_test(row.instruction) == (split == "test")]


def _is_test(instruction: str) -> bool:
    return hashlib.sha256(normalise(instruction).encode()).digest()[0] % _HELD_OUT == 0


def storybook_instruction(index: int, split: Split = "train") -> Labelled:
    """Instruction number `index` of a split, in a phrasing of that split."""
    rng = scene_rng(split, index)
    edit = draw_vision_edit(rng, split) if rng.random() < _VISION else draw_edit(rng, split)
    return Labelled(instruction=edit.instruction, task=edit.task)
