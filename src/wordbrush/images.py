"""Pictures in and out of an editor: opening, sizing with an exact inverse, masks, and keeping detail.

Pixels are float32 tensors (B, 3, H, W) in [-1, 1]; pictures are PIL images in oriented sRGB.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageCms, ImageOps
from torch import Tensor

from wordbrush.errors import ImageError, one_line

MAX_PIXELS: Final = 150_000_000
"""Largest picture that is decoded, in pixels; larger ones are refused from their header alone."""
MAX_BYTES: Final = 1 << 30
"""Largest picture file that is read."""
MAX_ASPECT: Final = 8
"""The long side of a working picture is at most this many times the short side that was asked for."""

# Only formats that Pillow decodes by itself: EPS would run Ghostscript on a stranger's file.
_FORMATS: Final = (
    "PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000", "AVIF", "HEIF",
)  # fmt: skip
FROM_STRANGERS: Final = ("PNG", "JPEG", "WEBP", "GIF", "AVIF", "HEIF")
"""The formats that are safe to take from a network: the others can hold more than their header says.

A TIFF's tiles may be larger than its picture, and Pillow decodes the picture inside an ICO as it opens it.
"""
_HEIF_BRANDS: Final = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


@dataclass(frozen=True)
class Picture:
    """A picture from a file.

    Attributes:
        image: "RGB", or "RGBA" where the file has transparency; upright, in sRGB.
        format: Pillow's name of the file's format, such as "JPEG".
        sha256: hash of the file's bytes, in hexadecimal.
        exif: what the file's EXIF block says of camera, author and exposure; without place and orientation.
        notes: what a user should know about how the file was read.
    """

    image: Image.Image
    format: str
    sha256: str
    exif: bytes = field(default=b"", repr=False)
    notes: tuple[str, ...] = ()


def open_image(
    source: str | Path | bytes | BinaryIO,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = _FORMATS,
) -> Picture:
    """Read a picture file, however odd, without trusting it.

    The orientation of EXIF is applied, colours are converted from the file's ICC profile to sRGB,
    transparency is kept, and an animation gives its first frame. HEIC is read where `pillow-heif` is
    installed.

    Args:
        source: a path, the file's bytes, or a binary file.
        max_pixels: larger pictures are refused before they are decoded.
        formats: Pillow's names of those that are read.

    Raises:
        ImageError: the file is missing, not a picture, damaged or too large.
    """
    name, data = _read(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own pixel limit and its remarks on odd metadata
            known = [kind for kind in _formats() if kind in formats]
            image = Image.open(io.BytesIO(data), formats=known)
            kind, notes = image.format or "", _notes(image)
            if image.width * image.height > max_pixels:
                raise ImageError(
                    f"{name}: {image.width}x{image.height} is over the limit of {max_pixels} pixels"
                )
            image.load()
            rgb, alpha = normalise(image)
            exif = _clean_exif(image)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: too many pixels; the limit is {max_pixels}") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name}: {_why_unreadable(data)}") from error
    except Exception as error:  # a hostile file can raise anything from within a decoder
        raise ImageError(f"{name}: damaged picture ({one_line(error)})") from error
    if alpha is not None:
        rgb.putalpha(alpha)
    return Picture(rgb, kind, hashlib.sha256(data).hexdigest(), exif, notes)


def normalise(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Any Pillow picture as upright 8-bit sRGB.

    16-bit greys are scaled to 8 bits. Modes "I" and "F" have no fixed range: the smallest of 1 (only "F"),
    255 and 65535 that holds the largest value is taken as white.

    Returns:
        The "RGB" picture, and its transparency as an "L" picture or None.

    Raises:
        ImageError: the picture is empty, damaged, or in a mode that Pillow cannot convert.
    """
    if not (image.width and image.height):
        raise ImageError(f"the picture is empty ({image.width}x{image.height})")
    try:
        profile = image.info.get("icc_profile")
        image, alpha = _to_8_bit(_upright(image)), _see_through_grey(image)
        if image.has_transparency_data:
            alpha = image.convert("RGBA").getchannel("A")
            image = image.convert("L" if image.mode in ("L", "LA", "La") else "RGB")
        rgb = _to_srgb(image, profile)
    except (ValueError, OSError, SyntaxError, MemoryError) as error:
        raise ImageError(f"cannot read a picture of mode {image.mode} ({one_line(error)})") from error
    rgb.info = {}  # a profile or orientation that stayed would be applied once more by the next reader
    return rgb, alpha


@dataclass(frozen=True)
class Fit:
    """A picture on a model's grid, and the way back.

    Attributes:
        pixels: (1, 3, H, W) in [-1, 1]; H and W are multiples of the grid.
        size: (height, width) of the picture.
        scaled: (height, width) of the picture within `pixels`; the rest is mirrored padding.
        offset: (top, left) of the picture within `pixels`.
    """

    pixels: Tensor
    size: tuple[int, int]
    scaled: tuple[int, int]
    offset: tuple[int, int]

    @property
    def reduced(self) -> bool:
        """Whether the model sees less than the picture has, so that `carry_detail` has something to carry."""
        return self.scaled[0] < self.size[0] or self.scaled[1] < self.size[1]

    def crop(self, pixels: Tensor) -> Tensor:
        """Cut the padding off: (B, C, H, W) -> (B, C, h, w) with (h, w) = `scaled`."""
        (top, left), (height, width) = self.offset, self.scaled
        return pixels[..., top : top + height, left : left + width]

    def inverse(self, pixels: Tensor) -> Tensor:
        """From the grid back to the picture's geometry: (B, C, H, W) -> float32 (B, C, *size) on the CPU."""
        return resize(self.crop(pixels).float().cpu(), self.size)


def fit(rgb: Image.Image, *, size: int | None, native: int, multiple: int) -> Fit:
    """Scale a picture for a model and pad it to the model's grid; never squash it.

    The short side becomes `size` and the picture is padded by reflection, evenly on both sides, to multiples
    of `multiple`. A long side that would exceed MAX_ASPECT * `size` is scaled to that instead, and the short
    side is padded up to `size`. A picture that has the right size already goes in untouched.

    Args:
        rgb: a picture of mode "RGB".
        size: working short side in pixels; None for the model's own.
        native: the model's own short side.
        multiple: the grid: a working side is a multiple of it.
    """
    width, height = rgb.size
    scaled, canvas = _scaled_and_padded(rgb.size, size or native, multiple)
    pixels = from_pil(rgb.resize((scaled[1], scaled[0]), Image.Resampling.LANCZOS))
    offset = (canvas[0] - scaled[0]) // 2, (canvas[1] - scaled[1]) // 2
    for axis in (0, 1):
        index = _mirrored(scaled[axis], offset[axis], canvas[axis])
        pixels = pixels.index_select(axis + 2, index)
    return Fit(pixels, (height, width), scaled, offset)


def working_size(
    picture: tuple[int, int], *, size: int | None, native: int, multiple: int
) -> tuple[int, int]:
    """(height, width) of what `fit` makes of a picture of this width and height."""
    return _scaled_and_padded(picture, size or native, multiple)[1]


def _scaled_and_padded(
    picture: tuple[int, int], short: int, multiple: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of a picture at the working size, and of the grid around it."""
    width, height = picture
    scale = min(short / min(width, height), MAX_ASPECT * short / max(width, height))
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    padded = (math.ceil(max(side, short) / multiple) * multiple for side in (rows, columns))
    return (rows, columns), (next(padded), next(padded))


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, H, W) to (height, width), antialiased, without shift; at equal size the same tensor."""
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    return F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)


def from_pil(rgb: Image.Image) -> Tensor:
    """An "RGB" picture as (1, 3, H, W) float32 in [-1, 1], exactly as diffusers' VaeImageProcessor."""
    pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None].contiguous()
    return pixels.float().div_(255.0).mul_(2.0).sub_(1.0)


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] as "RGB" pictures, clamped and rounded as diffusers' VaeImageProcessor."""
    unit = (pixels.detach() * 0.5).add_(0.5).clamp_(0, 1).float().cpu()
    arrays = unit.mul_(255).round_().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.fromarray(array) for array in arrays]


def carry_detail(original: Tensor, reconstruction: Tensor, edited: Tensor) -> Tensor:
    """Give a picture edited at a lower resolution the original's detail back, where it still belongs.

    The output is the enlarged edit plus K A (original - enlarged reconstruction). A is the local colour
    transform (3x3) that best turns the reconstruction into the edit, as in a guided filter (He, Sun and Tang
    2013), so that detail is darkened, tinted or turned grey with its surroundings. K in [0, 1] says whether
    the edit kept what is there: 1 where nothing happened and under changes of tone, 0 where things came or
    went, so that nothing shines through. Where K is 1, the edit's own slight noise is smoothed away too.

    Args:
        original: (B, 3, H, W) in [-1, 1], the picture.
        reconstruction: (B, 3, h, w), the picture at the model's resolution as the model shows it unedited:
            the autoencoder's round trip.
        edited: (B, 3, h, w), the edit at the same resolution.

    Returns:
        float32 (B, 3, H, W): `original` where `edited` equals `reconstruction` everywhere, the enlarged edit
        where the two have nothing in common.
    """
    reconstruction, edited = reconstruction.float().cpu(), edited.float().cpu()
    tone, off_tone = _tone(reconstruction, edited - reconstruction)
    transform, explained, agreement = _local_colour_transform(reconstruction, edited, tone)
    kept = _kept(edited - reconstruction, off_tone, explained, agreement)

    centred = (reconstruction - blur(reconstruction, _WINDOW)).movedim(1, -1)[..., None]
    predicted = (transform @ centred)[..., 0].movedim(-1, 1) + blur(edited, _WINDOW)
    noise = edited - predicted
    edited = edited - kept * (1 - _smoothstep(_local_rms(noise), 0.05, 0.12)) * noise

    kept = blur(-F.max_pool2d(-kept, 5, stride=1, padding=2), 1.0)
    gain = (kept.movedim(1, -1)[..., None] * transform).flatten(-2).movedim(-1, 1)
    size = (original.shape[-2], original.shape[-1])
    result = resize(edited, size)
    for i in range(3):  # one plane at a time: every one at 12 megapixels has 48 MB
        detail = original[:, i].float().cpu() - resize(reconstruction[:, i : i + 1], size)[:, 0]
        for j in range(3):
            plane = F.interpolate(gain[:, 3 * j + i, None], size, mode="bilinear", antialias=True)
            result[:, j].addcmul_(plane[:, 0], detail)
    return result


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian mean that leaves out what lies beyond the border: (B, C, H, W), sigma in pixels."""
    radius = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)

    def means(x: Tensor) -> Tensor:
        planes = x.flatten(0, 1)[:, None]
        planes = F.conv2d(planes, kernel.view(1, 1, -1, 1), padding=(radius, 0))
        return F.conv2d(planes, kernel.view(1, 1, 1, -1), padding=(0, radius))[:, 0].view_as(x)

    return means(x) / means(torch.ones_like(x[:1, :1]))


def blend_mask(original: Image.Image, edited: Image.Image, mask: Image.Image) -> Image.Image:
    """Let an edit through a mask: white shows `edited`, black keeps `original` byte for byte, grey blends.

    Args:
        original: an "RGB" picture.
        edited: a picture of the same size and mode.
        mask: a picture of the same size, of any mode.

    Raises:
        ImageError: the mask has another size.
    """
    weight = normalise(mask)[0].convert("L")
    check_mask(weight.size, original.size)
    return Image.composite(edited, original, weight)


def check_mask(mask: tuple[int, int], picture: tuple[int, int]) -> None:
    """Raise an ImageError unless a mask has the width and height of its picture."""
    if mask != picture:
        sizes = "the mask is {}x{} but the picture {}x{}".format(*mask, *picture)
        raise ImageError(f"{sizes}: they must be the same")


def _mirrored(length: int, before: int, total: int) -> Tensor:
    """Indices 0..length-1 with `before` in front and more behind, bouncing between the two ends."""
    if length == 1:
        return torch.zeros(total, dtype=torch.long)
    period = 2 * (length - 1)
    index = (torch.arange(total) - before) % period
    return torch.minimum(index, period - index)


def _read(source: str | Path | bytes | BinaryIO) -> tuple[str, bytes]:
    """A name for messages, and the bytes."""
    if isinstance(source, bytes):
        return "picture", source
    if isinstance(source, str | Path):
        try:
            with Path(source).open("rb") as file:
                return str(source), _read_limited(str(source), file)
        except OSError as error:
            raise ImageError(f"{source}: cannot be read ({error.strerror or error})") from error
        except ValueError as error:  # a zero byte in the name
            raise ImageError(f"not a file name: {source!r}") from error
    name = str(getattr(source, "name", "picture"))
    return name, _read_limited(name, source)


def _read_limited(name: str, file: BinaryIO) -> bytes:
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name}: larger than {MAX_BYTES >> 20} MiB")
    return data


@cache
def _formats() -> tuple[str, ...]:
    """Those of _FORMATS that this Pillow has."""
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _why_unreadable(data: bytes) -> str:
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and "HEIF" not in _formats():
        return "HEIC pictures need the plugin: pip install pillow-heif"
    return "the file is empty" if not data else "not a picture in a known format, or a damaged one"


def _notes(image: Image.Image) -> tuple[str, ...]:
    # MPO is a phone's JPEG with a preview or depth map behind the picture: nothing that a user would miss.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        return ("the file has several frames; only the first is used",)
    return ()


# In a TIFF all that describes the file stands in this block, XMP and the place included: hence a list of
# what stays.
_KEPT_EXIF = (
    ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.Software,
    ExifTags.Base.DateTime, ExifTags.Base.Artist, ExifTags.Base.Copyright,
)  # fmt: skip


def _clean_exif(image: Image.Image) -> bytes:
    """What EXIF says of camera, author and exposure; empty where there is none or it is damaged."""
    try:
        exif, kept = image.getexif(), Image.Exif()
        for tag in _KEPT_EXIF:
            if tag in exif:
                kept[tag] = exif[tag]
        details = exif.get_ifd(ExifTags.IFD.Exif)
        for tag in (ExifTags.Base.MakerNote, ExifTags.IFD.Interop):
            details.pop(tag, None)
        if details:
            kept.get_ifd(ExifTags.IFD.Exif).update(details)
        return kept.tobytes() if len(kept) or details else b""
    except Exception:  # metadata is as untrusted as pixels, and no reason to refuse the picture
        return b""


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (ValueError, TypeError, KeyError, SyntaxError, struct.error):  # a damaged EXIF block
        return image


def _see_through_grey(image: Image.Image) -> Image.Image | None:
    """The transparency of a 16-bit grey picture, one grey of which is transparent: lost with the 16 bits."""
    grey = image.info.get("transparency")
    if not image.mode.startswith("I") or not isinstance(grey, int):
        return None
    return Image.fromarray(np.where(np.asarray(_upright(image)) == grey, 0, 255).astype(np.uint8))


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # which Pillow converts to nothing but this
        return image.convert("LA")
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
    whites = (
        (65535,) if image.mode.startswith("I;16") else (255, 65535) if image.mode == "I" else (1, 255, 65535)
    )
    white = next((white for white in whites if values.max() <= white), float(values.max()))
    return Image.fromarray((values.clip(0, white) * (255 / white)).round().astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert by the ICC profile; without one, or with an unusable one, by Pillow's plain rules."""
    if profile:
        image = image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                srgb = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
                return image.convert("RGB") if converted is None else converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile, or one for another colour model
    return image.convert("RGB")


# Of carry_detail, in pixels at the working resolution and in units of [-1, 1] pixels.
_WINDOW: Final = 3.0
"""Standard deviation of the Gaussian window in which reconstruction and edit are compared."""
_NOISE: Final = 0.008
"""Variance below which structure says nothing: that of an edit's noise where nothing was to change."""


def _kept(change: Tensor, off_tone: Tensor, explained: Tensor, agreement: Tensor) -> Tensor:
    """(B, 1, h, w) in [0, 1]: whether the edit shows the same thing as the reconstruction.

    It does where the structure agrees strongly (a recoloured thing), or where it does not contradict (flat
    areas have none) and the colour moved as over the whole picture, or not at all.
    """
    moved = torch.minimum(_local_rms(change), _local_rms(off_tone))
    same_tone = 1 - _smoothstep(moved, 0.12, 0.26)
    structured = _smoothstep(explained, 0.0, 6 * _NOISE)
    return torch.maximum(
        same_tone * _smoothstep(agreement, 0.4, 0.8), structured * _smoothstep(agreement, 0.7, 0.95)
    )


def _local_colour_transform(
    reconstruction: Tensor, edited: Tensor, tone: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Ridge regression of the edit's colours on the reconstruction's in a window around each pixel.

    Returns:
        The transform (B, h, w, 3, 3), which is `tone` (B, 3, 3) where there is no structure; the edit's
        variance that it explains (B, 1, h, w); and the explained fraction in the same shape, near 1 where
        both are flat.
    """
    prior = tone[:, None, None]
    noise = _NOISE * torch.eye(3)
    within = _covariance(reconstruction, reconstruction)
    # Of the change and not of the edit: without change the transform is the identity to the last bit.
    across = _covariance(edited - reconstruction, reconstruction)
    transform = prior + (across - (prior - torch.eye(3)) @ within) @ torch.linalg.inv(within + noise)
    explained = _trace(2 * transform @ (across + within).mT - transform @ within @ transform.mT)
    total = _trace(_covariance(edited, edited))
    return transform, explained, 1 - (total - explained).clamp_min(0) / (total + 4 * _NOISE)


def _tone(reconstruction: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """The change as one affine function of colour and place over the picture, as far as it is one.

    Returns:
        The colour transform (B, 3, 3) from reconstruction to edit; the rest of the change (B, 3, h, w).
    """
    batch, _, height, width = change.shape
    rows = torch.linspace(-1, 1, height)[:, None].expand(batch, 1, height, width)
    columns = torch.linspace(-1, 1, width).expand(batch, 1, height, width)
    known = torch.cat([reconstruction, rows, columns, torch.ones_like(rows)], 1).flatten(2).mT  # (B, N, 6)
    wanted = change.flatten(2).mT
    fitted, weight = torch.zeros(batch, 6, 3), torch.ones(batch, height * width, 1)
    rest = wanted
    for _ in range(6):  # reweighted least squares: what lies far off, such as a new object, loses its say
        weighted = (weight * known).mT
        ridge = 1e-5 * known.shape[1] * torch.eye(6)
        fitted = torch.linalg.solve(weighted @ known + ridge, weighted @ wanted)
        rest = wanted - known @ fitted
        weight = (1 + rest.square().sum(-1, keepdim=True) / 0.03) ** -2
    return torch.eye(3) + fitted[:, :3].mT, rest.mT.unflatten(2, (height, width))


def _covariance(a: Tensor, b: Tensor) -> Tensor:
    """Of colours in a window around each pixel: (B, 3, h, w) twice -> (B, h, w, 3, 3)."""
    products = blur((a[:, :, None] * b[:, None]).flatten(1, 2), _WINDOW)
    means = (blur(a, _WINDOW)[:, :, None] * blur(b, _WINDOW)[:, None]).flatten(1, 2)
    return (products - means).movedim(1, -1).unflatten(-1, (3, 3))


def _trace(matrices: Tensor) -> Tensor:
    """(B, h, w, 3, 3) -> (B, 1, h, w)."""
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None]


def _local_rms(x: Tensor) -> Tensor:
    """Root mean square over the channels and a small window: (B, C, h, w) -> (B, 1, h, w)."""
    return blur(x.square().mean(1, keepdim=True), 1.0).sqrt()


def _smoothstep(x: Tensor, low: float, high: float) -> Tensor:
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)
