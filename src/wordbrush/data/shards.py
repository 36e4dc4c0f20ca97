"""Data sets as parquet: a folder that `datasets.load_dataset` opens and diffusers' training script accepts.

    DIR/README.md                      the card: what the columns are, which files make which split
    DIR/data/SPLIT-NNNNN.parquet       rows, the pictures inside

Equal rows give equal bytes: a shard depends on its rows and on the version of pyarrow, not on when or where
it was written. It appears whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from wordbrush.data.rows import PICTURES, SHARD_BYTES, DataError, Row, by_size, make_row
from wordbrush.errors import MissingExtraError, one_line
from wordbrush.outputs import make_folder
from wordbrush.provenance import atomic_file

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise MissingExtraError("data sets", "data") from error

_GROUP_BYTES = 8 << 20  # of a row group: what a reader holds at once
_READ_ROWS = 8

_DTYPES = {str: "string", int: "int64", float: "float64"}


def _dtype(column: str) -> str:
    """The name of a column's type in a card of the hub."""
    if column in PICTURES:
        return "image"
    annotation: Any = Row.model_fields[column].annotation
    return next(_DTYPES[kind] for kind in (annotation, *get_args(annotation)) if kind in _DTYPES)


COLUMNS = {name: _dtype(name) for name in Row.model_fields}
"""Column -> string, int64, float64 or image, in the order of the file."""


def _schema() -> Any:
    """The arrow schema, with what tells `datasets` that structs of bytes and path are pictures."""
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    types = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "image": picture}
    features = {
        name: {"_type": "Image"} if dtype == "image" else {"dtype": dtype, "_type": "Value"}
        for name, dtype in COLUMNS.items()
    }
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([(name, types[dtype]) for name, dtype in COLUMNS.items()], metadata=about)


SCHEMA = _schema()
_OPTIONS: dict[str, Any] = {
    "compression": "snappy",
    # Neither a dictionary nor least and greatest values of pictures.
    "use_dictionary": [name for name, dtype in COLUMNS.items() if dtype == "string"],
    "write_statistics": [name for name, dtype in COLUMNS.items() if dtype != "image"],
}


def write_shard(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as one parquet file, holding a few MiB of them at a time; an existing file is replaced.

    Returns:
        How many rows there were.

    Raises:
        OutputError: It cannot be written; nothing of it stays then.
    """
    count = 0
    with atomic_file(path, overwrite=True) as file, pq.ParquetWriter(file, SCHEMA, **_OPTIONS) as writer:
        for group in by_size(rows, _GROUP_BYTES):
            table = _table(list(group))
            writer.write_table(table, row_group_size=table.num_rows)
            count += table.num_rows
    return count


def write_shards(folder: Path, split: str, rows: Iterable[Row], *, shard_bytes: int = SHARD_BYTES) -> int:
    """Write a split of a data set as shards of about equal size; the card is `write_card`'s.

    Returns:
        How many rows there were.
    """
    make_folder(folder / "data")
    groups = enumerate(by_size(rows, shard_bytes))
    return sum(write_shard(shard_path(folder, split, number), group) for number, group in groups)


def shard_path(folder: Path, split: str, number: int) -> Path:
    """Where shard `number` of a split lies in a data set's folder."""
    return folder / "data" / f"{split}-{number:05d}.parquet"


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """The parquet files below a folder, by split: their names begin with it, or their folder has its name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        if path.name.startswith("."):
            continue  # half written
        name = path.stem.split("-")[0]
        found.setdefault(path.parent.name if name.isdigit() else name, []).append(path)
    return found


def read_shard(path: Path) -> Iterator[Row]:
    """The rows of one parquet file in any known set of columns, in order, a few at a time.

    Raises:
        DataError: The file is damaged, has other columns, or a value of another type.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
            names = known_columns(path, file.schema_arrow.names)
            batches = file.iter_batches(_READ_ROWS, columns=list(names))
            values = (value for batch in batches for value in batch.to_pylist())
            for number, value in enumerate(values):
                where = f"{path} row {number}"
                yield make_row(where, {names[n]: _plain(where, n, v) for n, v in value.items()})
    except DataError:
        raise
    except Exception as error:  # a hostile file can raise anything from within the reader
        raise DataError(f"{path}: damaged or not parquet ({one_line(error)})") from error


def type_problems(path: Path) -> list[str]:
    """In which columns a shard has another type than `write_shard` gives; none for other sets of columns.

    Raises:
        DataError: The file is damaged.
    """
    try:
        schema = pq.read_schema(path)
    except Exception as error:  # as above
        raise DataError(f"{path}: damaged or not parquet ({one_line(error)})") from error
    if not set(_REQUIRED) <= set(schema.names):
        return []
    found = {name: schema.field(name).type for name in schema.names if name in COLUMNS}
    wrong = {name: kind for name, kind in found.items() if kind != SCHEMA.field(name).type}
    return [f"{path}: column {name} is {kind}, not {COLUMNS[name]}" for name, kind in wrong.items()]


_ALIASES: tuple[dict[str, str], ...] = (
    {name: name for name in COLUMNS},
    {  # timbrooks/instructpix2pix-clip-filtered
        "original_image": "input_image",
        "edit_prompt": "edit_prompt",
        "edited_image": "edited_image",
        "original_prompt": "source_caption",
        "edited_prompt": "target_caption",
    },
    {  # osunlp/MagicBrush
        "source_img": "input_image",
        "instruction": "edit_prompt",
        "target_img": "edited_image",
        "mask_img": "mask",
        "img_id": "unit",
        "turn_index": "turn",
    },
    {  # facebook/emu_edit_test_set_generations
        "image": "input_image",
        "instruction": "edit_prompt",
        "edited_image": "edited_image",
        "input_caption": "source_caption",
        "output_caption": "target_caption",
        "task": "task",
        "hash": "unit",
    },
)
_REQUIRED = ("input_image", "edit_prompt", "edited_image")


def known_columns(path: Path, columns: Sequence[str]) -> dict[str, str]:
    """The columns of a file that mean something here -> their names here.

    Raises:
        DataError: The file has no known set of columns, such as one for evaluation only.
    """
    for names in _ALIASES:
        found = {column: names[column] for column in columns if column in names}
        if set(_REQUIRED) <= set(found.values()):
            return found
    edited = {column for names in _ALIASES for column in names if names[column] == "edited_image"}
    if edited.isdisjoint(columns):
        raise DataError(
            f"{path} has the columns {', '.join(columns)}, and so no pictures after the edit: such sets are "
            "for evaluation only (`wordbrush evaluate benchmark`)"
        )
    wanted = " or ".join(", ".join(list(names)[:3]) for names in _ALIASES)
    raise DataError(f"{path} has the columns {', '.join(columns)}: wanted are {wanted}")


def write_card(folder: Path, splits: Iterable[str], title: str) -> None:
    """Write the README.md of a data set, by which `load_dataset` knows its splits and its columns.

    Args:
        folder: Of the data set.
        splits: Their names.
        title: The heading.
    """
    features = "".join(f"  - name: {name}\n    dtype: {dtype}\n" for name, dtype in COLUMNS.items())
    files = "".join(f"  - split: {name}\n    path: data/{name}-*.parquet\n" for name in splits)
    meanings = "".join(f"| `{name}` | {dtype} |\n" for name, dtype in COLUMNS.items())
    with atomic_file(folder / "README.md", overwrite=True) as file:
        file.write(_CARD.format(features=features, files=files, meanings=meanings, title=title).encode())


_CARD = """\
---
tags:
- image-editing
- instruct-pix2pix
task_categories:
- image-to-image
configs:
- config_name: default
  data_files:
{files}dataset_info:
  features:
{features}---

# {title}

Edits of pictures by instructions: a picture, what to do, and the picture after. The columns `input_image`,
`edit_prompt` and `edited_image` are those of diffusers' `train_instruct_pix2pix.py`. What is not known of a
row is null. Written by Wordbrush.

| column | type |
|---|---|
{meanings}"""


def _table(rows: Sequence[Row]) -> Any:
    columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    for name in PICTURES:
        columns[name] = [None if value is None else {"bytes": value, "path": None} for value in columns[name]]
    return pa.table(columns, schema=SCHEMA)


def _plain(where: str, column: str, value: Any) -> Any:
    """A picture's bytes, without the struct around them."""
    if not isinstance(value, dict):
        return value
    if not isinstance(value.get("bytes"), bytes):
        raise DataError(f"{where}: the picture {column} is not inside the file")
    return value["bytes"]
