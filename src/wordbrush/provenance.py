"""Writing results whole or not at all, with a record inside of how they were made; reading that record."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final
from uuid import uuid4
from xml.sax.saxutils import escape, unescape

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from wordbrush.errors import ImageError, OutputError

if TYPE_CHECKING:
    from wordbrush.images import Picture

FORMATS: Final = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""The file name endings that can be written."""

_TEMPORARY: Final = ".wordbrush-*.tmp"
_PNG_KEY: Final = "wordbrush"
_XMP: Final = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:wordbrush="urn:wordbrush:1">'
    "<wordbrush:provenance>{}</wordbrush:provenance></rdf:Description></rdf:RDF></x:xmpmeta>"
)
_JPEG_SEGMENT: Final = 65_000
"""Bytes of EXIF, and of XMP, that a JPEG can hold: a picture is not lost because they are more."""
# A pattern and not an XML parser: the file may come from anyone, and XML can be made to explode.
_XMP_RECORD: Final = re.compile(r"<wordbrush:provenance>([^<]*)</wordbrush:provenance>")


def save_image(
    image: Image.Image,
    path: str | Path,
    *,
    settings: Mapping[str, Any],
    source: Picture | None = None,
    quality: int = 95,
    overwrite: bool = False,
) -> None:
    """Write a picture with its provenance; at no moment is there half a file under `path`.

    The record stands in an iTXt chunk "wordbrush" (PNG) or in XMP (JPEG, WebP). EXIF of the source goes
    along as `open_image` cleaned it: without the place and the orientation. JPEG has no transparency: the
    picture gets white behind it; nor room for a record of more than 65 kB, which is then left out.

    Args:
        image: "RGB" or "RGBA", in sRGB.
        path: ends in .png, .jpg, .jpeg or .webp.
        settings: JSON values that reproduce the picture.
        source: the picture that was edited, if it came from a file.
        quality: of a JPEG or WebP, 1 to 100.
        overwrite: replace an existing file.

    Raises:
        OutputError: another ending, a file that exists, or one that cannot be written.
    """
    path = Path(path)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise OutputError(f"{path}: cannot write this kind of file; use one of {', '.join(FORMATS)}")
    record = json.dumps({"settings": settings, "source_sha256": source and source.sha256})
    options = _options(kind, record, source.exif if source else b"", quality)
    plain = _plain(image, kind)
    with atomic_file(path, overwrite=overwrite) as file:
        plain.save(file, kind, **options)


def read_provenance(path: str | Path) -> dict[str, Any]:
    """The record in a picture that `save_image` wrote: "settings", and "source_sha256" (None if not known).

    Raises:
        ImageError: the file cannot be read, or it carries no record.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=tuple(set(FORMATS.values()))) as image:
                text = _record(image.info)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except Exception as error:  # a hostile file can raise anything from within a decoder
        raise ImageError(f"{path}: not a readable PNG, JPEG or WebP picture") from error
    try:
        record = json.loads(text or "null")
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise ImageError(f"{path}: carries no record of how Wordbrush made it")
    return record


@contextmanager
def atomic_file(path: Path, *, overwrite: bool = False) -> Generator[IO[bytes]]:
    """A binary file that takes the name `path` only once it is written whole.

    Raises:
        OutputError: `path` exists and `overwrite` is not set, or it cannot be written.
    """
    temporary = path.with_name(_TEMPORARY.replace("*", uuid4().hex))
    try:
        if not overwrite and path.exists():
            raise OutputError(f"{path}: exists already")
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OutputError(f"{path}: cannot be written ({reason})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left of files that `atomic_file` wrote; none may be at work there."""
    for path in folder.glob(_TEMPORARY):
        with suppress(OSError):
            path.unlink()


def _options(kind: str, record: str, exif: bytes, quality: int) -> dict[str, Any]:
    if kind == "PNG":
        text = PngInfo()
        text.add_itxt(_PNG_KEY, record)
        options: dict[str, Any] = {"pnginfo": text, "compress_level": 3}  # twice as fast as 6
    else:
        options = {"xmp": _XMP.format(escape(record)).encode(), "quality": quality}
    if kind == "JPEG":
        options["subsampling"] = 0  # red edges on blue stay sharp
    options |= {"exif": exif} if exif else {}
    too_long = [name for name in ("exif", "xmp") if len(options.get(name, b"")) > _JPEG_SEGMENT]
    return {name: value for name, value in options.items() if kind != "JPEG" or name not in too_long}


def _plain(image: Image.Image, kind: str) -> Image.Image:
    """A copy without Pillow's own metadata, which would be written along."""
    if image.mode == "RGBA" and kind == "JPEG":
        white = Image.new("RGBA", image.size, "white")
        plain = Image.alpha_composite(white, image).convert("RGB")
    else:
        plain = image.convert("RGBA" if image.mode == "RGBA" else "RGB")
    plain.info = {}
    return plain


def _record(info: Mapping[Any, Any]) -> str | None:
    if _PNG_KEY in info:
        return str(info[_PNG_KEY])
    xmp = info.get("xmp", b"")
    match = _XMP_RECORD.search(xmp.decode(errors="replace") if isinstance(xmp, bytes) else "")
    return unescape(match[1]) if match else None
