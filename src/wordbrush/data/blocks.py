"""Edits to train on, as blocks of rows that can be read in any order: nothing is read before it is needed.

A source is a folder of parquet files, of WebDataset tars, in InstructPix2Pix's original layout or of rendered
edits; or a data set of the hub, from which only what is needed is fetched. Any file may be opened anywhere,
so a run that goes on reads none of what lies before.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from wordbrush.data.original import SEEDS, SPLITS, listed_seeds
from wordbrush.data.rows import DataError, decode
from wordbrush.data.shards import known_columns
from wordbrush.errors import MissingExtraError, one_line
from wordbrush.storybook.dataset import RenderedEdits

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise MissingExtraError("data sets", "data") from error

_ROWS = 64
"""Of a block, in layouts that have no blocks of their own."""
_COLUMNS = ("input_image", "edited_image", "edit_prompt")
_TASK = "task"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_KEY: Any = re.compile(r"(?:.*/)?[^./]*", re.DOTALL)  # of a row in a tar: all up to the name's first dot


@dataclass(frozen=True)
class Edit:
    """A row: the files of two pictures (or the pictures, where they lie in no file) and the instruction.

    `task` is its name in Emu Edit's taxonomy, where the data set says it.
    """

    before: bytes | Image.Image
    after: bytes | Image.Image
    instruction: str
    task: str | None = None

    def pictures(self) -> tuple[Image.Image, Image.Image]:
        """Before and after, "RGB"."""
        before, after = (p if isinstance(p, Image.Image) else decode(p) for p in (self.before, self.after))
        return before, after


@dataclass(frozen=True)
class Block:
    """Consecutive rows that are read together.

    Attributes:
        name: Where they are, for messages.
        count: How many.
        read: Reads them; raises `DataError` where they are damaged or gone.
    """

    name: str
    count: int
    read: Callable[[], Sequence[Edit]]


def open_blocks(sources: Sequence[str], split: str = "train") -> list[Block]:
    """All blocks of some data sets, in an order that depends on their files' names alone.

    Args:
        sources: Folders, or ids of the hub ("owner/name").
        split: Which rows, where a data set has named splits; one that has a single split is taken whole.
            The original layout is cut as its own reader does: "train", "val" and "test".

    Raises:
        DataError: A source is missing, cannot be reached, has no such split, no known layout, or no rows.
    """
    blocks = [block for source in sources for block in _open(source, split) if block.count]
    if not blocks:
        raise DataError(f"no edits in {', '.join(sources)}")
    return blocks


def edit_tasks(blocks: Iterable[Block], path: Path) -> None:
    """Writes the (n,) names of all rows' tasks, "" where a row has none."""
    names = [edit.task or "" for block in blocks for edit in block.read()]
    with path.open("wb") as file:
        np.save(file, np.array(names, dtype=np.str_))


def picture_sizes(blocks: Iterable[Block], path: Path) -> None:
    """Writes the (n, 2) widths and heights of all pictures before their edit, by their headers."""
    sizes = [_size(edit.before) for block in blocks for edit in block.read()]
    with path.open("wb") as file:
        np.save(file, np.array(sizes))


def _size(picture: bytes | Image.Image) -> tuple[int, int]:
    if isinstance(picture, Image.Image):
        return picture.size
    with Image.open(io.BytesIO(picture)) as header:
        return header.size


def _open(source: str, split: str) -> list[Block]:
    files, root = _locate(source)
    try:
        if files.isfile(f"{root}/{SEEDS}"):
            return _original_blocks(Path(root), split)
        if found := _by_split(files.find(root)):
            if split not in found and len(found) > 1:
                raise DataError(f"{source} has no split {split!r}: it has {', '.join(sorted(found))}")
            paths = found.get(split) or next(iter(found.values()))
            return [block for path in paths for block in _OPENERS[path.suffix](files, str(path))]
        if rendered := _rendered_blocks(Path(root)):
            return rendered
    except (pa.ArrowException, tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise DataError(f"cannot read {source}: {one_line(error)}") from error
    raise DataError(f"{source} holds no data set: no parquet, tar or {SEEDS}, and no rendered edits")


def _locate(source: str) -> tuple[Any, str]:
    """A file system, and where in it the data set is."""
    path = Path(source).expanduser()
    if path.is_dir():
        return LocalFileSystem(), str(path.resolve())
    if not _HUB_ID.fullmatch(source):
        raise DataError(f"no data set {source!r}: neither a folder nor a hub id (owner/name)")
    from huggingface_hub import HfFileSystem

    files, root = HfFileSystem(), f"datasets/{source}"
    try:
        if not _by_split(files.find(root)):
            root += "@~parquet"  # the hub's own copy of data sets in other layouts
            files.find(root)
    except Exception as error:  # the hub's client raises a dozen unrelated kinds
        raise DataError(
            f"no data set {source!r}: no such folder, and not to be had from the hub ({one_line(error)})"
        ) from error
    return files, root


def _by_split(paths: Iterable[str]) -> dict[str, list[PurePosixPath]]:
    """Parquet files and tars: their names begin with their split, or their folder has its name."""
    found: dict[str, list[PurePosixPath]] = {}
    for path in map(PurePosixPath, sorted(paths)):
        if path.suffix in _OPENERS and not path.name.startswith("."):
            name = path.stem.split("-")[0]
            found.setdefault(path.parent.name if name.isdigit() else name, []).append(path)
    return found


def _parquet_blocks(files: Any, path: str) -> Iterator[Block]:
    """One block a row group."""
    with files.open(path, "rb") as file:
        footer: Any = pq.read_metadata(file)
    names = known_columns(Path(path), footer.schema.to_arrow_schema().names)
    columns = {names[name]: name for name in names if names[name] in (*_COLUMNS, _TASK)}
    for group in range(footer.num_row_groups):
        name, count = f"{path} row group {group}", footer.row_group(group).num_rows
        yield Block(name, count, partial(_read_group, files, path, group, columns))


def _read_group(files: Any, path: str, group: int, columns: dict[str, str]) -> list[Edit]:
    where = f"{path} row group {group}"
    try:
        with files.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
            table: Any = parquet.read_row_group(group, columns=list(columns.values()))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {where}: {one_line(error)}") from error
    wanted = [name for name in (*_COLUMNS, _TASK) if name in columns]
    values = zip(*(table.column(columns[name]).to_pylist() for name in wanted), strict=True)
    return [_edit(where, *row) for row in values]


def _edit(where: str, before: Any, after: Any, instruction: Any, task: Any = None) -> Edit:
    """A row of untrusted values."""
    before, after = (p.get("bytes") if isinstance(p, dict) else p for p in (before, after))
    if not (isinstance(before, bytes) and isinstance(after, bytes) and isinstance(instruction, str)):
        raise DataError(f"{where}: a row without two pictures inside the file and an instruction")
    return Edit(before, after, instruction, task if isinstance(task, str) else None)


Places = dict[str, tuple[int, int]]
"""Column -> where its file's content begins in the tar, and its length."""


def _tar_blocks(files: Any, path: str) -> Iterator[Block]:
    """Only headers are read. Names are compared, never opened: what is no plain file is passed over."""
    with files.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        plain = [(m.name.removeprefix("./"), (m.offset_data, m.size)) for m in archive if m.isfile()]
    groups = ((key, list(members)) for key, members in groupby(plain, lambda item: _KEY.match(item[0])[0]))
    rows = [{name[len(key) + 1 :].split(".")[0]: place for name, place in members} for key, members in groups]
    rows = [row for row in rows if "json" in row]
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        yield Block(f"{path} rows from {start}", len(part), partial(_read_members, files, path, part))


def _read_members(files: Any, path: str, rows: list[Places]) -> list[Edit]:
    def content(place: tuple[int, int] | None) -> bytes | None:
        if place is None:
            return None
        file.seek(place[0])
        return file.read(place[1])

    try:
        with files.open(path, "rb") as file:
            found: list[Edit] = []
            for row in rows:
                facts = json.loads(content(row["json"]) or b"{}")
                before, after = (content(row.get(name)) for name in ("input_image", "edited_image"))
                found.append(_edit(path, before, after, facts.get("edit_prompt"), facts.get(_TASK)))
            return found
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}") from error


_OPENERS: dict[str, Callable[[Any, str], Iterator[Block]]] = {
    ".parquet": _parquet_blocks,
    ".tar": _tar_blocks,
}


def _original_blocks(root: Path, split: str) -> list[Block]:
    if split not in SPLITS:
        raise DataError(f"{root} has no split {split!r}: it has {', '.join(SPLITS)}")
    pairs = [(folder, seed) for folder, seeds in listed_seeds(root, split) for seed in seeds]
    return [
        Block(f"{root} pairs from {start}", len(part), partial(_read_original, root, part))
        for start in range(0, len(pairs), _ROWS)
        if (part := pairs[start : start + _ROWS])
    ]


def _read_original(root: Path, pairs: list[tuple[str, str]]) -> list[Edit]:
    try:
        return [_original_edit(root / folder, seed) for folder, seed in pairs]
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"cannot read {root}: {one_line(error)}") from error


def _original_edit(folder: Path, seed: str) -> Edit:
    instruction = json.loads((folder / "prompt.json").read_text(encoding="utf-8")).get("edit")
    before, after = ((folder / f"{seed}_{side}.jpg").read_bytes() for side in (0, 1))
    return _edit(str(folder), before, after, instruction)


def _rendered_blocks(root: Path) -> list[Block]:
    edits = RenderedEdits.open(root)
    return [
        Block(
            f"{root} rows from {start}", min(_ROWS, len(edits) - start), partial(_read_rendered, edits, start)
        )
        for start in range(0, len(edits), _ROWS)
    ]


def _read_rendered(edits: RenderedEdits, start: int) -> list[Edit]:
    rows = range(start, min(start + _ROWS, len(edits)))
    pictures = [[Image.fromarray(np.array(pixels)) for pixels in edits.pair(row)] for row in rows]
    return [
        Edit(before, after, edits.rows[row]["instruction"], edits.rows[row]["task"])
        for (before, after), row in zip(pictures, rows, strict=True)
    ]
