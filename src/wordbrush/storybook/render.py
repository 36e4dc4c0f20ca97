"""A scene's pixels, masks and depth. Deterministic: the same scene and size give the same bytes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from wordbrush.storybook.photographs import PhotoLibrary
from wordbrush.storybook.places import GREY_SKY, HORIZON, background, light
from wordbrush.storybook.scenes import SIZES, Item, Scene
from wordbrush.storybook.sprites import Array, SpriteLibrary
from wordbrush.storybook.styles import apply_style, apply_tone

Mask = np.ndarray[Any, np.dtype[np.bool_]]
"""(H, W), or (N, H, W) of several things."""

# slot -> (x of the centre, y of the foot, depth factor of the size), as fractions of the picture. They are
# sixteenths: at 128 px a thing lies alike on the cells of 8 px that an autoencoder makes one latent of, in
# every slot, so that a small model has far fewer latents to learn.
SLOT_PLACE = {
    "left": (4 / 16, 14 / 16, 1.0),
    "middle": (8 / 16, 15 / 16, 1.0),
    "right": (12 / 16, 14 / 16, 1.0),
    "back": (8 / 16, 10 / 16, 0.8),
}
BASE_SIZE = 0.40  # of the picture's side, for a normal item at scale 1


@dataclass(frozen=True)
class Rendered:
    """A rendered scene.

    Attributes:
        image: RGB.
        masks: (num_items, H, W) bool, the visible pixels of each item.
        depth: (H, W) float32, 0 nearest, 1 the sky.
    """

    image: Image.Image
    masks: Mask
    depth: Array


class Renderer:
    """Draws scenes at a side length in pixels (square)."""

    def __init__(self, sprites: SpriteLibrary, photos: PhotoLibrary | None = None, size: int = 128) -> None:
        self.sprites = sprites
        self.photos = photos
        self.size = size

    def __call__(self, scene: Scene) -> Rendered:
        """The picture with its exact masks and depth.

        Raises:
            ValueError: The scene is a photograph, and the renderer was made without photographs.
        """
        canvas, masks, depth = self._photograph(scene) if scene.photo is not None else self._place(scene)
        canvas = _weather(canvas, depth, scene)
        picture = Image.fromarray((canvas.clip(0, 1) * 255).round().astype(np.uint8))
        return Rendered(apply_style(apply_tone(picture, scene.tone), scene.style), masks, depth)

    def _photograph(self, scene: Scene) -> tuple[Array, Mask, Array]:
        if self.photos is None:
            raise ValueError("this scene needs the photographs")
        canvas = self.photos.crop(scene.photo or 0, scene.seed, self.size) * light(scene.time)
        masks = np.zeros((0, self.size, self.size), dtype=bool)
        return canvas, masks, np.full((self.size, self.size), 0.6, dtype=np.float32)

    def _place(self, scene: Scene) -> tuple[Array, Mask, Array]:
        canvas = background(scene.place, scene.time, scene.weather, scene.seed, self.size)
        masks = np.zeros((len(scene.items), self.size, self.size), dtype=bool)
        depth = _depth(self.size).copy()
        for index in sorted(range(len(scene.items)), key=lambda i: _foot(scene.items[i])):
            item = scene.items[index]
            box, sprite = self._put(canvas, item)
            alpha = sprite[..., 3:]
            canvas[box] = canvas[box] * (1 - alpha) + sprite[..., :3] * light(scene.time)
            solid = alpha[..., 0] > 0.5
            masks[(slice(None), *box)] &= ~solid
            masks[(index, *box)] = solid
            depth[box] = np.where(solid, np.interp(_foot(item), (HORIZON, 1.0), (0.85, 0.05)), depth[box])
        return canvas, masks, depth

    def _put(self, canvas: Array, item: Item) -> tuple[tuple[slice, slice], Array]:
        """Draw the item's shadow; give the box that it fills, and the part of its sprite in there."""
        x, _, near = SLOT_PLACE[item.slot]
        centre, foot = (x + item.dx) * self.size, _foot(item) * self.size
        side = max(4, round(self.size * BASE_SIZE * near * SIZES[item.size] * item.scale))
        sprite = self.sprites.scaled(item.look, side)
        height, width = sprite.shape[:2]
        _shadow(canvas, centre, foot, width * 0.46, max(2.0, width * 0.12))
        return _clip(round(centre - width / 2), round(foot) - height, sprite, self.size)


def centre(item: Item) -> tuple[float, float]:
    """About the middle of an item: x and y as fractions of the picture."""
    x, _, near = SLOT_PLACE[item.slot]
    return x + item.dx, _foot(item) - BASE_SIZE * near * SIZES[item.size] * item.scale / 2


def _foot(item: Item) -> float:
    return SLOT_PLACE[item.slot][1] + item.dy


def _clip(left: int, top: int, sprite: Array, size: int) -> tuple[tuple[slice, slice], Array]:
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + sprite.shape[0], size), min(left + sprite.shape[1], size)
    return (slice(y0, y1), slice(x0, x1)), sprite[y0 - top : y1 - top, x0 - left : x1 - left]


def _shadow(canvas: Array, x: float, y: float, half_width: float, half_height: float) -> None:
    """A soft ellipse, darkest under the foot."""
    size = canvas.shape[0]
    y0, y1 = max(0, int(y - 2 * half_height)), min(size, int(y + 2 * half_height) + 1)
    x0, x1 = max(0, int(x - 1.6 * half_width)), min(size, int(x + 1.6 * half_width) + 1)
    rows = (np.arange(y0, y1, dtype=np.float32)[:, None] - y) / half_height
    columns = (np.arange(x0, x1, dtype=np.float32)[None] - x) / half_width
    dark = 0.45 * np.exp(-1.2 * (rows**2 + columns**2))
    canvas[y0:y1, x0:x1] *= 1 - dark[..., None]


@functools.lru_cache(maxsize=8)
def _depth(size: int) -> Array:
    rows = (np.arange(size, dtype=np.float32) + 0.5) / size
    column = np.where(rows < HORIZON, 1.0, np.interp(rows, (HORIZON, 1.0), (0.9, 0.02)))
    return np.repeat(column[:, None], size, 1).astype(np.float32)


def _weather(canvas: Array, depth: Array, scene: Scene) -> Array:
    size = canvas.shape[0]
    rng = np.random.default_rng((7, scene.seed))
    veil = GREY_SKY * light(scene.time)
    if scene.weather == "fog":
        amount = (0.22 + 0.50 * depth)[..., None]
        return canvas * (1 - amount) + (veil + 0.12) * amount
    if scene.weather == "rain":
        wet = 0.72 * canvas + 0.10 * veil + 0.42 * _streaks(rng, size)
        return wet.astype(np.float32, copy=False)
    if scene.weather == "snowfall":
        cover = _flakes(rng, size)
        white = (0.80 * canvas + 0.20 * veil) * (1 - cover) + cover
        return white.astype(np.float32, copy=False)
    return canvas


def _streaks(rng: np.random.Generator, size: int) -> Array:
    """How much rain covers each pixel: (size, size, 1) in [0, 1]."""
    layer = Image.new("L", (size, size))
    draw = ImageDraw.Draw(layer)
    length, slant = size // 8, size // 28
    for x, y in rng.integers(-length, size, (40, 2)).tolist():
        draw.line((x, y, x - slant, y + length), fill=190, width=max(2, size // 64))
    return _cover(layer)


def _flakes(rng: np.random.Generator, size: int) -> Array:
    """How much snow covers each pixel: (size, size, 1) in [0, 1]."""
    layer = Image.new("L", (size, size))
    draw = ImageDraw.Draw(layer)
    for x, y, r in rng.random((45, 3)).tolist():
        radius = (1.2 + 1.2 * r) * size / 128
        draw.ellipse((x * size - radius, y * size - radius, x * size + radius, y * size + radius), fill=235)
    return _cover(layer)


def _cover(layer: Image.Image) -> Array:
    soft = layer.filter(ImageFilter.GaussianBlur(0.6 * layer.width / 128))
    return np.asarray(soft, dtype=np.float32)[..., None] / 255.0
