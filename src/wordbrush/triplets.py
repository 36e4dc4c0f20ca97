"""Triplets of (caption, edit, output caption): their files, and the text in which a language model sees them.

A triplet may name its task and the things that it is about, as Emu Edit's data do (2311.10089).

Keys and separators are those of InstructPix2Pix (2211.09800): triplets written by people have the keys input,
edit, output; generated ones caption, edit, output, url. Both are read; the second form is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from wordbrush.errors import UsageError
from wordbrush.provenance import atomic_file

PROMPT_END = "\n##\n"
EDIT_END = "\n%%\n"
STOP = "\nEND"


class Caption(BaseModel):
    """What a picture shows, in one line; where it came from ("": not known); the task wanted ("": any)."""

    model_config = ConfigDict(frozen=True)

    text: str
    url: str = ""
    task: str = ""


class Triplet(BaseModel):
    """A caption, an instruction that changes what it describes, and the caption of the changed picture.

    `task` is Emu Edit's name of the kind of edit, `original` the thing in question in the words of the
    caption, and `edited` in those of the output; "" where there is none or it is not known.
    """

    model_config = ConfigDict(frozen=True, strict=True, str_strip_whitespace=True)

    caption: str = Field(validation_alias=AliasChoices("caption", "input"))
    edit: str
    output: str
    url: str = ""
    task: str = ""
    original: str = ""
    edited: str = ""


class WrittenEdit(BaseModel):
    """What a writer answers to a caption."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    edit: str
    output: str


class GroundedEdit(WrittenEdit):
    """What a writer answers to a caption and a task."""

    original: str
    edited: str


def normalise(text: str) -> str:
    """The form in which two texts are compared: one-spaced, lower case, without a full stop at the end."""
    return " ".join(text.split()).strip(".!?").strip().lower()


def prompt(caption: str, task: str = "") -> str:
    """What a language model is given."""
    return f"{task}: {caption}{PROMPT_END}" if task else f"{caption}{PROMPT_END}"


def completion(triplet: Triplet) -> str:
    """What a language model should answer, its stop included; with a task, also what the edit is about."""
    objects = [triplet.original, triplet.edited] if triplet.task else []
    return EDIT_END.join([triplet.edit, *objects, triplet.output]) + STOP


def parse_completion(text: str) -> WrittenEdit | None:
    """What was answered; None if it does not end or has neither two parts nor four."""
    body, stop, _ = text.partition(STOP)
    parts = body.split(EDIT_END)
    if stop and len(parts) == 2:
        return WrittenEdit(edit=parts[0], output=parts[1])
    if stop and len(parts) == 4:
        return GroundedEdit(edit=parts[0], original=parts[1], edited=parts[2], output=parts[3])
    return None


def read_triplets(path: Path) -> list[Triplet]:
    """The rows of a JSONL file; keys that are not a triplet's are passed over.

    Raises:
        UsageError: the file cannot be read, or a line (it is named) is no triplet.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the triplets of {path}: {error}") from error
    return [_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(path: Path, number: int, line: str) -> Triplet:
    try:
        return Triplet.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "row"
        raise UsageError(f"{path}, line {number}: {where}: {first['msg']}") from error


def write_triplets(path: Path, triplets: Iterable[Triplet]) -> None:
    """Write rows of caption, edit, output, url, and the rest where there is a task; all or nothing.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_file(path, overwrite=True) as file:
        for triplet in triplets:
            unknown = None if triplet.task else {"task", "original", "edited"}
            file.write(triplet.model_dump_json(exclude=unknown).encode() + b"\n")
