"""Which units of a run are done: a file for each, in its place whole or not at all.

    UNITS/0012/0012345.rows    the rows that were kept (parquet), if there are any
    UNITS/0012/0012345.json    where all its pairs went; written last, so that it says: this unit is done

Files rather than a database, because a rename is all that it takes: any number of workers, on any number of
machines that share a folder, commit without asking each other, and one that is killed leaves nothing that
counts. A unit that is done twice (its worker was killed before it could say so) gets the same bytes again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from wordbrush.data.rows import DataError, Row
from wordbrush.data.shards import read_shard, write_shard
from wordbrush.datagen.filters import Funnel
from wordbrush.outputs import make_folder
from wordbrush.provenance import atomic_file


class Ledger:
    """The units of one run.

    Args:
        folder: Of its files; need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store(self, unit: str, rows: Sequence[Row], funnel: Funnel) -> None:
        """Commit a unit.

        Raises:
            OutputError: It cannot be written; the unit is not done then.
        """
        path = self._path(unit)
        make_folder(path.parent)
        if rows:
            write_shard(path.with_suffix(".rows"), rows)
        with atomic_file(path, overwrite=True) as file:
            file.write(json.dumps(asdict(funnel)).encode())

    def funnel(self, unit: str) -> Funnel | None:
        """Where a unit's pairs went; None unless it is done.

        Raises:
            DataError: Its file is damaged.
        """
        path = self._path(unit)
        return _read(path) if path.exists() else None

    def done(self) -> dict[str, Funnel]:
        """All units that are done.

        Raises:
            DataError: A file is damaged.
        """
        return {path.stem: _read(path) for path in sorted(self.folder.glob("*/*.json"))}

    def rows(self, units: Iterable[str]) -> Iterator[Row]:
        """The rows of units that are done, in the given order.

        Raises:
            DataError: A file is damaged.
        """
        for unit in units:
            path = self._path(unit).with_suffix(".rows")
            if path.exists():
                yield from read_shard(path)

    def _path(self, unit: str) -> Path:
        return self.folder / unit[:-3] / f"{unit}.json"


def _read(path: Path) -> Funnel:
    try:
        return Funnel(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: damaged; delete it, and run again to make its unit anew") from error
