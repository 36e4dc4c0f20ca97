"""An invisible mark in the pixels that says "made by Wordbrush", and reading it back.

The library is `invisible-watermark`, as in diffusers' SDXL pipeline; its method `dwtDctSvd` outlives JPEG at
quality 75, but neither resizing nor cropping.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from wordbrush.errors import ImageError, MissingExtraError, one_line

MESSAGE = "wordbrush"
"""What the mark says, and what the record of a marked result has under `KEY`."""
KEY = "watermark"
MIN_PIXELS = 256 * 256
"""Of a picture, for the library."""
_METHOD = "dwtDctSvd"
_BLOCK = 4
"""The library marks as much of a picture as such blocks fill."""
_SURE = 0.9
"""Share of the message's bits from which on a mark is found: by chance, less than one picture in 10^9."""


def check_installed() -> None:
    """Raise a MissingExtraError where the library is not."""
    _library()


def check_size(picture: Image.Image) -> None:
    """Raise an ImageError for a picture that is too small to be marked."""
    if picture.width * picture.height < MIN_PIXELS:
        raise ImageError(
            f"a picture of {picture.width} x {picture.height} is too small for a watermark, which takes "
            f"{MIN_PIXELS} pixels: use a larger one, or leave the watermark off"
        )


def put_in(picture: Image.Image) -> Image.Image:
    """A copy with the mark, by colour changes of a few levels everywhere; it was read back once.

    Args:
        picture: "RGB" or "RGBA"; transparency is kept.

    Raises:
        ImageError: The picture is too small, or too flat and white to hold the mark.
        MissingExtraError: The library is not installed.
    """
    check_size(picture)
    encoder: Any = _library().WatermarkEncoder()
    encoder.set_watermark("bytes", MESSAGE.encode())
    plain = _bgr(picture)
    made = plain + _coarse(encoder.encode(plain.copy(), _METHOD) - plain)
    marked = Image.fromarray(made[..., ::-1].round().clip(0, 255).astype(np.uint8))
    if "A" in picture.getbands():
        marked.putalpha(picture.getchannel("A"))
    if not is_in(marked):
        raise ImageError(
            "the result is too flat and white to hold a watermark: change the instruction or the picture, "
            "or leave the watermark off"
        )
    return marked


def put_in_again(picture: Image.Image, settings: Mapping[str, Any]) -> Image.Image:
    """A result whose pixels were changed after it was marked, by its record; others as they are.

    Raises:
        ImageError: See `put_in`.
    """
    return put_in(picture) if settings.get(KEY) else picture


def is_in(picture: Image.Image) -> bool:
    """Whether a picture carries the mark.

    Raises:
        MissingExtraError: The library is not installed.
    """
    if picture.width * picture.height < MIN_PIXELS:
        return False
    message = np.frombuffer(MESSAGE.encode(), np.uint8)
    decoder: Any = _library().WatermarkDecoder("bytes", 8 * len(message))
    found = np.frombuffer(decoder.decode(_bgr(picture), _METHOD), np.uint8)
    return bool((np.unpackbits(found) == np.unpackbits(message)).mean() >= _SURE)


def _bgr(picture: Image.Image) -> Any:
    """(H, W, 3) floats from 0 to 255: of bytes, the library's sums would overflow."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    return np.ascontiguousarray(pixels[..., ::-1])


def _coarse(change: Any) -> Any:
    """The change as means of 2 x 2 pixels, which are all that the mark is in.

    The library swaps horizontal and vertical detail on its way back from wavelets, which fringes sharp edges.
    """
    height, width = (side // _BLOCK * _BLOCK for side in change.shape[:2])
    means = change[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3))
    coarse = np.zeros_like(change)
    coarse[:height, :width] = means.repeat(2, 0).repeat(2, 1)
    return coarse


def _library() -> Any:
    try:
        import imwatermark
    except ModuleNotFoundError as error:
        raise MissingExtraError("a watermark", "safety") from error
    except ImportError as error:  # a library of the system that OpenCV needs
        raise ImageError(f"watermarks cannot be used here ({one_line(error)})") from error
    return imwatermark
