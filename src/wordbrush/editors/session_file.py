"""A session as one small file: the original, and of every turn what was asked and the part that changed."""

from __future__ import annotations

import io
import json
import lzma
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Any

from PIL import Image, ImageChops
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wordbrush import __version__
from wordbrush.editors.asked import Asked
from wordbrush.editors.sequential import ALPHA, LOW_PASS, Session, Turn
from wordbrush.errors import ImageError, one_line
from wordbrush.images import open_image
from wordbrush.provenance import atomic_file

MAX_BYTES = 2**30
"""Of all members together: a larger file is refused before it is unpacked."""
MAX_PIXELS = 10**9
"""Of the pictures of all turns together, which are in memory once the session is read."""

# zipfile raises the two of the second line of compression that it does not know, and of passwords; those of
# the third come from within damaged data.
_UNREADABLE = (
    OSError, zipfile.BadZipFile, KeyError,
    NotImplementedError, RuntimeError,
    zlib.error, lzma.LZMAError, EOFError, struct.error,
)  # fmt: skip
_INDEX = "session.json"
_ORIGINAL = "original.png"
_Side = Annotated[int, Field(ge=0)]


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    parent: int = Field(ge=0)
    asked: Asked
    settings: dict[str, Any]
    changed: tuple[_Side, _Side, _Side, _Side] | None
    """Left, top, right, bottom of the patch; None where no pixel changed."""
    has_mask: bool


class _Index(BaseModel):
    wordbrush: str
    alpha: float | None = Field(ALPHA, ge=0, allow_inf_nan=False)
    low_pass: float = Field(LOW_PASS, ge=0, allow_inf_nan=False)
    current: int = Field(ge=0)
    turns: list[_Turn]


def save_session(session: Session, path: Path, *, overwrite: bool = False) -> None:
    """Write a session; the file is a ZIP of PNG pictures and one JSON index.

    Raises:
        OutputError: The file exists and `overwrite` is not set, or it cannot be written.
    """
    turns = [_turn(session, turn) for turn in session.turns]
    index = _Index(
        wordbrush=__version__,
        alpha=session.alpha,
        low_pass=session.low_pass,
        current=session.current,
        turns=turns,
    )
    with (
        atomic_file(path, overwrite=overwrite) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        archive.writestr(_INDEX, index.model_dump_json(indent=1), zipfile.ZIP_DEFLATED)
        archive.writestr(_ORIGINAL, _png(session.original))
        for number, (turn, entry) in enumerate(zip(session.turns, turns, strict=True), 1):
            if entry.changed:
                archive.writestr(_patch(number), _png(turn.image.crop(entry.changed)))
            if turn.request.mask is not None:
                archive.writestr(_mask(number), _png(turn.request.mask.convert("L")))


def load_session(path: Path) -> Session:
    """Read a session, without trusting the file.

    Raises:
        ImageError: The file is missing, not a session, damaged or too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive)
    except _UNREADABLE as error:
        raise ImageError(f"{path}: not a session that can be read ({one_line(error)})") from error
    except (ValidationError, json.JSONDecodeError) as error:
        raise ImageError(f"{path}: a damaged session ({one_line(error)})") from error


def _turn(session: Session, turn: Turn) -> _Turn:
    before = session.image(turn.parent)
    # alpha_only=False: of an RGBA difference, whose own alpha is 0, the colours count too
    box = ImageChops.difference(before, turn.image).getbbox(alpha_only=False)
    asked = Asked(**{name: getattr(turn.request, name) for name in Asked.model_fields})
    return _Turn(
        parent=turn.parent,
        asked=asked,
        settings=turn.settings,
        changed=box,
        has_mask=turn.request.mask is not None,
    )


def _read(path: Path, archive: zipfile.ZipFile) -> Session:
    if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
        raise ImageError(f"{path}: over the limit of {MAX_BYTES >> 20} MiB when unpacked")
    index = _Index.model_validate_json(archive.read(_INDEX))
    session = Session(_picture(archive, _ORIGINAL), index.alpha, index.low_pass)
    if session.original.width * session.original.height * len(index.turns) > MAX_PIXELS:
        raise ImageError(f"{path}: over the limit of {MAX_PIXELS} pixels in all turns")
    for number, entry in enumerate(index.turns, 1):
        if entry.parent >= number:
            raise ImageError(f"{path}: a damaged session (turn {number} edits turn {entry.parent})")
        session.turns.append(_restore(path, archive, session, number, entry))
    if index.current > len(session.turns):
        raise ImageError(f"{path}: a damaged session (there is no turn {index.current})")
    session.current = index.current
    return session


def _restore(path: Path, archive: zipfile.ZipFile, session: Session, number: int, entry: _Turn) -> Turn:
    before = session.image(entry.parent)
    image = before
    if entry.changed:
        image, patch = before.copy(), _picture(archive, _patch(number))
        left, top, right, bottom = entry.changed
        fits = (
            patch.size == (right - left, bottom - top) and right <= before.width and bottom <= before.height
        )
        if not fits or patch.mode != before.mode:
            raise ImageError(f"{path}: a damaged session (the patch of turn {number} does not fit)")
        image.paste(patch, entry.changed)
    mask = _picture(archive, _mask(number)).convert("L") if entry.has_mask else None
    return Turn(number, entry.parent, entry.asked.request(before, mask), image, entry.settings)


def _patch(number: int) -> str:
    return f"turn-{number}.png"


def _mask(number: int) -> str:
    return f"turn-{number}-mask.png"


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _picture(archive: zipfile.ZipFile, name: str) -> Image.Image:
    return open_image(archive.read(name)).image
