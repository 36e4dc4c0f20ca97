"""Reading what a client sends, within limits: nothing is decoded before its size is known."""

import asyncio
import base64
import binascii
import io
import json
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from PIL import Image, ImageOps
from starlette.datastructures import UploadFile
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wordbrush.errors import ImageError, UsageError
from wordbrush.images import FROM_STRANGERS, Picture, check_mask, open_image
from wordbrush.serving.replies import ApiError, error_response

T = TypeVar("T")

PICTURES = ("image", "mask")
BODY_SECONDS = 20.0
"""That a client has to send a body, and a second more for each `SLOWEST` bytes of it."""
SLOWEST = 16 * 1024
DRAIN_SECONDS = 3.0
"""That a refused body is still read: a client that sends on would not see the answer."""
_MAX_FIELDS = 100
_MAX_FIELD = 64 * 1024
"""Bytes of a form's field that is no file."""
_MAX_MARKS = 20_000
"""Brackets and commas in JSON: parsed, an empty list takes twenty times the memory of its bytes."""
_IN_FLIGHT = 8
"""Bodies of the greatest size that are held at one time."""
# Two, for a decoded picture takes many times the memory of its file.
_decoders = ThreadPoolExecutor(2, "decoding")


class BodyLimit:
    """Refuses bodies of more than `most` bytes, by their header or once they exceed it, and slow ones."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, its bytes counted."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = _Body(receive, self.most)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.most:
            body.refused = body.too_large()
            return await error_response(body.refused)(scope, receive, body.draining(send))
        return await self.app(scope, body.receive, body.draining(send))


class _Body:
    """One request's body on its way in."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self.most = receive, most
        self._seen, self._whole = 0, False
        self._began = asyncio.get_running_loop().time()
        self.refused: ApiError | None = None

    def too_large(self) -> ApiError:
        words = f"a request may have {self.most} bytes: send a smaller picture"
        return ApiError(413, words, headers={"Connection": "close"})

    async def receive(self) -> Message:
        """The next part; an `ApiError` if it comes too late or is too much."""
        if self._whole:
            return await self._receive()  # the client's going away, whenever that is
        try:
            async with asyncio.timeout_at(self._began + BODY_SECONDS + self._seen / SLOWEST):
                message = await self._receive()
        except TimeoutError:
            self.refused = ApiError(408, "the body came too slowly", headers={"Connection": "close"})
            raise self.refused from None
        self._seen += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._seen > self.most:
            self.refused = self.too_large()
            raise self.refused
        return message

    def draining(self, send: Send) -> Send:
        """`send`, which reads on for a while after a refusal: to close at once would undo the answer."""

        async def sent(message: Message) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if last and self.refused:
                await send({**message, "more_body": True})
                await self._drain()
                message = {"type": "http.response.body"}
            await send(message)

        return sent

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._whole:
                    self._whole = not (await self._receive()).get("more_body", False)
        except TimeoutError:
            pass


class Room:
    """Memory for bodies that are being read: what exceeds it is refused.

    Args:
        max_bytes: of one body.
    """

    def __init__(self, max_bytes: int) -> None:
        self._one, self._left = max_bytes, _IN_FLIGHT * max_bytes

    @contextmanager
    def hold(self, request: Request) -> Generator[None]:
        """Room for a request's body while the block runs.

        Raises:
            ApiError: there is none now.
        """
        wanted = int(request.headers.get("content-length", self._one))
        if wanted > self._left:
            headers = {"Retry-After": "5"}
            raise ApiError(503, "too many uploads at once: try again in 5 s", code="busy", headers=headers)
        self._left -= wanted
        try:
            yield
        finally:
            self._left += wanted


@dataclass(frozen=True)
class Upload:
    """What was sent, unchecked."""

    pictures: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """By the names of PICTURES."""
    fields: dict[str, Any] = field(default_factory=dict[str, Any])


async def decoding(work: Callable[..., T], *arguments: Any) -> T:
    """What the work gives; it is done in a thread, by few at a time, for it takes time and memory."""
    return await asyncio.get_running_loop().run_in_executor(_decoders, partial(work, *arguments))


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
        return await decoding(_from_json, await request.body(), aliases or {})
    if kind == "multipart/form-data":
        return await _from_form(request, aliases or {})
    raise ApiError(415, "send multipart/form-data, or application/json with the pictures in base64")


def _from_json(body: bytes, aliases: Mapping[str, str]) -> Upload:
    if sum(body.count(mark) for mark in b"[{,") > _MAX_MARKS:  # none of them is in base64
        raise ApiError(400, "the body has too many values", code="invalid_json")
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not JSON", code="invalid_json") from None
    if not isinstance(values, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    fields: dict[str, Any] = {}
    for sent, value in values.items():
        _put(fields, aliases.get(sent, sent), value)
    given = {name: fields.pop(name) for name in PICTURES if name in fields}
    return Upload({name: _decode(name, text) for name, text in given.items() if text is not None}, fields)


def _put(into: dict[str, Any], name: str, value: Any) -> None:
    if name in into:
        raise UsageError(f"{name[:100]!r} is given twice: one is edited at a time")
    into[name] = value


def _decode(name: str, text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise UsageError(f"{name} is not base64: send the file's bytes, not a path or an address") from None


async def _from_form(request: Request, aliases: Mapping[str, str]) -> Upload:
    upload = Upload()
    try:
        form = await request.form(max_files=8, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD)
    except (LookupError, UnicodeError):  # a header that names an odd charset
        raise ApiError(400, "the form cannot be decoded: send it in UTF-8", code="invalid_form") from None
    for sent, value in form.multi_items():
        name = aliases.get(sent, sent)
        if isinstance(value, UploadFile):
            if name not in PICTURES:
                raise UsageError(f"{name[:100]!r} is no picture: the files are {' and '.join(PICTURES)}")
            _put(upload.pictures, name, await value.read())
        elif name in PICTURES:
            raise UsageError(f"{name} is a text: send the file itself, not a path or an address")
        elif value:  # a form sends its empty fields, too
            _put(upload.fields, name, value)
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
    return await decoding(_open, upload, max_pixels, transparent_changes)


def _open(upload: Upload, max_pixels: int, transparent_changes: bool) -> tuple[Picture, bytes | None]:
    if "image" not in upload.pictures:
        raise ImageError("image is missing: send the picture's bytes")
    picture = open_image(upload.pictures["image"], max_pixels=max_pixels, formats=FROM_STRANGERS)
    if "mask" not in upload.pictures:
        return picture, None
    mask = open_image(upload.pictures["mask"], max_pixels=max_pixels, formats=FROM_STRANGERS).image
    check_mask(mask.size, picture.image.size)
    white = _opaque_stays(mask) if transparent_changes else mask.convert("RGB").convert("L")
    file = io.BytesIO()
    white.save(file, "PNG", compress_level=1)
    return picture, file.getvalue()


def _opaque_stays(mask: Image.Image) -> Image.Image:
    if mask.mode != "RGBA":
        raise ImageError("the mask has no transparency: what may change must be transparent in it")
    return ImageOps.invert(mask.getchannel("A"))
