"""What is wrong with a data set, in one line for each problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b

from wordbrush.data.rows import PICTURES, SCORES, DataError, Row, decode
from wordbrush.data.shards import type_problems
from wordbrush.data.sources import Part
from wordbrush.errors import ImageError


def find_problems(parts: Iterable[Part], *, on_row: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Check every row of a data set; what follows a row that cannot be read stays unchecked in its part.

    Args:
        parts: Of the data set.
        on_row: Called after each row.

    Yields:
        Where the problem is, and what: files that are damaged, columns of another type, missing texts,
        pictures that do not decode or differ in size, scores out of range, and rows that came before.
    """
    seen: dict[bytes, str] = {}
    for part in parts:
        try:
            if part.path.suffix == ".parquet":
                yield from type_problems(part.path)
            for number, row in enumerate(part.read()):
                where = f"{part.path} row {number}"
                yield from (
                    f"{where}: {problem}" for problem in (*_problems(row), *_repeated(seen, where, row))
                )
                on_row()
        except DataError as error:
            yield str(error)


def _problems(row: Row) -> Iterator[str]:
    if not row.edit_prompt.strip():
        yield "edit_prompt is empty"
    for name in SCORES:
        score = getattr(row, name)
        if score is not None and not -1 <= score <= 1:
            yield f"{name} is {score}, not in [-1, 1]"
    sizes: dict[str, tuple[int, int]] = {}
    for name in PICTURES:
        picture = getattr(row, name)
        try:
            if picture is not None:
                sizes[name] = decode(picture).size
        except ImageError as error:
            yield f"{name}: {str(error).removeprefix('picture: ')}"
    if len(set(sizes.values())) > 1:
        yield "sizes differ: " + ", ".join(f"{name} {w}x{h}" for name, (w, h) in sizes.items())


def _repeated(seen: dict[bytes, str], where: str, row: Row) -> Iterator[str]:
    """Remembers the row; yields where it was before."""
    keys: dict[str, tuple[bytes, ...]] = {
        "the row": (row.input_image, row.edit_prompt.encode(), row.edited_image)
    }
    if row.unit is not None and row.seed is not None:
        keys["its draw"] = (row.unit.encode(), str(row.seed).encode(), str(row.mask_kind).encode())
    for what, values in keys.items():
        digest = blake2b(b"".join(blake2b(value).digest() for value in values), digest_size=16).digest()
        if digest in seen:
            yield f"a repetition: {what} came before, in {seen[digest]}"
        seen.setdefault(digest, where)
