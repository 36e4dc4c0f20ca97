"""Whole-picture changes: styles and tones. Each is a pure function of an RGB picture; sizes scale with the side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

from wordbrush.storybook.catalogue import STYLES, TONES

Filter = Callable[[Image.Image], Image.Image]


def apply_style(picture: Image.Image, style: str) -> Image.Image:
    """One of `STYLES`."""
    return _STYLES[style](picture)


def apply_tone(picture: Image.Image, tone: str) -> Image.Image:
    """One of `TONES`."""
    return _TONES[tone](picture)


def _same(picture: Image.Image) -> Image.Image:
    return picture


def _unit(picture: Image.Image) -> float:
    """Radii below are stated for a side of 128 pixels."""
    return max(picture.size) / 128


def _odd(value: float) -> int:
    return max(3, 2 * round(value / 2 - 0.5) + 1)


def _pencil(picture: Image.Image) -> Image.Image:
    grey = ImageOps.grayscale(picture)
    blurred = np.asarray(
        ImageOps.invert(grey).filter(ImageFilter.GaussianBlur(3 * _unit(picture))), dtype=np.float32
    )
    dodge = np.asarray(grey, dtype=np.float32) * 255 / np.maximum(256 - blurred, 1)
    tone = 0.82 * np.minimum(dodge, 255) + 0.18 * np.asarray(grey, dtype=np.float32)
    dark = 255 * (np.clip(tone, 0, 255) / 255) ** 2.2
    return Image.fromarray(dark.round().astype(np.uint8), "L").convert("RGB")


def _edges(picture: Image.Image) -> Any:
    """Edge strength in [0, 1], (h, w)."""
    grey = np.asarray(
        ImageOps.grayscale(picture).filter(ImageFilter.GaussianBlur(0.7 * _unit(picture))), dtype=np.float32
    )
    rows, columns = np.gradient(grey)
    return np.clip(np.hypot(rows, columns) * _unit(picture) / 38, 0, 1)


def _watercolour(picture: Image.Image) -> Image.Image:
    flat = picture.filter(ImageFilter.MedianFilter(_odd(5 * _unit(picture))))
    soft = ImageEnhance.Color(flat).enhance(1.25)
    washed = Image.blend(soft, Image.new("RGB", picture.size, (250, 246, 238)), 0.28)
    rim = 1 - 0.35 * _edges(flat)[..., None]
    return _from_float(np.asarray(washed, dtype=np.float32) * rim)


def _pixel(picture: Image.Image) -> Image.Image:
    small = picture.resize((max(1, round(picture.width / _unit(picture) / 4)), max(1, round(picture.height / _unit(picture) / 4))),
                           Image.Resampling.BOX)  # fmt: skip
    return ImageOps.posterize(small, 3).resize(picture.size, Image.Resampling.NEAREST)


def _monochrome(picture: Image.Image) -> Image.Image:
    return ImageOps.autocontrast(ImageOps.grayscale(picture), cutoff=1).convert("RGB")


def _sepia(picture: Image.Image) -> Image.Image:
    return ImageOps.colorize(ImageOps.grayscale(picture), (38, 22, 10), (255, 240, 205), (176, 132, 88))


def _oil(picture: Image.Image) -> Image.Image:
    painted = ImageOps.posterize(picture, 4).filter(ImageFilter.ModeFilter(_odd(5 * _unit(picture))))
    return ImageEnhance.Color(painted).enhance(1.4)


def _poster(picture: Image.Image) -> Image.Image:
    vivid = ImageEnhance.Contrast(ImageEnhance.Color(picture).enhance(2.0)).enhance(1.3)
    return ImageOps.posterize(vivid.filter(ImageFilter.MedianFilter(3)), 2).point(_stretch)


def _stretch(value: int) -> int:
    return min(255, round(value * 255 / 192))


def _blueprint(picture: Image.Image) -> Image.Image:
    line = _edges(picture)[..., None]
    return _from_float(np.array([24, 58, 138]) * (1 - line) + np.array([232, 240, 255]) * line)


def _neon(picture: Image.Image) -> Image.Image:
    glow = ImageEnhance.Color(picture).enhance(2.5)
    line = _edges(picture)[..., None]
    return _from_float(
        np.array([10, 8, 24]) * (1 - line) + np.maximum(np.asarray(glow, dtype=np.float32), 90) * line * 1.3
    )


def _from_float(values: Any) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8), "RGB")


def _balance(red: float, green: float, blue: float) -> Filter:
    table = [min(255, round(level * gain)) for gain in (red, green, blue) for level in range(256)]
    return lambda picture: picture.point(table)


def _enhance(kind: type[Any], factor: float) -> Filter:
    return lambda picture: kind(picture).enhance(factor)


def _bright(picture: Image.Image) -> Image.Image:
    return ImageChops.add(
        ImageEnhance.Brightness(picture).enhance(1.3), Image.new("RGB", picture.size, (22, 22, 22))
    )


def _blur(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(2.2 * _unit(picture)))


def _sharp(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.UnsharpMask(radius=1.5 * _unit(picture), percent=160, threshold=0))


_STYLES: dict[str, Filter] = {
    "none": _same, "pencil": _pencil, "watercolour": _watercolour, "pixel": _pixel, "monochrome": _monochrome,
    "sepia": _sepia, "oil": _oil, "poster": _poster, "blueprint": _blueprint, "neon": _neon,
}  # fmt: skip
_TONES: dict[str, Filter] = {
    "none": _same, "bright": _bright, "dark": _enhance(ImageEnhance.Brightness, 0.55),
    "vivid": _enhance(ImageEnhance.Color, 2.0), "pale": _enhance(ImageEnhance.Color, 0.4),
    "warm": _balance(1.18, 1.0, 0.74), "cool": _balance(0.78, 0.98, 1.22), "contrast": _enhance(ImageEnhance.Contrast, 1.7),
    "blur": _blur, "sharp": _sharp,
}  # fmt: skip
assert set(_STYLES) == set(STYLES) and set(_TONES) == set(TONES)
