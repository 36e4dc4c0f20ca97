"""Which units of a run are done: a file for each, in its place whole or not at all.

    UNITS/0012/0012345.rows    the rows that were kept (parquet), if there are any
    UNITS/0012/0012345.jsonl   where all its pairs went, and in a second line what was drawn for each; written
                               last, so that it says: this unit is done

Files rather than a database, because a rename is all that it takes: any number of workers, on any number of
machines that share a folder, commit without asking each other, and one that is killed leaves nothing that
counts. A unit that is done twice (its worker was killed before it could say so) gets the same bytes again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from wordbrush.data.rows import DataError, Row
from wordbrush.data.shards import read_shard, write_shard
from wordbrush.datagen.draws import Columns
from wordbrush.datagen.filters import Funnel
from wordbrush.outputs import make_folder
from wordbrush.provenance import atomic_file

T = TypeVar("T")


class Ledger:
    """The units of one run.

    Args:
        folder: Of its files; need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store(self, unit: str, rows: Sequence[Row], funnel: Funnel, draws: Columns) -> None:
        """Commit a unit.

        Args:
            unit: Its name.
            rows: That were kept.
            funnel: Where all pairs went.
            draws: The columns of `draws.SCHEMA` but the unit, of all pairs.

        Raises:
            OutputError: It cannot be written; the unit is not done then.
        """
        path = self._path(unit)
        make_folder(path.parent)
        if rows:
            write_shard(path.with_suffix(".rows"), rows)
        with atomic_file(path, overwrite=True) as file:
            file.write(f"{funnel.to_json()}\n{json.dumps(draws)}\n".encode())

    def funnel(self, unit: str) -> Funnel | None:
        """Where a unit's pairs went; None unless it is done.

        Raises:
            DataError: Its file is damaged.
        """
        path = self._path(unit)
        return _read(path) if path.exists() else None

    def draws(self, units: Iterable[str]) -> Iterator[tuple[str, Columns]]:
        """What was drawn for units that are done, in the given order.

        Raises:
            DataError: A file is damaged.
        """
        for unit in units:
            yield unit, _parse(self._path(unit), lambda text: json.loads(text.split(b"\n")[1]))

    def done(self) -> dict[str, Funnel]:
        """All units that are done.

        Raises:
            DataError: A file is damaged.
        """
        found = ((path.stem, _read(path)) for path in sorted(self.folder.glob("*/*.jsonl")))
        return {unit: funnel for unit, funnel in found if funnel}

    def rows(self, units: Iterable[str]) -> Iterator[Row]:
        """The rows of units that are done, in the given order.

        Raises:
            DataError: A file is damaged.
        """
        for unit in units:
            path = self._path(unit).with_suffix(".rows")
            try:
                yield from read_shard(path) if path.exists() else ()
            except DataError as error:
                raise _damaged(path) from error

    def _path(self, unit: str) -> Path:
        return self.folder / unit[:-3] / f"{unit}.jsonl"


def _read(path: Path) -> Funnel | None:
    """None where its rows are not there: somebody deleted them, and the unit is to be done again."""
    funnel = _parse(path, lambda text: Funnel.from_json(text.split(b"\n")[0]))
    return None if funnel.kept and not path.with_suffix(".rows").exists() else funnel


def _parse(path: Path, read: Callable[[bytes], T]) -> T:
    try:
        return read(path.read_bytes())
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> DataError:
    return DataError(f"{path}: damaged; delete it, and run again to make its unit anew")
