"""What a long evaluation has done so far, one JSON object a line, so that it goes on where it was killed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wordbrush.errors import OutputError, UsageError
from wordbrush.outputs import make_folder
from wordbrush.provenance import atomic_file

ABOUT, ROWS = "about.json", "rows.jsonl"


class Journal:
    """The finished rows of one evaluation, in a folder of its own.

    Args:
        folder: Made if missing.
        about: JSON values: all that decides the rows. A folder with rows of anything else is refused.

    Raises:
        UsageError: The folder holds another evaluation.
        OutputError: It cannot be written.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        make_folder(folder)
        self._claim(json.loads(json.dumps(about)))
        self.rows = self._read()

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add finished rows; they are on the disk when this returns."""
        added = [dict(row) for row in rows]
        path = self.folder / ROWS
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in added))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
        self.rows += added

    def _claim(self, about: dict[str, Any]) -> None:
        path = self.folder / ABOUT
        if path.exists():
            differing = _differences(_load(path), about)
            if differing:
                raise UsageError(
                    f"{self.folder} holds results of other {', '.join(differing)}: choose another folder"
                )
            return
        if (self.folder / ROWS).exists():
            raise UsageError(f"{self.folder} has {ROWS} but no {ABOUT}: choose another folder")
        with atomic_file(path) as file:
            file.write(json.dumps(about, indent=1).encode())

    def _read(self) -> list[dict[str, Any]]:
        """The rows, without the half line that a kill can leave at the end."""
        path = self.folder / ROWS
        if not path.exists():
            return []
        *lines, rest = path.read_bytes().split(b"\n")
        try:
            rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        except ValueError as error:
            raise UsageError(f"{path} is damaged: choose another folder") from error
        if rest:
            with atomic_file(path, overwrite=True) as file:
                file.write(b"".join(line + b"\n" for line in lines))
        return rows


def _load(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is damaged: choose another folder") from error
    return found if isinstance(found, dict) else {}


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]
