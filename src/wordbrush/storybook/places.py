"""The ten places without things in them: ground, sky and light. Drawn at twice the size, then averaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from wordbrush.storybook.catalogue import INDOORS
from wordbrush.storybook.sprites import Array

Colour = tuple[int, int, int]

HORIZON = 0.56
"""Where the ground begins, as a fraction of the picture's height."""
GREY_SKY = np.array([0.66, 0.69, 0.73], dtype=np.float32)
"""The sky of bad weather by day."""
_LIGHT: dict[str, tuple[float, float, float]] = {
    "day": (1.0, 1.0, 1.0), "sunset": (1.06, 0.80, 0.66), "night": (0.40, 0.46, 0.74),
}  # fmt: skip
# The sky's colour at the top and at the horizon.
_SKY: dict[str, tuple[Colour, Colour]] = {
    "day": ((92, 164, 236), (198, 228, 250)), "sunset": ((84, 62, 130), (255, 158, 84)),
    "night": ((10, 14, 46), (42, 52, 104)),
}  # fmt: skip


def light(time: str) -> Array:
    """What the time of day does to colours: a factor for red, green and blue, (3,) float32."""
    return np.array(_LIGHT[time], dtype=np.float32)


def background(place: str, time: str, weather: str, seed: int, size: int) -> Array:
    """Draw the empty place under its sky and light: (size, size, 3) float32 in [0, 1]."""
    rng = np.random.default_rng((3, seed))
    sky = Image.new("RGB", (2 * size, 2 * size))
    if place not in INDOORS:
        _draw_sky(sky, time, weather, np.random.default_rng((5, seed)))
    ground = Image.new("RGBA", (2 * size, 2 * size))
    _PLACES[place](_Layer(ImageDraw.Draw(ground), 2 * size, rng, time))
    grain = 1 + 0.10 * (_smooth_noise(rng, size)[..., None] - 0.5)
    behind, front = _halve(sky), _halve(ground)
    paint, alpha = front[..., :3], front[..., 3:]
    lit = light(time if place not in INDOORS else "day")
    return (behind * (1 - alpha) + paint * grain * lit * alpha).astype(np.float32)


def _halve(picture: Image.Image) -> Array:
    small = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255.0


def _smooth_noise(rng: np.random.Generator, size: int) -> Array:
    """(size, size) in about [0, 1]: two octaves of interpolated noise."""
    total = np.zeros((size, size), dtype=np.float32)
    for cells, weight in ((5, 0.6), (15, 0.4)):
        grid = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        total += weight * np.asarray(grid.resize((size, size), Image.Resampling.BILINEAR))
    return total


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, max(0, round(c * factor))) for c in colour)
    return red, green, blue


@dataclass(frozen=True)
class _Layer:
    """What a place is drawn on, with the shapes that several places share. Lengths are in its pixels."""

    draw: ImageDraw.ImageDraw
    size: int
    rng: np.random.Generator
    time: str = "day"

    def disc(self, x: float, y: float, wide: float, high: float, fill: tuple[int, ...]) -> None:
        """An ellipse around (x, y), of half widths `wide` and `high`."""
        self.draw.ellipse((x - wide, y - high, x + wide, y + high), fill=fill)

    def hills(self, base: float, height: float, fill: Colour) -> None:
        """A rolling silhouette down to the bottom; `base` and `height` are fractions of the layer."""
        x = np.linspace(0, 1, 33)
        waves = sum(np.sin(2 * np.pi * (f * x + self.rng.random())) / f for f in (1.0, 2.3, 4.1))
        y = base - height * (0.5 + 0.3 * np.asarray(waves))
        size = self.size
        points = [(float(a) * size, float(b) * size) for a, b in zip(x, y, strict=True)]
        self.draw.polygon([*points, (size, size), (0, size)], fill=fill)

    def ground(self, far: Colour, near: Colour, start: float = HORIZON) -> None:
        """Rows from colour `far` at `start` (a fraction of the height) to `near` at the bottom."""
        first = int(start * self.size)
        for y in range(first, self.size, 2):
            t = (y - first) / max(1, self.size - first)
            row = tuple(round(a * (1 - t) + b * t) for a, b in zip(far, near, strict=True))
            self.draw.rectangle((0, y, self.size, y + 1), fill=row)

    def pine(self, x: float, foot: float, height: float, fill: Colour) -> None:
        """A fir tree of three triangles."""
        for k in range(3):
            top, wide = foot - height * (1 - 0.25 * k), height * (0.18 + 0.09 * k)
            points = [(x, top), (x - wide, top + 0.45 * height), (x + wide, top + 0.45 * height)]
            self.draw.polygon(points, fill=fill)

    def stars(self, places: list[tuple[float, float]], fill: Colour) -> None:
        """A glowing dot at each place, as large as an f8 latent can keep."""
        r, (red, green, blue) = 0.012 * self.size, fill
        for x, y in places:
            for grow, strength in ((1.6, 70), (1.0, 230)):
                self.disc(x, y, grow * r, grow * r, (red, green, blue, strength))


def _draw_sky(picture: Image.Image, time: str, weather: str, rng: np.random.Generator) -> None:
    """Everything is drawn from `rng` whatever the time is: an edit of the time leaves the clouds in place."""
    size = picture.width
    picture.paste(_gradient(size, *_sky_colours(time, weather)))
    x, y = rng.uniform(0.12, 0.88) * size, rng.uniform(0.1, 0.22) * size
    clouds = [(rng.uniform(0, 1), rng.uniform(0.06, 0.34), rng.uniform(0.05, 0.11)) for _ in range(3)]
    stars = rng.random((14, 2)) * (size, size * HORIZON)
    layer = _Layer(ImageDraw.Draw(picture, "RGBA"), size, rng)
    if time == "night":
        layer.stars(stars.tolist(), (255, 255, 230))
        _crescent(layer, x, y)
        return
    _sun(layer, x, y if time == "day" else 0.42 * size, (255, 244, 176) if time == "day" else (255, 214, 120))
    for cloud in clouds:
        _cloud(layer, *cloud, (255, 255, 255, 215) if time == "day" else (255, 190, 150, 170))


def _sky_colours(time: str, weather: str) -> tuple[Array, Array]:
    top, bottom = (np.array(end) for end in _SKY[time])
    if weather == "clear":
        return top, bottom
    grey = 0.65 * (GREY_SKY * light(time) * 255)
    return np.trunc(0.35 * top + grey), np.trunc(0.35 * bottom + grey)


def _gradient(size: int, top: Array, bottom: Array) -> Image.Image:
    steps = np.clip(np.arange(size, dtype=np.float32) / (size * HORIZON), 0, 1)[:, None]
    column = top * (1 - steps) + bottom * steps
    return Image.fromarray(np.repeat(column[:, None].round().astype(np.uint8), size, 1))


def _crescent(layer: _Layer, x: float, y: float) -> None:
    r = 0.055 * layer.size
    layer.disc(x, y, r, r, (250, 246, 214))
    layer.draw.ellipse((x - 1.5 * r, y - 1.25 * r, x + 0.5 * r, y + 0.75 * r), fill=(18, 22, 58))


def _sun(layer: _Layer, x: float, y: float, colour: Colour) -> None:
    r = 0.055 * layer.size
    for grow, strength in ((2.0, 50), (1.5, 80), (1.0, 255)):
        layer.disc(x, y, grow * r, grow * r, (*colour, strength))


def _cloud(layer: _Layer, x: float, y: float, extent: float, fill: tuple[int, ...]) -> None:
    radius = extent * layer.size
    for k in (-1.1, -0.4, 0.4, 1.1):
        wide, high = radius * (1 - 0.25 * abs(k)), radius * 0.55 * (1.2 - 0.4 * abs(k))
        layer.disc(x * layer.size + k * extent * layer.size, y * layer.size, wide, high, fill)


def _meadow(layer: _Layer) -> None:
    layer.hills(0.54, 0.12, (96, 160, 92))
    layer.hills(0.60, 0.07, (116, 184, 84))
    layer.ground((128, 196, 84), (84, 160, 60), 0.6)
    petals = ((250, 240, 120), (250, 160, 180), (245, 245, 250))
    for x, y, k in layer.rng.random((12, 3)).tolist():
        r = layer.size * 0.008 * (1 + 1.5 * y)
        layer.disc(x * layer.size, (0.64 + 0.35 * y) * layer.size, r, r, petals[int(3 * k)])


def _beach(layer: _Layer) -> None:
    layer.ground((52, 138, 190), (86, 190, 206), 0.48)
    layer.hills(0.70, 0.03, (240, 248, 250))
    layer.hills(0.715, 0.03, (226, 196, 138))
    layer.ground((236, 208, 150), (218, 180, 118), 0.73)
    size = layer.size
    for x, y in layer.rng.random((9, 2)).tolist():
        wave = (0.50 + 0.15 * y) * size
        layer.draw.line((x * size, wave, x * size + 0.1 * size, wave), fill=(190, 226, 240), width=2)


def _desert(layer: _Layer) -> None:
    size = layer.size
    for x, w in layer.rng.random((2, 2)).tolist():
        left, width, top = x * size, (0.12 + 0.12 * w) * size, (0.36 + 0.08 * w) * size
        ridge = [(left + 0.15 * width, top), (left + 0.85 * width, top)]
        layer.draw.polygon([(left, 0.6 * size), *ridge, (left + width, 0.6 * size)], fill=(186, 104, 66))
    layer.hills(0.58, 0.08, (222, 160, 92))
    layer.hills(0.68, 0.07, (234, 178, 106))
    layer.hills(0.84, 0.06, (242, 194, 122))


def _snow(layer: _Layer) -> None:
    layer.hills(0.52, 0.12, (198, 214, 236))
    for x, s in layer.rng.random((9, 2)).tolist():
        layer.pine(x * layer.size, 0.60 * layer.size, (0.08 + 0.08 * s) * layer.size, (92, 128, 140))
    layer.hills(0.62, 0.05, (228, 236, 248))
    layer.ground((236, 242, 250), (250, 252, 255), 0.64)


def _forest(layer: _Layer) -> None:
    size = layer.size
    layer.draw.rectangle((0, 0.18 * size, size, size), fill=(58, 110, 74))
    for foot, shade in ((0.62, 0.75), (0.66, 1.0)):
        for x, w in layer.rng.random((8, 2)).tolist():
            width = (0.015 + 0.02 * w) * size
            trunk = (x * size - width, 0, x * size + width, foot * size)
            layer.draw.rectangle(trunk, fill=_shade((104, 76, 54), shade))
    for x, y, r in layer.rng.random((24, 3)).tolist():
        radius = (0.06 + 0.08 * r) * size
        layer.disc(x * size, y * 0.24 * size, radius, radius, _shade((66, 136, 66), 0.8 + 0.4 * r))
    layer.ground((78, 120, 58), (104, 92, 50), 0.64)


def _city(layer: _Layer) -> None:
    size, rng = layer.size, layer.rng
    x = 0.0
    while x < 1:
        width, top, grey = rng.uniform(0.12, 0.2), rng.uniform(0.08, 0.34), rng.uniform(0.75, 1.1)
        paint = ((176, 148, 132), (140, 152, 172), (188, 172, 146))[int(rng.integers(3))]
        house = (x * size, top * size, (x + width) * size, 0.66 * size)
        layer.draw.rectangle(house, fill=_shade(paint, grey))
        _windows(layer, x, width, top)
        x += width
    layer.draw.rectangle((0, 0.64 * size, size, 0.70 * size), fill=(182, 180, 176))
    layer.ground((92, 94, 102), (74, 76, 84), 0.70)
    for k in range(6):
        left = (k * 0.2 - 0.05) * size
        layer.draw.rectangle((left, 0.84 * size, left + 0.1 * size, 0.855 * size), fill=(236, 226, 170))


def _windows(layer: _Layer, x: float, width: float, top: float) -> None:
    size, time = layer.size, layer.time
    for row in np.arange(top + 0.04, 0.58, 0.11):
        for column in np.linspace(x + 0.022, x + width - 0.062, 2):
            on = layer.rng.random() < 0.6
            fill = (255, 226, 130) if on and time != "day" else (92, 116, 142)
            bright = 2.2 if on and time == "night" else 1.0  # a lit window is not dimmed by the night
            box = (column * size, row * size, (column + 0.04) * size, (row + 0.065) * size)
            layer.draw.rectangle(box, fill=_shade(fill, bright))


def _room(layer: _Layer) -> None:
    size, draw = layer.size, layer.draw
    wall = ((226, 208, 176), (178, 204, 196), (216, 184, 184), (186, 196, 222))[int(layer.rng.integers(4))]
    draw.rectangle((0, 0, size, 0.62 * size), fill=wall)
    for k in range(0, 20, 2):
        draw.rectangle((k * size / 20, 0, (k + 1) * size / 20, 0.62 * size), fill=_shade(wall, 0.96))
    _window_frame(layer, layer.rng.uniform(0.08, 0.6))
    draw.rectangle((0, 0.60 * size, size, 0.63 * size), fill=(246, 242, 234))
    layer.ground((178, 126, 82), (148, 98, 60), 0.63)
    for k in range(1, 6):
        y = (0.63 + 0.37 * (k / 6) ** 1.4) * size
        draw.line((0, y, size, y), fill=(126, 84, 52), width=2)
    rug = ((176, 70, 70), (70, 104, 150), (96, 130, 92))[int(layer.rng.integers(3))]
    draw.ellipse((0.12 * size, 0.74 * size, 0.88 * size, 0.98 * size), fill=rug)
    draw.ellipse((0.18 * size, 0.77 * size, 0.82 * size, 0.95 * size), fill=_shade(rug, 1.2))


def _window_frame(layer: _Layer, x: float) -> None:
    white = (250, 248, 242)
    left, top, right, bottom = (part * layer.size for part in (x, 0.08, x + 0.3, 0.40))
    layer.draw.rectangle((left, top, right, bottom), fill=white)
    layer.draw.rectangle((left + 5, top + 5, right - 5, bottom - 5), fill=(158, 208, 242))
    layer.draw.line(((left + right) / 2, top, (left + right) / 2, bottom), fill=white, width=5)


def _sea(layer: _Layer) -> None:
    size, rng = layer.size, layer.rng
    layer.ground((48, 160, 206), (14, 74, 134), 0.0)
    for x in rng.random(4).tolist():
        left = x * size
        ray = [
            (left, 0),
            (left + 0.06 * size, 0),
            (left + 0.22 * size, 0.8 * size),
            (left + 0.08 * size, 0.8 * size),
        ]
        layer.draw.polygon(ray, fill=(96, 190, 222))
    layer.hills(0.78, 0.08, (198, 182, 132))
    layer.ground((206, 190, 140), (178, 158, 108), 0.84)
    for x, h in rng.random((8, 2)).tolist():
        bends = [(x * size + 5 * np.sin(k * 1.1), (0.80 - k * 0.03 * (0.6 + h)) * size) for k in range(7)]
        weed = [(float(a), float(b)) for a, b in bends]
        layer.draw.line(weed, fill=(40, 140, 92), width=max(3, size // 50))
    for x, y, r in rng.random((7, 3)).tolist():
        radius = (0.014 + 0.012 * r) * size
        layer.disc(x * size, y * 0.75 * size, radius, radius, (150, 214, 238))


def _mountains(layer: _Layer) -> None:
    size, rng = layer.size, layer.rng
    for x, h in rng.random((5, 2)).tolist():
        _peak(layer, x * size, (0.12 + 0.18 * h) * size, _shade((118, 124, 146), 0.85 + 0.3 * h))
    for x, s in rng.random((8, 2)).tolist():
        layer.pine(x * size, 0.66 * size, (0.07 + 0.07 * s) * size, (54, 96, 78))
    layer.ground((132, 150, 104), (112, 116, 92), 0.64)
    for x, y in rng.random((10, 2)).tolist():
        wide = size * 0.02 * (0.5 + y)
        layer.disc(x * size, (0.68 + 0.3 * y) * size, wide, 0.6 * wide, (140, 140, 138))


def _peak(layer: _Layer, x: float, top: float, fill: Colour) -> None:
    """A triangle with a cap of snow."""
    foot, wide = 0.64 * layer.size, 0.30 * layer.size
    layer.draw.polygon([(x, top), (x - wide, foot), (x + wide, foot)], fill=fill)
    cap = 0.28 * (foot - top)
    slope = wide / (foot - top)
    edge = [(x - cap * slope, top + cap), (x - 0.3 * cap * slope, top + 0.8 * cap),
            (x + 0.2 * cap * slope, top + 1.1 * cap), (x + cap * slope, top + cap)]  # fmt: skip
    layer.draw.polygon([(x, top), *edge], fill=(244, 248, 252))


def _moon(layer: _Layer) -> None:
    size, rng = layer.size, layer.rng
    layer.draw.rectangle((0, 0, size, size), fill=(8, 8, 18))
    layer.stars([(x * size, 0.6 * y * size) for x, y in rng.random((16, 2)).tolist()], (250, 250, 240))
    x, y, r = rng.uniform(0.15, 0.85) * size, rng.uniform(0.12, 0.26) * size, 0.08 * size
    layer.disc(x, y, r, r, (70, 130, 214))
    layer.draw.ellipse((x - 0.6 * r, y - 0.5 * r, x + 0.3 * r, y + 0.4 * r), fill=(92, 170, 100))
    layer.hills(0.60, 0.05, (128, 128, 134))
    layer.ground((140, 140, 146), (182, 182, 186), 0.62)
    for x, near in rng.random((8, 2)).tolist():
        _crater(layer, x * size, (0.66 + 0.32 * near) * size, (0.03 + 0.05 * near) * size)


def _crater(layer: _Layer, x: float, y: float, wide: float) -> None:
    layer.disc(x, y, wide, 0.35 * wide, (118, 118, 124))
    floor = (x - 0.8 * wide, y - 0.2 * wide, x + 0.9 * wide, y + 0.34 * wide)
    layer.draw.ellipse(floor, fill=(150, 150, 156))


_PLACES: dict[str, Callable[[_Layer], None]] = {
    "meadow": _meadow, "beach": _beach, "desert": _desert, "snow": _snow, "forest": _forest, "city": _city,
    "room": _room, "sea": _sea, "mountains": _mountains, "moon": _moon,
}  # fmt: skip
