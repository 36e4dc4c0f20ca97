"""Rows as WebDataset tars: files that share a name up to the first dot are one row.

    000000017.input_image.png    000000017.edited_image.png    000000017.mask.png    000000017.json

`datasets` opens such tars only if all rows have a mask or none has.

Nothing is ever unpacked to the disk: the names in a stranger's tar are only compared, and a name that points
out of a folder is refused.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from wordbrush import images
from wordbrush.data.rows import PICTURES, SHARD_BYTES, DataError, Row, by_size, make_row, suffix
from wordbrush.errors import one_line
from wordbrush.outputs import make_folder
from wordbrush.provenance import atomic_file

_MAX_JSON = 1 << 20
_KEY: Any = re.compile(r"(?:.*/)?[^./]*", re.DOTALL)  # of a row: folders, and the name up to the first dot


def write_tar(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as one tar; equal rows give equal bytes.

    Raises:
        OutputError: It cannot be written; nothing of it stays then.
    """
    with atomic_file(path, overwrite=True) as file:
        archive: Any = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        for number, row in enumerate(rows):
            for name, data in _members(row):
                member = tarfile.TarInfo(f"{number:09d}.{name}")  # of mode 0644, without owner and time
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            archive.members.clear()  # which would grow with the file
        archive.close()  # ends the tar, not the file


def write_tars(folder: Path, split: str, rows: Iterable[Row], *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write rows as `SPLIT-NNNNNN.tar`, of about equal size.

    Raises:
        OutputError: One cannot be written.
    """
    make_folder(folder)
    for number, group in enumerate(by_size(rows, shard_bytes)):
        write_tar(folder / f"{split}-{number:06d}.tar", group)


def read_tar(path: Path) -> Iterator[Row]:
    """The rows of one tar, one at a time.

    Raises:
        DataError: The file is damaged, not what `write_tar` writes, or hostile.
    """
    for key, files in groupby(_files(path), lambda file: _KEY.match(file[0])[0]):
        fields: dict[str, Any] = {}
        for name, data in files:
            fields |= _parse(f"{path}: {name}", name[len(key) + 1 :], data)
        if fields:
            yield make_row(f"{path} row {key}", fields)


def _members(row: Row) -> Iterator[tuple[str, bytes]]:
    values = row.model_dump(exclude_none=True)
    for column in PICTURES:
        if column in values:
            picture = values.pop(column)
            yield f"{column}.{suffix(picture)}", picture
    yield "json", json.dumps(values, ensure_ascii=False, sort_keys=True).encode()


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file, in the order of the tar."""
    try:
        with path.open("rb") as file:
            _check_end(path, file)
            archive: Any = tarfile.open(fileobj=file, mode="r|")  # noqa: SIM115, the file is what is closed
            for member in archive:
                archive.members.clear()
                if member.isdir():
                    continue
                _check(path, member)
                yield member.name.removeprefix("./"), archive.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path}: damaged or not a tar ({one_line(error)})") from error


def _check_end(path: Path, file: BinaryIO) -> None:
    """A tar ends with two empty blocks; without them it was cut off, which tarfile passes over in silence."""
    length = file.seek(0, io.SEEK_END)
    file.seek(max(0, length - 2 * tarfile.BLOCKSIZE))
    if file.read() != bytes(2 * tarfile.BLOCKSIZE):
        raise DataError(f"{path}: damaged or not a tar (it was cut off)")
    file.seek(0)


def _check(path: Path, member: tarfile.TarInfo) -> None:
    parts = member.name.replace("\\", "/").split("/")
    if not member.isfile() or ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise DataError(f"{path}: {member.name!r} is a link, or points out of its folder: not to be trusted")
    if member.size > (_MAX_JSON if member.name.endswith(".json") else images.MAX_BYTES):
        raise DataError(f"{path}: {member.name!r} is larger than anything that belongs here")


def _parse(where: str, field: str, data: bytes) -> dict[str, Any]:
    """The columns in one file of a row; files of other kinds hold none."""
    if field == "json":
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({one_line(error)})") from error
        if not isinstance(values, dict) or set(values) & set(PICTURES):
            raise DataError(f"{where}: not the columns of a row")
        return values
    column = field.split(".")[0]
    return {column: data} if column in PICTURES else {}
