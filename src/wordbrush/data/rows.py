"""One row of a data set of edits, whatever the files that it lies in."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wordbrush import images
from wordbrush.errors import WordbrushError

_INT64 = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class Similarities:
    """CLIP's four scores of one pair, each in [-1, 1].

    Attributes:
        clip_sim_0: Of the picture before and its caption.
        clip_sim_1: Of the picture after and its caption.
        clip_sim_dir: Of the change of the pictures and the change of the captions.
        clip_sim_image: Of the two pictures.
    """

    clip_sim_0: float
    clip_sim_1: float
    clip_sim_dir: float
    clip_sim_image: float

    @classmethod
    def from_columns(cls, columns: Mapping[str, Sequence[float]]) -> list[Similarities]:
        """One for each row of the four columns."""
        return [cls(*row) for row in zip(*(columns[name] for name in SCORES), strict=True)]


SCORES = tuple(f.name for f in fields(Similarities))


class DataError(WordbrushError):
    """A data set that cannot be read, or rows that a layout cannot hold."""


class Row(BaseModel):
    """An edit: the pictures as the bytes of their files, so that copying a row does not change them.

    The first three are diffusers' names for them, in the order in which its training script looks for them.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    input_image: bytes
    edit_prompt: str
    edited_image: bytes
    source_caption: str | None = None
    target_caption: str | None = None
    task: str | None = None
    """Emu Edit's name of the kind of edit."""
    mask: bytes | None = None
    """White where the edit may change the picture."""
    mask_kind: str | None = None
    """How that was drawn around the thing: of one draw there may be a row for each kind."""
    unit: str | None = None
    """What the row was made from: rows of one caption pair have one unit."""
    turn: int | None = Field(default=None, ge=_INT64[0], le=_INT64[1])
    """Of a session of several edits, counted from 1."""
    seed: int | None = Field(default=None, ge=_INT64[0], le=_INT64[1])
    p2p_threshold: float | None = None
    """The share of steps under Prompt-to-Prompt's control."""
    guidance_scale: float | None = None
    clip_sim_0: float | None = None
    clip_sim_1: float | None = None
    clip_sim_dir: float | None = None
    clip_sim_image: float | None = None

    @property
    def similarities(self) -> Similarities | None:
        """The four scores, if the row has all of them."""
        scores: Any = [getattr(self, name) for name in SCORES]
        return None if None in scores else Similarities(*scores)

    @property
    def size(self) -> int:
        """Bytes of the pictures, which is nearly all that a row weighs."""
        return len(self.input_image) + len(self.edited_image) + len(self.mask or b"")


SHARD_BYTES = 256 << 20
"""About how large a shard becomes, in any layout."""
PICTURES = ("input_image", "edited_image", "mask")
"""The columns that hold pictures."""


def make_row(where: str, values: dict[str, Any]) -> Row:
    """A row of untrusted values.

    Args:
        where: File and number, for the message.
        values: Of some or all of the columns.

    Raises:
        DataError: A column is missing, unknown or of another type.
    """
    try:
        return Row(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def by_size(rows: Iterable[Row], limit: int) -> Iterator[Iterator[Row]]:
    """Consecutive rows in groups of about `limit` bytes, each to be read before the next, none held.

    Where a group ends depends on the rows alone.
    """
    total = 0

    def number(row: Row) -> int:
        nonlocal total
        before, total = total, total + row.size
        return before // limit

    return (group for _, group in groupby(rows, number))


def encode_png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file, without any metadata: the same pixels give the same bytes."""
    plain = picture.copy()
    plain.info = {}
    file = io.BytesIO()
    plain.save(file, "PNG", compress_level=6)
    return file.getvalue()


def decode(picture: bytes) -> Image.Image:
    """The picture in a row, "RGB"; transparency becomes white.

    Raises:
        ImageError: It is damaged, or over the limits of `wordbrush.images`.
    """
    image = images.open_image(picture).image
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def suffix(picture: bytes) -> str:
    """The ending of a picture's file name by its first bytes; "img" if neither PNG, JPEG nor WebP."""
    if picture.startswith(b"\x89PNG"):
        return "png"
    if picture.startswith(b"\xff\xd8"):
        return "jpg"
    return "webp" if picture[8:12] == b"WEBP" else "img"
