"""Changes of the whole picture: styles and tones. Each is a pure function of an RGB picture, at any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

from wordbrush.storybook.catalogue import STYLES, TONES
from wordbrush.storybook.sprites import Array

Filter = Callable[[Image.Image], Image.Image]


def apply_style(picture: Image.Image, style: str) -> Image.Image:
    """Draw an RGB picture again in one of `STYLES`."""
    return _STYLES[style](picture)


def apply_tone(picture: Image.Image, tone: str) -> Image.Image:
    """Give an RGB picture one of `TONES`."""
    return _TONES[tone](picture)


def _same(picture: Image.Image) -> Image.Image:
    return picture


def _unit(picture: Image.Image) -> float:
    """Radii below are stated for a side of 128 pixels."""
    return max(picture.size) / 128


def _odd(value: float) -> int:
    return max(3, 2 * round(value / 2 - 0.5) + 1)


def _floats(picture: Image.Image) -> Array:
    return np.asarray(picture, dtype=np.float32)


def _picture(values: Any) -> Image.Image:
    """(h, w) or (h, w, 3), 0-255, clipped and rounded."""
    return Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8))


def _blurred(picture: Image.Image, radius: float) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(radius * _unit(picture)))


def _edges(picture: Image.Image) -> Array:
    """Edge strength in [0, 1]: (h, w, 1)."""
    rows, columns = np.gradient(_floats(_blurred(ImageOps.grayscale(picture), 1.0)))
    return np.clip(np.hypot(rows, columns) * _unit(picture) / 32, 0, 1)[..., None]


def _pencil(picture: Image.Image) -> Image.Image:
    grey = ImageOps.grayscale(picture)
    dodge = _floats(grey) * 255 / np.maximum(256 - _floats(_blurred(ImageOps.invert(grey), 3)), 1)
    tone = 0.82 * np.minimum(dodge, 255) + 0.18 * _floats(grey)
    return _picture(255 * (np.clip(tone, 0, 255) / 255) ** 2.2).convert("RGB")


def _watercolour(picture: Image.Image) -> Image.Image:
    flat = picture.filter(ImageFilter.MedianFilter(_odd(5 * _unit(picture))))
    soft = ImageEnhance.Color(flat).enhance(1.25)
    washed = Image.blend(soft, Image.new("RGB", picture.size, (250, 246, 238)), 0.28)
    return _picture(_floats(washed) * (1 - 0.35 * _edges(flat)))


def _pixel(picture: Image.Image) -> Image.Image:
    block = 4 * _unit(picture)
    coarse = (max(1, round(picture.width / block)), max(1, round(picture.height / block)))
    small = picture.resize(coarse, Image.Resampling.BOX)
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
    flat = vivid.filter(ImageFilter.MedianFilter(_odd(5 * _unit(picture))))
    return ImageOps.posterize(flat, 2).point(_stretch)


def _stretch(value: int) -> int:
    return min(255, round(value * 255 / 192))


def _blueprint(picture: Image.Image) -> Image.Image:
    line = _edges(picture)
    return _picture(np.array([24, 58, 138]) * (1 - line) + np.array([232, 240, 255]) * line)


def _neon(picture: Image.Image) -> Image.Image:
    line, glow = _edges(picture), _floats(ImageEnhance.Color(picture).enhance(2.5))
    return _picture(np.array([10, 8, 24]) * (1 - line) + np.maximum(glow, 90) * line * 1.3)


def _balance(red: float, green: float, blue: float) -> Filter:
    table = [min(255, round(level * gain)) for gain in (red, green, blue) for level in range(256)]
    return lambda picture: picture.point(table)


def _enhance(kind: type[Any], factor: float) -> Filter:
    return lambda picture: kind(picture).enhance(factor)


def _bright(picture: Image.Image) -> Image.Image:
    lift = Image.new("RGB", picture.size, (22, 22, 22))
    return ImageChops.add(ImageEnhance.Brightness(picture).enhance(1.3), lift)


def _blur(picture: Image.Image) -> Image.Image:
    return _blurred(picture, 2.2)


def _sharp(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.UnsharpMask(radius=1.5 * _unit(picture), percent=120, threshold=0))


_STYLES: dict[str, Filter] = {
    "none": _same, "pencil": _pencil, "watercolour": _watercolour, "pixel": _pixel, "monochrome": _monochrome,
    "sepia": _sepia, "oil": _oil, "poster": _poster, "blueprint": _blueprint, "neon": _neon,
}  # fmt: skip
_TONES: dict[str, Filter] = {
    "none": _same, "bright": _bright, "dark": _enhance(ImageEnhance.Brightness, 0.55),
    "vivid": _enhance(ImageEnhance.Color, 2.0), "pale": _enhance(ImageEnhance.Color, 0.4),
    "warm": _balance(1.18, 1.0, 0.74), "cool": _balance(0.78, 0.98, 1.22),
    "contrast": _enhance(ImageEnhance.Contrast, 1.7), "blur": _blur, "sharp": _sharp,
}  # fmt: skip
assert set(_STYLES) == set(STYLES)
assert set(_TONES) == set(TONES)
