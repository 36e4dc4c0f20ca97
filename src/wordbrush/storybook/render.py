"""A scene's pixels, masks and depth. Deterministic: the same scene and size give the same bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from wordbrush.storybook.catalogue import INDOORS
from wordbrush.storybook.photographs import PhotoLibrary
from wordbrush.storybook.scenes import SIZES, Item, Scene
from wordbrush.storybook.sprites import SpriteLibrary
from wordbrush.storybook.styles import apply_style, apply_tone

Array = np.ndarray[Any, np.dtype[np.float32]]
Colour = tuple[int, int, int]

HORIZON = 0.56
# slot -> (x of the centre, y of the foot, depth factor of the size), as fractions of the picture
SLOT_PLACE = {
    "left": (0.22, 0.86, 1.0),
    "middle": (0.5, 0.92, 1.0),
    "right": (0.78, 0.86, 1.0),
    "back": (0.5, 0.62, 0.8),
}
BASE_SIZE = 0.40  # of the picture's side, for a normal item at scale 1

LIGHT: dict[str, tuple[float, float, float]] = {
    "day": (1.0, 1.0, 1.0), "sunset": (1.06, 0.80, 0.66), "night": (0.40, 0.46, 0.74),
}  # fmt: skip
SKY: dict[str, tuple[Colour, Colour]] = {
    "day": ((92, 164, 236), (198, 228, 250)), "sunset": ((84, 62, 130), (255, 158, 84)),
    "night": ((10, 14, 46), (42, 52, 104)),
}  # fmt: skip
GREY_SKY = np.array([0.66, 0.69, 0.73], dtype=np.float32)


@dataclass(frozen=True)
class Rendered:
    """A rendered scene.

    Attributes:
        image: RGB.
        masks: (num_items, H, W) bool, the visible pixels of each item.
        depth: (H, W) float32, 0 nearest, 1 the sky.
    """

    image: Image.Image
    masks: np.ndarray[Any, np.dtype[np.bool_]]
    depth: Array


class Renderer:
    """Draws scenes at a side length in pixels (square)."""

    def __init__(self, sprites: SpriteLibrary, photos: PhotoLibrary | None = None, size: int = 128) -> None:
        self.sprites = sprites
        self.photos = photos
        self.size = size

    def __call__(self, scene: Scene) -> Rendered:
        """The picture with its exact masks and depth."""
        if scene.photo is not None:
            return self._photo(scene)
        canvas, depth = self._background(scene)
        light = np.array(LIGHT[scene.time], dtype=np.float32)
        masks = np.zeros((len(scene.items), self.size, self.size), dtype=bool)
        for index in sorted(range(len(scene.items)), key=lambda i: _foot(scene.items[i])):
            self._draw_item(canvas, depth, masks, index, scene.items[index], light)
        canvas = _weather(canvas, depth, scene)
        return Rendered(self._finish(canvas, scene), masks, depth)

    def _photo(self, scene: Scene) -> Rendered:
        if self.photos is None:
            raise ValueError("this scene needs the photographs")
        canvas = self.photos.crop(scene.photo or 0, scene.seed, self.size)
        depth = np.full((self.size, self.size), 0.6, dtype=np.float32)
        canvas = _weather(canvas * np.array(LIGHT[scene.time], dtype=np.float32), depth, scene)
        return Rendered(self._finish(canvas, scene), np.zeros((0, self.size, self.size), dtype=bool), depth)

    def _finish(self, canvas: Array, scene: Scene) -> Image.Image:
        picture = Image.fromarray((canvas.clip(0, 1) * 255).round().astype(np.uint8), "RGB")
        return apply_style(apply_tone(picture, scene.tone), scene.style)

    def _background(self, scene: Scene) -> tuple[Array, Array]:
        ground = _depth(self.size)
        return background(scene.place, scene.time, scene.weather, scene.seed, self.size).copy(), ground.copy()

    def _draw_item(
        self, canvas: Array, depth: Array, masks: Any, index: int, item: Item, light: Array
    ) -> None:
        x, _, near = SLOT_PLACE[item.slot]
        foot = _foot(item)
        side = max(4, round(self.size * BASE_SIZE * near * SIZES[item.size] * item.scale))
        sprite = self.sprites.scaled(item.look, side)
        height, width = sprite.shape[:2]
        left = round((x + item.dx) * self.size - width / 2)
        top = round(foot * self.size) - height
        _shadow(canvas, (x + item.dx) * self.size, foot * self.size, width * 0.46, max(2.0, width * 0.12))
        box, part = _clip(left, top, sprite, self.size)
        alpha = part[..., 3:]
        canvas[box] = canvas[box] * (1 - alpha) + part[..., :3] * light
        solid = alpha[..., 0] > 0.5
        masks[(slice(None), *box)] &= ~solid
        masks[(index, *box)] = solid
        near_depth = float(np.interp(foot, (HORIZON, 1.0), (0.85, 0.05)))
        depth[box] = np.where(solid, near_depth, depth[box])


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
    if scene.weather == "clear":
        return canvas
    size = canvas.shape[0]
    rng = np.random.default_rng((7, scene.seed))
    veil = GREY_SKY * np.array(LIGHT[scene.time], dtype=np.float32)
    if scene.weather == "fog":
        amount = (0.22 + 0.50 * depth)[..., None]
        return canvas * (1 - amount) + (veil + 0.12) * amount
    if scene.weather == "rain":
        canvas = 0.72 * canvas + 0.10 * veil
        return _streaks(canvas, rng, count=90, length=size // 10, slant=size // 36, tint=0.42)
    canvas = 0.80 * canvas + 0.20 * veil
    return _flakes(canvas, rng, count=130 * size // 128)


def _streaks(
    canvas: Array, rng: np.random.Generator, *, count: int, length: int, slant: int, tint: float
) -> Array:
    size = canvas.shape[0]
    layer = Image.new("L", (size, size))
    draw = ImageDraw.Draw(layer)
    for x, y in rng.integers(-length, size, (count, 2)).tolist():
        draw.line((x, y, x - slant, y + length), fill=150, width=max(1, size // 128))
    return canvas + tint * (np.asarray(layer, dtype=np.float32) / 255.0)[..., None]


def _flakes(canvas: Array, rng: np.random.Generator, *, count: int) -> Array:
    size = canvas.shape[0]
    layer = Image.new("L", (size, size))
    draw = ImageDraw.Draw(layer)
    for x, y, r in rng.random((count, 3)).tolist():
        radius = (0.5 + 1.2 * r) * size / 128
        draw.ellipse((x * size - radius, y * size - radius, x * size + radius, y * size + radius), fill=235)
    cover = (np.asarray(layer, dtype=np.float32) / 255.0)[..., None]
    return canvas * (1 - cover) + cover


# ---- backgrounds -----------------------------------------------------------------------------------------------------


def background(place: str, time: str, weather: str, seed: int, size: int) -> Array:
    """The empty place under its sky and light: (H, W, 3) float32 in [0, 1]."""
    rng = np.random.default_rng((3, seed))
    big = 2 * size  # drawn at twice the size, then averaged: smooth edges
    picture = Image.new("RGB", (big, big))
    if place not in INDOORS:
        _sky(picture, time, weather, np.random.default_rng((5, seed)))
    layer = Image.new("RGBA", (big, big))
    _PLACES[place](ImageDraw.Draw(layer), big, rng, time)
    grain = 1 + 0.10 * (smooth_noise(rng, size)[..., None] - 0.5)
    small = layer.resize((size, size), Image.Resampling.BOX)
    base = np.asarray(picture.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255.0
    front = np.asarray(small, dtype=np.float32) / 255.0
    light = np.array(LIGHT[time], dtype=np.float32) if place not in INDOORS else np.ones(3, dtype=np.float32)
    alpha = front[..., 3:]
    return (base * (1 - alpha) + front[..., :3] * grain * light * alpha).astype(np.float32)


def smooth_noise(rng: np.random.Generator, size: int) -> Array:
    """(size, size) in about [0, 1]: three octaves of interpolated noise."""
    total = np.zeros((size, size), dtype=np.float32)
    for cells, weight in ((5, 0.45), (15, 0.3), (48, 0.25)):
        grid = Image.fromarray(rng.random((cells, cells), dtype=np.float32), "F")
        total += weight * np.asarray(grid.resize((size, size), Image.Resampling.BILINEAR))
    return total


def _gradient(size: int, top: Colour, bottom: Colour, height: float = 1.0) -> Image.Image:
    steps = np.clip(np.arange(size, dtype=np.float32) / (size * height), 0, 1)[:, None]
    column = np.array(top) * (1 - steps) + np.array(bottom) * steps
    return Image.fromarray(np.repeat(column[:, None].round().astype(np.uint8), size, 1), "RGB")


def _sky(picture: Image.Image, time: str, weather: str, rng: np.random.Generator) -> None:
    size = picture.width
    top, bottom = SKY[time]
    if weather != "clear":
        grey = np.array(GREY_SKY) * np.array(LIGHT[time]) * 255
        top, bottom = (
            tuple(int(0.35 * c + 0.65 * g) for c, g in zip(end, grey, strict=True)) for end in (top, bottom)
        )
    picture.paste(_gradient(size, top, bottom, HORIZON))  # pyright: ignore[reportArgumentType]
    draw = ImageDraw.Draw(picture, "RGBA")
    x, y, r = rng.uniform(0.12, 0.88) * size, rng.uniform(0.1, 0.22) * size, 0.055 * size
    clouds = [(rng.uniform(0, 1), rng.uniform(0.06, 0.34), rng.uniform(0.05, 0.11)) for _ in range(3)]
    stars = rng.random((60, 2))
    if time == "night":
        for sx, sy in (stars * (size, size * HORIZON)).tolist():
            draw.ellipse((sx - 1, sy - 1, sx + 1.5, sy + 1.5), fill=(255, 255, 230, 220))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(250, 246, 214))
        draw.ellipse((x - 1.5 * r, y - 1.25 * r, x + 0.5 * r, y + 0.75 * r), fill=(18, 22, 58))
        return
    sun = (255, 244, 176) if time == "day" else (255, 214, 120)
    if time == "sunset":
        y = 0.42 * size
    for grow, strength in ((2.0, 50), (1.5, 80), (1.0, 255)):
        draw.ellipse((x - grow * r, y - grow * r, x + grow * r, y + grow * r), fill=(*sun, strength))
    puff = (255, 255, 255, 215) if time == "day" else (255, 190, 150, 170)
    for cx, cy, cr in clouds:
        for k in (-1.1, -0.4, 0.4, 1.1):
            w, h = cr * size * (1 - 0.25 * abs(k)), cr * size * 0.55 * (1.2 - 0.4 * abs(k))
            px, py = cx * size + k * cr * size, cy * size
            draw.ellipse((px - w, py - h, px + w, py + h), fill=puff)


def _hills(
    draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator, base: float, height: float, fill: Any
) -> None:
    """A rolling silhouette from `base` (fraction of the height) down to the bottom."""
    x = np.linspace(0, 1, 33)
    waves = sum(np.sin(2 * np.pi * (f * x + rng.random())) / f for f in (1.0, 2.3, 4.1))
    y = base - height * (0.5 + 0.3 * np.asarray(waves))
    points = [(float(a) * size, float(b) * size) for a, b in zip(x, y, strict=True)]
    draw.polygon([*points, (size, size), (0, size)], fill=fill)


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(min(255, max(0, round(c * factor))) for c in colour)  # pyright: ignore[reportReturnType]


def _ground(draw: ImageDraw.ImageDraw, size: int, far: Colour, near: Colour, start: float = HORIZON) -> None:
    first = int(start * size)
    for y in range(first, size, 2):
        t = (y - first) / max(1, size - first)
        row = tuple(round(a * (1 - t) + b * t) for a, b in zip(far, near, strict=True))
        draw.rectangle((0, y, size, y + 1), fill=row)


def _meadow(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator, time: str) -> None:
    _hills(draw, size, rng, 0.54, 0.12, (96, 160, 92))
    _hills(draw, size, rng, 0.60, 0.07, (116, 184, 84))
    _ground(draw, size, (128, 196, 84), (84, 160, 60), 0.6)
    petals = ((250, 240, 120), (250, 160, 180), (245, 245, 250))
    for x, y, k in rng.random((26, 3)).tolist():
        fy = 0.64 + 0.35 * y
        r = size * 0.006 * (0.5 + 1.5 * y)
        draw.ellipse((x * size - r, fy * size - r, x * size + r, fy * size + r), fill=petals[int(3 * k)])


def _beach(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator, time: str) -> None:
    _ground(draw, size, (52, 138, 190), (86, 190, 206), 0.48)
    _hills(draw, size, rng, 0.70, 0.03, (240, 248, 250))
    _hills(draw, size, rng, 0.715, 0.03, (226, 196, 138))
    _ground(draw, size, (236, 208, 150), (218, 180, 118), 0.73)
    for x, y in rng.random((9, 2)).tolist():
        wy = (0.50 + 0.15 * y) * size
        draw.line((x * size, wy, x * size + 0.1 * size, wy), fill=(190, 226, 240), width=2)


def _desert(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator, time: str) -> None:
    for x, w in rng.random((2, 2)).tolist():
        left, width, top = x * size, (0.12 + 0.12 * w) * size, (0.36 + 0.08 * w) * size
        draw.polygon([(left, 0.6 * size), (left + 0.15 * width, top), (left + 0.85 * width, top),
                      (left + width, 0.6 * size)], fill=(186, 104, 66))  # fmt: skip
    _hills(draw, size, rng, 0.58, 0.08, (222, 160, 92))
    _hills(draw, size, rng, 0.68, 0.07, (234, 178, 106))
    _hills(draw, size, rng, 0.84, 0.06, (242, 194, 122))


def _snow(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator, time: str) -> None:
    _hills(draw, size, rng, 0.52, 0.12, (198, 214, 236))
    for x, s in rng.random((9, 2)).tolist():
        _pine(draw, x * size, 0.60 * size, (0.08 + 0.08 * s) * size, (92, 128, 140))
    _hills(draw, size, rng, 0.62, 0.05, (228, 236, 248))
    _ground(draw, size, (236, 242, 250), (250, 252, 255), 0.64)


def _pine(draw: ImageDraw.ImageDraw, x: float, foot: float, height: float, fill: Colour) -> None:
    for k in range(3):
        top, wide = foot - height * (1 - 0.25 * k), height * (0.18 + 0.09 * k)
        draw.polygon([(x, top), (x - wide, top + 0.45 * height), (x + wide, top + 0.45 * height)], fill=fill)


def _forest(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator, time: str) -> None:
    draw.rectangle((0, 0.18 * size, size, size), fill=(58, 110, 74))
    for layer, shade in ((0.62, 0.75), (0.66, 1.0)):
        for x, w in rng.random((8, 2)).tolist():
            width = (0.015 + 0.02 * w) * size
            draw.rectangle(
                (x * size - width, 0, x * size + width, layer * size), fill=_shade((104, 76, 54), shade)
            )
    for x, y, r in rng.random((24, 3)).tolist():
        radius = (0.06 + 0.08 * r) * size
        cx, cy = x * size, y * 0.24 * size
        draw.ellipse(
            (cx - radius, cy - radius, cx + radius, cy + radius), fill=_shade((66, 136, 66), 0.8 + 0.4 * r)
        )
    _ground(draw, size, (78, 120, 58), (104, 92, 50), 0.64)


def _city(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator, time: str) -> None:
    x = 0.0
    while x < 1:
        width, top, grey = rng.uniform(0.12, 0.2), rng.uniform(0.08, 0.34), rng.uniform(0.75, 1.1)
        paint = ((176, 148, 132), (140, 152, 172), (188, 172, 146))[int(rng.integers(3))]
        draw.rectangle(
            (x * size, top * size, (x + width) * size, 0.66 * size), fill=_shade(paint, float(grey))
        )
        _windows(draw, size, rng, float(x), float(width), float(top), time)
        x += width
    draw.rectangle((0, 0.64 * size, size, 0.70 * size), fill=(182, 180, 176))
    _ground(draw, size, (92, 94, 102), (74, 76, 84), 0.70)
    for k in range(6):
        left = (k * 0.2 - 0.05) * size
        draw.rectangle((left, 0.84 * size, left + 0.1 * size, 0.855 * size), fill=(236, 226, 170))


def _windows(
    draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator, x: float, w: float, top: float, time: str
) -> None:
    lit, unlit = (255, 226, 130), (92, 116, 142)
    for row in np.arange(top + 0.035, 0.60, 0.07):
        for column in np.linspace(x + 0.025, x + w - 0.05, 3):
            on = rng.random() < 0.6
            fill = lit if on and time != "day" else unlit
            bright = 2.2 if on and time == "night" else 1.0  # a lit window is not dimmed by the night
            box = (column * size, row * size, (column + 0.025) * size, (row + 0.04) * size)
            draw.rectangle(box, fill=_shade(fill, bright))


def _room(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator, time: str) -> None:
    wall = ((226, 208, 176), (178, 204, 196), (216, 184, 184), (186, 196, 222))[int(rng.integers(4))]
    draw.rectangle((0, 0, size, 0.62 * size), fill=wall)
    for k in range(0, 20, 2):
        draw.rectangle((k * size / 20, 0, (k + 1) * size / 20, 0.62 * size), fill=_shade(wall, 0.96))
    x = rng.uniform(0.08, 0.6)
    frame = (x * size, 0.08 * size, (x + 0.3) * size, 0.40 * size)
    draw.rectangle(frame, fill=(250, 248, 242))
    inner = (frame[0] + 5, frame[1] + 5, frame[2] - 5, frame[3] - 5)
    draw.rectangle(inner, fill=(158, 208, 242))
    draw.line(
        ((frame[0] + frame[2]) / 2, frame[1], (frame[0] + frame[2]) / 2, frame[3]),
        fill=(250, 248, 242),
        width=5,
    )
    draw.rectangle((0, 0.60 * size, size, 0.63 * size), fill=(246, 242, 234))
    _ground(draw, size, (178, 126, 82), (148, 98, 60), 0.63)
    for k in range(1, 6):
        y = (0.63 + 0.37 * (k / 6) ** 1.4) * size
        draw.line((0, y, size, y), fill=(126, 84, 52), width=2)
    rug = ((176, 70, 70), (70, 104, 150), (96, 130, 92))[int(rng.integers(3))]
    draw.ellipse((0.12 * size, 0.74 * size, 0.88 * size, 0.98 * size), fill=rug)
    draw.ellipse((0.18 * size, 0.77 * size, 0.82 * size, 0.95 * size), fill=_shade(rug, 1.2))


def _sea(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator, time: str) -> None:
    _ground(draw, size, (48, 160, 206), (14, 74, 134), 0.0)
    for x in rng.random(4).tolist():
        left = x * size
        draw.polygon([(left, 0), (left + 0.06 * size, 0), (left + 0.22 * size, 0.8 * size), (left + 0.08 * size, 0.8 * size)],
                     fill=(96, 190, 222))  # fmt: skip
    _hills(draw, size, rng, 0.78, 0.08, (198, 182, 132))
    _ground(draw, size, (206, 190, 140), (178, 158, 108), 0.84)
    for x, h in rng.random((8, 2)).tolist():
        points = [(x * size + 5 * np.sin(k * 1.1), (0.80 - k * 0.03 * (0.6 + h)) * size) for k in range(7)]
        draw.line([(float(a), float(b)) for a, b in points], fill=(40, 140, 92), width=max(3, size // 50))
    for x, y, r in rng.random((16, 3)).tolist():
        radius = (0.006 + 0.01 * r) * size
        draw.ellipse((x * size - radius, y * 0.75 * size - radius, x * size + radius, y * 0.75 * size + radius),
                     outline=(206, 238, 250), width=2)  # fmt: skip


def _mountains(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator, time: str) -> None:
    for x, h in rng.random((5, 2)).tolist():
        cx, top, wide = x * size, (0.12 + 0.18 * h) * size, 0.30 * size
        draw.polygon(
            [(cx, top), (cx - wide, 0.64 * size), (cx + wide, 0.64 * size)],
            fill=_shade((118, 124, 146), 0.85 + 0.3 * h),
        )
        cap = 0.28 * (0.64 * size - top)
        slope = wide / (0.64 * size - top)
        draw.polygon([(cx, top), (cx - cap * slope, top + cap), (cx - 0.3 * cap * slope, top + 0.8 * cap),
                      (cx + 0.2 * cap * slope, top + 1.1 * cap), (cx + cap * slope, top + cap)], fill=(244, 248, 252))  # fmt: skip
    for x, s in rng.random((8, 2)).tolist():
        _pine(draw, x * size, 0.66 * size, (0.07 + 0.07 * s) * size, (54, 96, 78))
    _ground(draw, size, (132, 150, 104), (112, 116, 92), 0.64)
    for x, y in rng.random((10, 2)).tolist():
        w = size * 0.02 * (0.5 + y)
        cy = (0.68 + 0.3 * y) * size
        draw.ellipse((x * size - w, cy - 0.6 * w, x * size + w, cy + 0.6 * w), fill=(140, 140, 138))


def _moon(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator, time: str) -> None:
    draw.rectangle((0, 0, size, size), fill=(8, 8, 18))
    for x, y in rng.random((70, 2)).tolist():
        draw.ellipse(
            (x * size - 1, 0.6 * y * size - 1, x * size + 1.5, 0.6 * y * size + 1.5), fill=(250, 250, 240)
        )
    x, y, r = rng.uniform(0.15, 0.85) * size, rng.uniform(0.12, 0.26) * size, 0.08 * size
    draw.ellipse((x - r, y - r, x + r, y + r), fill=(70, 130, 214))
    draw.ellipse((x - 0.6 * r, y - 0.5 * r, x + 0.3 * r, y + 0.4 * r), fill=(92, 170, 100))
    _hills(draw, size, rng, 0.60, 0.05, (128, 128, 134))
    _ground(draw, size, (140, 140, 146), (182, 182, 186), 0.62)
    for cx, cy in rng.random((8, 2)).tolist():
        w = (0.03 + 0.05 * cy) * size
        fy = (0.66 + 0.32 * cy) * size
        draw.ellipse((cx * size - w, fy - 0.35 * w, cx * size + w, fy + 0.35 * w), fill=(118, 118, 124))
        draw.ellipse(
            (cx * size - 0.8 * w, fy - 0.2 * w, cx * size + 0.9 * w, fy + 0.34 * w), fill=(150, 150, 156)
        )


_PLACES: dict[str, Callable[[ImageDraw.ImageDraw, int, np.random.Generator, str], None]] = {
    "meadow": _meadow, "beach": _beach, "desert": _desert, "snow": _snow, "forest": _forest, "city": _city,
    "room": _room, "sea": _sea, "mountains": _mountains, "moon": _moon,
}  # fmt: skip
