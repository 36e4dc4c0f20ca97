"""The files of the field's benchmarks, read as edits to make."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from wordbrush.data.rows import DataError, decode
from wordbrush.data.shards import find_shards
from wordbrush.errors import one_line

_FILE = re.compile(r"[\w-]+(\.[\w-]+)*")  # nothing that leads elsewhere
Open = Callable[[], Image.Image]


@dataclass(frozen=True)
class BenchmarkEdit:
    """One edit that a benchmark asks for.

    Attributes:
        key: Of the result: its path below the folder of pictures, without the ending.
        groups: The rows of the results table that it counts in; may be none, where it only leads to others.
        instruction: "" where the benchmark has none.
        target_caption: Of the picture as it should be; "" where there is none.
        source_caption: Of the picture before; "" where there is none.
        before: Opens the picture before; None where it is the result of another edit.
        follows: The key of that edit.
        target: Opens the true result, where there is one.
        problem: Why the row is known to be bad; "" for a good one.
    """

    key: str
    groups: tuple[str, ...]
    instruction: str
    target_caption: str
    source_caption: str = ""
    before: Open | None = None
    follows: str | None = None
    target: Open | None = None
    problem: str = ""


def load_magicbrush(folder: Path, split: str) -> list[BenchmarkEdit]:
    """MagicBrush: the folder of its test (or dev) archive, or the hub's parquet.

    The keys are the file names that MagicBrush's own image_eval.py looks for. Every turn is made from the
    true picture before it ("single-turn"); and every session in one go, each turn from the result before it,
    of which the last counts ("multi-turn").
    """
    inner = next(
        (place for place in (folder, folder / split) if (place / "edit_sessions.json").is_file()), None
    )
    turns = _archive_turns(inner) if inner else _hub_turns(folder, split)
    return [edit for session, listed in turns.items() for edit in _session(session, listed)]


_Turn = tuple[Open, str, Open, str]
"""Picture before, instruction, true result, local caption."""


def _session(name: str, turns: Sequence[_Turn]) -> list[BenchmarkEdit]:
    found: list[BenchmarkEdit] = []
    previous = f"{name}/{name}_1"
    for number, (before, instruction, target, caption) in enumerate(turns, 1):
        last = ("multi-turn",) if number == len(turns) else ()
        wanted = partial(BenchmarkEdit, instruction=instruction, target_caption=caption, target=target)
        key = previous if number == 1 else f"{name}/{name}_inde_{number}"
        single = ("single-turn", *(last if number == 1 else ()))
        found.append(wanted(key, single, before=before))
        if number > 1:
            key = f"{name}/{name}_iter_{number}"
            found.append(wanted(key, last, follows=previous))
            previous = key
    return found


def _archive_turns(folder: Path) -> dict[str, list[_Turn]]:
    sessions = _json(folder / "edit_sessions.json")
    captions = _json(folder / "local_descriptions.json")
    return {
        name: [_archive_turn(folder, name, turn, captions.get(name, {})) for turn in turns]
        for name, turns in sessions.items()
    }


def _archive_turn(folder: Path, session: str, turn: Any, captions: Any) -> _Turn:
    where = f"{folder / 'edit_sessions.json'} session {session}"
    try:
        names = [str(turn[key]) for key in ("input", "output")]
        instruction, caption = str(turn["instruction"]), str(captions.get(names[1], ""))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: a turn has no input, output and instruction") from error
    if not all(_FILE.fullmatch(name) for name in (session, *names)):
        raise DataError(f"{where}: not the names of files beside it")
    before, target = (partial(_open_file, folder / "images" / session / name) for name in names)
    return before, instruction, target, caption


def _hub_turns(folder: Path, split: str) -> dict[str, list[_Turn]]:
    rows = read_parquet(folder, split, ("img_id", "turn_index", "instruction"), ("source_img", "target_img"))
    found: dict[str, list[tuple[int, _Turn]]] = {}
    for row in rows:
        turn = row["source_img"], str(row["instruction"]), row["target_img"], ""
        found.setdefault(str(row["img_id"]), []).append((int(row["turn_index"]), turn))
    if bad := next((name for name in found if not _FILE.fullmatch(name)), None):
        raise DataError(f"{folder}: img_id {bad!r} is not a name")
    ordered = {name: sorted(turns, key=lambda pair: pair[0]) for name, turns in found.items()}
    return {name: [turn for _, turn in turns] for name, turns in ordered.items()}


def load_emu_edit(folder: Path, split: str) -> list[BenchmarkEdit]:
    """Emu Edit's test set, as the hub has it; its tasks are the groups."""
    texts = ("instruction", "task", "input_caption", "output_caption")
    rows = read_parquet(folder, split, texts, ("image",))
    return [_emu_edit(f"{split}-{number:05d}", row) for number, row in enumerate(rows)]


def _emu_edit(key: str, row: Mapping[str, Any]) -> BenchmarkEdit:
    instruction, task, before, after = (
        str(row[name] or "") for name in ("instruction", "task", "input_caption", "output_caption")
    )
    problem = "no caption" if not before or not after else "equal captions" if before == after else ""
    groups = ("all", task)
    return BenchmarkEdit(key, groups, instruction, after, before, before=row["image"], problem=problem)


def load_tedbench(folder: Path, split: str) -> list[BenchmarkEdit]:
    """TEdBench: the hub's parquet, or `input_list.json` beside `originals/`."""
    listed = folder / "input_list.json"
    if listed.is_file():
        pairs = [_listed_pair(listed, entry) for entry in _json(listed, list)]
    else:
        pairs = _parquet_pairs(folder, split)
    return [
        BenchmarkEdit(f"{number:03d}", ("all",), "", caption, before=before)
        for number, (before, caption) in enumerate(pairs)
    ]


def _listed_pair(path: Path, entry: Any) -> tuple[Open, str]:
    try:
        name, caption = str(entry["img_name"]), str(entry["target_text"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: an entry has no img_name and target_text") from error
    if not _FILE.fullmatch(name):
        raise DataError(f"{path}: {name!r} is not the name of a file")
    return partial(_open_file, path.parent / "originals" / name), caption


_TEDBENCH_PICTURES = ("original_image", "input_image", "image")
_TEDBENCH_CAPTIONS = ("target_text", "target_caption", "caption", "text", "prompt")


def _parquet_pairs(folder: Path, split: str) -> list[tuple[Open, str]]:
    columns = _columns(folder, split)
    picture, caption = (
        next((name for name in names if name in columns), names[0])
        for names in (_TEDBENCH_PICTURES, _TEDBENCH_CAPTIONS)
    )
    return [(row[picture], str(row[caption])) for row in read_parquet(folder, split, (caption,), (picture,))]


def read_parquet(
    folder: Path, split: str, texts: Sequence[str], pictures: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows of a split: values of the columns `texts`, and for `pictures` functions that open them.

    Pictures stay in the file until they are opened.

    Raises:
        DataError: No such split, a damaged file, or a column that is missing.
    """
    rows: list[dict[str, Any]] = []
    for path in _shards(folder, split):
        try:
            with pq.ParquetFile(path) as file:
                if missing := [n for n in (*texts, *pictures) if n not in file.schema_arrow.names]:
                    raise DataError(
                        f"{path} has no column {missing[0]}: {', '.join(file.schema_arrow.names)}"
                    )
                for group in range(file.num_row_groups):
                    for index, row in enumerate(file.read_row_group(group, list(texts)).to_pylist()):
                        openers = {n: partial(_open_cell, path, group, n, index) for n in pictures}
                        rows.append(row | openers)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: damaged or not parquet ({one_line(error)})") from error
    return rows


def _shards(folder: Path, split: str) -> list[Path]:
    found = find_shards(folder)
    if split not in found:
        there = f"the splits {', '.join(found)}" if found else "no parquet"
        raise DataError(f"{folder} has no split {split!r}: there is {there}")
    return found[split]


def _columns(folder: Path, split: str) -> list[str]:
    path = _shards(folder, split)[0]
    try:
        return pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged or not parquet ({one_line(error)})") from error


def _open_cell(path: Path, group: int, column: str, index: int) -> Image.Image:
    value = _cells(path, group, column)[index].as_py()
    encoded = value.get("bytes") if isinstance(value, dict) else None
    if not isinstance(encoded, bytes):
        raise DataError(f"{path}: the picture {column} is not inside the file")
    return decode(encoded)


@lru_cache(maxsize=4)
def _cells(path: Path, group: int, column: str) -> Any:
    """One column of one row group: neighbours are opened one after the other."""
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, [column]).column(0)


def _open_file(path: Path) -> Image.Image:
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _json(path: Path, kind: type[Any] = dict) -> Any:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: missing or not JSON ({one_line(error)})") from error
    if not isinstance(found, kind):
        raise DataError(f"{path}: not a JSON {'object' if kind is dict else 'list'}")
    return found
