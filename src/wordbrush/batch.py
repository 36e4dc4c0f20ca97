"""Many edits, one JSON object a line, that go on where they were when the run is killed.

A job file holds one `Job` a line, for example

    {"image": "dog.png", "instruction": "make it night", "seed": 3}

Row n (counted from 0, blank lines left out) is written to `000000.png` and, for more variations,
`000000-2.png`; then one line about it is appended to `results.jsonl`. A row is finished once that line is on
the disk, so a killed run repeats at most the row that it was busy with. Failed rows are tried again by the
next run.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from wordbrush.editors.asked import Asked
from wordbrush.errors import OutputError, UsageError, WordbrushError
from wordbrush.images import open_image
from wordbrush.outputs import make_folder, save_result, variation_paths
from wordbrush.provenance import atomic_file, remove_leftovers
from wordbrush.types import Editor, OnStep, StepInfo

RESULTS = "results.jsonl"


class Job(Asked):
    """One row: the fields of an `EditRequest`, with the pictures as paths relative to the job file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str
    mask: str | None = None
    num_variations: int = 1


@dataclass(frozen=True)
class BatchReport:
    """How many rows this run finished, failed, and found finished already."""

    done: int
    failed: int
    skipped: int


class Batch:
    """A job file bound to a folder of results.

    Args:
        jobs: the job file.
        out: the folder of results; made if missing.
        made_with: what besides a row decides its picture (model, method, settings), as JSON values.

    Raises:
        UsageError: a job file that cannot be read, or a folder that holds something else.
        OutputError: a folder that cannot be written.
    """

    def __init__(self, jobs: Path, out: Path, *, made_with: Mapping[str, Any]):
        self._base = jobs.parent
        self._out = out
        self._lines = _read_lines(jobs)
        common = json.dumps(made_with, sort_keys=True)
        self._digests = [sha256(f"{common}\n{line}".encode()).hexdigest() for line in self._lines]
        make_folder(out)
        self._finished = self._resume()

    @property
    def num_rows(self) -> int:
        """All rows of the job file."""
        return len(self._lines)

    @property
    def pending(self) -> list[int]:
        """The rows still to do."""
        return [row for row in range(len(self._lines)) if row not in self._finished]

    def run(
        self,
        load: Callable[[], Editor],
        *,
        on_row: Callable[[dict[str, Any]], None] | None = None,
        on_step: Callable[[int, StepInfo], None] | None = None,
    ) -> BatchReport:
        """Edit the pending rows in order.

        Args:
            load: gives the editor; called only if something is left to do.
            on_row: called with each line of `results.jsonl` once it is written.
            on_step: called with the row after each of its steps.

        Raises:
            OutputError: the folder can no longer be written; rows that failed for their own reasons are
                only reported.
        """
        rows, failed = self.pending, 0
        if not rows:
            return BatchReport(done=0, failed=0, skipped=len(self._finished))
        editor = load()
        for row in rows:
            entry = self._run_row(editor, row, None if on_step is None else partial(on_step, row))
            failed += entry["status"] == "failed"
            self._append(entry)
            if on_row is not None:
                on_row(entry)
        return BatchReport(done=len(rows) - failed, failed=failed, skipped=len(self._finished))

    def _run_row(self, editor: Editor, row: int, on_step: OnStep | None) -> dict[str, Any]:
        head = {"row": row, "job": self._digests[row]}
        try:
            return {**head, "status": "done", **self._edit(editor, row, on_step)}
        except OutputError:
            raise
        except Exception as error:  # whatever one row does, the others get their turn
            return {**head, "status": "failed", "error": _one_line(error)}

    def _edit(self, editor: Editor, row: int, on_step: OnStep | None) -> dict[str, Any]:
        job = _parse(self._lines[row])
        picture = open_image(self._base / job.image)
        mask = None if job.mask is None else open_image(self._base / job.mask)
        request = job.request(picture.image, mask and mask.image, job.num_variations)
        result = editor.edit(request, on_step=on_step)
        paths = variation_paths(self._out / f"{row:06d}.png", len(result.images))
        save_result(result, paths, source=picture, mask=mask, overwrite=True)
        return {
            "inputs": {job.image: picture.sha256} | ({} if mask is None else {job.mask: mask.sha256}),
            "outputs": [path.name for path in paths],
            "seeds": result.seeds,
            "settings": result.settings,
            "warnings": [*picture.notes, *result.warnings],
        }

    def _resume(self) -> set[int]:
        """Keep only the finished rows in `results.jsonl`; return them."""
        path = self._out / RESULTS
        if not path.exists():
            if foreign := sorted(self._out.glob("[0-9]" * 6 + "*.png")):
                raise UsageError(f"{foreign[0]} exists but no {RESULTS}: choose another folder")
            entries: list[dict[str, Any]] = []
        else:
            entries = _read_entries(path)
        for entry in entries:
            if entry["row"] >= len(self._lines) or entry["job"] != self._digests[entry["row"]]:
                raise UsageError(
                    f"{self._out} holds results of other jobs, or of another model or other settings "
                    f"(row {entry['row']}): choose another folder"
                )
        remove_leftovers(self._out)
        finished = [entry for entry in entries if self._stands(entry)]
        with atomic_file(path, overwrite=True) as file:
            file.write("".join(json.dumps(entry) + "\n" for entry in finished).encode())
        return {entry["row"] for entry in finished}

    def _stands(self, entry: dict[str, Any]) -> bool:
        """Whether the results are there, and no input has changed since."""
        return all((self._out / name).exists() for name in entry["outputs"]) and all(
            _hash(self._base / name) in (known, None) for name, known in entry["inputs"].items()
        )

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            with (self._out / RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self._out / RESULTS}: {error.strerror}") from error


def _hash(path: Path) -> str | None:
    """Of a file's bytes; None if it cannot be read (any more)."""
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _read_lines(jobs: Path) -> list[str]:
    try:
        text = jobs.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {jobs}: {_one_line(error)}") from error
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise UsageError(f"{jobs} has no rows")
    return lines


def _parse(line: str) -> Job:
    try:
        return Job.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "row"
        raise UsageError(f"{where}: {first['msg']}; the fields are {', '.join(Job.model_fields)}") from error


def _read_entries(path: Path) -> list[dict[str, Any]]:
    """The finished rows, without the half line that a kill can leave at the end."""
    try:
        entries = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        return [entry for entry in entries if entry["status"] == "done"]
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path} is not the record of a batch: choose another folder") from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, WordbrushError | OSError) else f"{type(error).__name__}: {text}"
