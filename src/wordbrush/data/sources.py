"""A data set of edits in any layout that is known here, as parts to be read one row at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from wordbrush.data.original import SEEDS, read_original, write_original
from wordbrush.data.rows import DataError, Row, encode_png
from wordbrush.data.shards import find_shards, read_shard, write_card, write_shards
from wordbrush.data.webdataset import read_tar, write_tars
from wordbrush.errors import UsageError, one_line
from wordbrush.outputs import check_folder
from wordbrush.storybook.dataset import RenderedEdits


@dataclass(frozen=True)
class Part:
    """One file of a data set, or a whole one that is not made of such files.

    Attributes:
        path: Of the file or folder.
        split: The split that its rows are of; "train" where the layout knows none.
        read: Reads the rows anew, in order; raises `DataError` where it is damaged.
    """

    path: Path
    split: str
    read: Callable[[], Iterator[Row]]


def open_parts(source: Path) -> list[Part]:
    """The parts of a data set, sorted by split.

    Args:
        source: A folder of parquet files, of tars, of rendered edits or in the original layout; or a single
            parquet file or tar.

    Raises:
        DataError: There is no data set of a known layout.
    """
    found = _parts(source)
    if not found:
        raise DataError(
            f"{source} holds no data set of pairs: no parquet, tar or {SEEDS}, and no rendered edits; a set "
            "for evaluation only is read by `wordbrush evaluate benchmark`"
        )
    return sorted(found, key=lambda part: (part.split, part.path))


def read_rows(parts: Iterable[Part]) -> Iterator[Row]:
    """All rows of the parts."""
    for part in parts:
        yield from part.read()


def convert(
    source: Path,
    folder: Path,
    layout: str,
    *,
    split: str | None = None,
    choose: Callable[[Iterable[Row]], Iterable[Row]] = iter,
    on_row: Callable[[], None] = lambda: None,
) -> int:
    """Write a data set in another layout; the folder appears once it is whole.

    Args:
        source: Of any layout that `open_parts` knows.
        folder: Must not exist.
        layout: One of `LAYOUTS`.
        split: Only the rows of this split; all if not given.
        choose: Given the rows of a split in order, those that are written; all if not given.
        on_row: Called after each row that is written.

    Returns:
        How many rows there were.

    Raises:
        UsageError: The folder exists, or there is no such layout or split.
        DataError: The source is damaged, or the layout cannot hold it.
        OutputError: The folder cannot be written.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"no layout {layout!r}: one of {', '.join(LAYOUTS)}")
    if folder.exists():
        raise UsageError(f"{folder} exists: choose another folder")
    check_folder(folder.parent)
    parts = [part for part in open_parts(source) if split in (None, part.split)]
    if not parts:
        raise UsageError(f"{source} has no split {split!r}")
    count = 0

    def rows(parts: Iterable[Part]) -> Iterator[Row]:
        nonlocal count
        for row in choose(read_rows(parts)):
            yield row
            count += 1
            on_row()

    splits = {split: rows(list(group)) for split, group in groupby(parts, lambda part: part.split)}
    work = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        LAYOUTS[layout](work, splits, folder.name)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return count


def _parts(source: Path) -> list[Part]:
    if source.is_file():
        return [_file_part(source)] if source.suffix in _READERS else []
    if (source / SEEDS).is_file():
        return [Part(source, "train", partial(read_original, source))]
    shards = [
        Part(path, split, partial(read_shard, path))
        for split, paths in find_shards(source).items()
        for path in paths
    ]
    tars = [_file_part(path) for path in sorted(source.rglob("*.tar"))]
    if not shards and not tars and any(source.glob("*.npy")):
        return [Part(source, "train", partial(_read_rendered, source))]
    return shards + tars


def _file_part(path: Path) -> Part:
    return Part(path, path.stem.split("-")[0], partial(_READERS[path.suffix], path))


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {".parquet": read_shard, ".tar": read_tar}


def _read_rendered(folder: Path) -> Iterator[Row]:
    """Edits of the storybook that `wordbrush data storybook` rendered."""
    try:
        edits = RenderedEdits.open(folder)
        for number, row in enumerate(edits.rows):
            before, after = (encode_png(Image.fromarray(pixels)) for pixels in edits.pair(number))
            yield Row(
                input_image=before,
                edit_prompt=row["instruction"],
                edited_image=after,
                source_caption=row["source_caption"],
                target_caption=row["target_caption"],
                task=row["task"],
                unit=f"{number:07d}",
            )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{folder}: damaged rendered edits ({one_line(error)})") from error


def _write_parquet(folder: Path, splits: dict[str, Iterator[Row]], title: str) -> None:
    for split, rows in splits.items():
        write_shards(folder, split, rows)
    write_card(folder, splits, title)


def _write_tars(folder: Path, splits: dict[str, Iterator[Row]], title: str) -> None:
    for split, rows in splits.items():
        write_tars(folder, split, rows)


def _write_original(folder: Path, splits: dict[str, Iterator[Row]], title: str) -> None:
    if len(splits) > 1:
        raise UsageError(f"the original layout holds one split: choose one of {', '.join(splits)} by --split")
    for rows in splits.values():
        write_original(folder, rows)


LAYOUTS: dict[str, Callable[[Path, dict[str, Iterator[Row]], str], Any]] = {
    "parquet": _write_parquet,
    "webdataset": _write_tars,
    "original": _write_original,
}
"""What a data set can be converted to."""
