"""What was drawn for every pair of a run, kept or not: seed, p, guidance, CLIP's scores, and its fate.

In a finished data set they are the file `draws.arrow` (Arrow's IPC format, a record batch for some thousands
of rows), for whoever wants to set other thresholds; no part of the data set that `load_dataset` opens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wordbrush.data.rows import SCORES, DataError
from wordbrush.errors import MissingExtraError, one_line
from wordbrush.provenance import atomic_file

try:
    import pyarrow as pa
except ModuleNotFoundError as error:
    raise MissingExtraError("data sets", "data") from error

FILE = "draws.arrow"
KEPT, SURPLUS = "kept", "surplus"
"""Fates of pairs that passed the filter; of others it is the name of what they fell at."""
SCHEMA: Any = pa.schema(
    [
        ("unit", pa.string()),
        ("seed", pa.int64()),
        ("p2p_threshold", pa.float64()),
        ("guidance_scale", pa.float64()),
        ("mask_kind", pa.string()),
        *((name, pa.float64()) for name in SCORES),
        ("fate", pa.string()),
    ]
)
COLUMNS: tuple[str, ...] = tuple(SCHEMA.names)
Columns = Mapping[str, Sequence[Any]]
_BATCH = 8192


def write_draws(path: Path, units: Iterable[tuple[str, Columns]]) -> None:
    """Write the draws of units, each with its columns but `unit`; all or nothing, a few at a time.

    Raises:
        OutputError: It cannot be written.
    """
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with (
        atomic_file(path, overwrite=True) as file,
        pa.ipc.new_file(file, SCHEMA, options=options) as writer,
    ):
        for batch in _batches(units):
            writer.write_batch(pa.record_batch(batch, schema=SCHEMA))


def _batches(units: Iterable[tuple[str, Columns]]) -> Iterator[dict[str, list[Any]]]:
    batch: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for unit, columns in units:
        count = len(columns["fate"])
        for name in COLUMNS:
            batch[name] += [unit] * count if name == "unit" else columns.get(name) or [None] * count
        if len(batch["unit"]) >= _BATCH:
            yield batch
            batch = {name: [] for name in COLUMNS}
    yield batch


def read_draws(path: Path) -> dict[str, list[Any]]:
    """The columns of a file of draws.

    Raises:
        DataError: The file is damaged or something else.
    """
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
            return file.read_all().select(list(COLUMNS)).to_pydict()
    except Exception as error:  # a damaged file can raise anything from within the reader
        raise DataError(f"{path}: damaged, or no file of draws ({one_line(error)})") from error


def joined(parts: Iterable[Columns]) -> dict[str, list[Any]]:
    """The columns of several units, one behind the other, without the units' names."""
    found: dict[str, list[Any]] = {name: [] for name in COLUMNS if name != "unit"}
    for columns in parts:
        for name, column in found.items():
            column += columns[name]
    return found


def explain(columns: Columns) -> str:
    """Where pairs fell, and what they scored, in one line: for a run that kept none."""
    fates = Counter(columns["fate"])
    fell = ", ".join(f"{count:,} at {fate}" for fate, count in fates.most_common())
    scores = [
        f"{name} {np.nanmedian(found):.3f} (best {np.nanmax(found):.3f})"
        for name in SCORES
        if (found := [score for score in columns[name] if score is not None])
    ]
    return "; ".join(filter(None, [fell, "median scores " + ", ".join(scores) if scores else ""]))
