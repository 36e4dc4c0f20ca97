"""Reading what a client sends, within limits: nothing is decoded before its size is known."""

import asyncio
import base64
import binascii
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from PIL import Image, ImageOps
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wordbrush.errors import ImageError, UsageError
from wordbrush.images import Picture, check_mask, open_image
from wordbrush.serving.replies import ApiError, error_response

PICTURES = ("image", "mask")
_MAX_FIELDS = 100
_DISCARDED = 4
"""Times the limit that is read of a body too large: a client that still sends would not see the answer."""
_decoding = asyncio.Semaphore(2)  # a decoded picture takes many times the memory of its file


class BodyLimit:
    """Refuses bodies of more than `most` bytes: by their header, else as soon as they exceed it."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, its bytes counted."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        words = f"a request may have {self.most} bytes: send a smaller picture"
        too_large = ApiError(413, words, headers={"Connection": "close"})
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.most:
            await self._discard(receive)
            return await error_response(too_large)(scope, receive, send)
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most:
                await self._discard(receive, message)
                raise too_large
            return message

        return await self.app(scope, counted, send)

    async def _discard(self, receive: Receive, message: Message | None = None) -> None:
        """Read on, within bounds, and keep nothing."""
        left = _DISCARDED * self.most
        while left > 0 and (message is None or message.get("more_body", False)):
            message = await receive()
            left -= len(message.get("body", b""))


@dataclass(frozen=True)
class Upload:
    """What was sent, unchecked."""

    pictures: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """By the names of PICTURES."""
    fields: dict[str, Any] = field(default_factory=dict[str, Any])


async def read_upload(request: Request, *, aliases: Mapping[str, str] | None = None) -> Upload:
    """Read a body: multipart with pictures as files, or JSON with pictures in base64.

    Args:
        request: its body is not read yet.
        aliases: other names of fields, such as {"image[]": "image"}.

    Raises:
        ApiError: another content type, or a body that is not what it says.
        UsageError: a field that is given twice, or a picture that is a text.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _from_json(await request.body())
    if kind == "multipart/form-data":
        return await _from_form(request, aliases or {})
    raise ApiError(415, "send multipart/form-data, or application/json with the pictures in base64")


def _from_json(body: bytes) -> Upload:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not JSON", code="invalid_json") from None
    if not isinstance(values, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    fields: dict[str, Any] = values
    given = {name: fields.pop(name) for name in PICTURES if name in fields}
    return Upload({name: _decode(name, text) for name, text in given.items() if text is not None}, fields)


def _decode(name: str, text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise UsageError(f"{name} is not base64: send the file's bytes, not a path or an address") from None


async def _from_form(request: Request, aliases: Mapping[str, str]) -> Upload:
    upload = Upload()
    async with request.form(max_files=8, max_fields=_MAX_FIELDS) as form:
        for sent, value in form.multi_items():
            name = aliases.get(sent, sent)
            if name in upload.pictures or name in upload.fields:
                raise UsageError(f"{name[:100]!r} is given twice: one is edited at a time")
            if isinstance(value, UploadFile):
                if name not in PICTURES:
                    raise UsageError(f"{name[:100]!r} is no picture: the files are {' and '.join(PICTURES)}")
                upload.pictures[name] = await value.read()
            elif name in PICTURES:
                raise UsageError(f"{name} is a text: send the file itself, not a path or an address")
            elif value:  # a form sends its empty fields, too
                upload.fields[name] = value
    return upload


async def open_pictures(
    upload: Upload, *, max_pixels: int, transparent_changes: bool = False
) -> tuple[Picture, bytes | None]:
    """Check and decode the picture and the mask.

    Args:
        upload: what was sent.
        max_pixels: of either; more are refused by the file's header.
        transparent_changes: the mask is as OpenAI's: what is transparent may change.

    Returns:
        The picture, and the mask as a PNG in grey: white may change.

    Raises:
        ImageError: one is missing, cannot be read or is too large, or they differ in size.
    """
    async with _decoding:
        return await run_in_threadpool(_open, upload, max_pixels, transparent_changes)


def _open(upload: Upload, max_pixels: int, transparent_changes: bool) -> tuple[Picture, bytes | None]:
    if "image" not in upload.pictures:
        raise ImageError("image is missing: send the picture's bytes")
    picture = open_image(upload.pictures["image"], max_pixels=max_pixels)
    if "mask" not in upload.pictures:
        return picture, None
    mask = open_image(upload.pictures["mask"], max_pixels=max_pixels).image
    check_mask(mask.size, picture.image.size)
    white = _opaque_stays(mask) if transparent_changes else mask.convert("RGB").convert("L")
    file = io.BytesIO()
    white.save(file, "PNG", compress_level=1)
    return picture, file.getvalue()


def _opaque_stays(mask: Image.Image) -> Image.Image:
    if mask.mode != "RGBA":
        raise ImageError("the mask has no transparency: what may change must be transparent in it")
    return ImageOps.invert(mask.getchannel("A"))
