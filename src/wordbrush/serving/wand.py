"""Masks: an area that was clicked, strokes of a brush, and a look at what may change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

TOLERANCE = 30
"""Difference of colour, in CIELAB, up to which a place belongs to the area of the point."""
_EDGE = 9
"""Difference to the neighbours that ends an area even of like colours."""
_SIDE = 224
"""The area is found at this size at most; its edge is smoothed on the way back."""
_VEIL = (139, 92, 246)


def click_area(picture: Image.Image, point: tuple[int, int], tolerance: float = TOLERANCE) -> Image.Image:
    """The area of about one colour around a point, with what it encloses: "L", the area white.

    Args:
        picture: Of any mode.
        point: x and y in pixels.
        tolerance: In units of CIELAB, about 2 of which an eye can tell apart.
    """
    small = picture.convert("RGB")
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    factor = small.width / picture.width, small.height / picture.height
    x = min(int(point[0] * factor[0]), small.width - 1)
    y = min(int(point[1] * factor[1]), small.height - 1)
    area = _filled(_connected(_alike(small, (x, y), tolerance), (x, y)))
    area = area.filter(ImageFilter.MaxFilter(5))  # the blended edge of a thing belongs to it
    soft = area.resize(picture.size, Image.Resampling.BICUBIC)
    return soft.point([0] * 128 + [255] * 128)


def draw_stroke(size: tuple[int, int], points: Sequence[tuple[float, float]], width: float) -> Image.Image:
    """A stroke of a round brush: "L", the stroke white.

    Args:
        size: Width and height of the picture.
        points: x and y, as fractions of them.
        width: Of the brush, in fractions of the short side.
    """
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    radius = max(1.0, width * min(size) / 2)
    places = [(x * size[0], y * size[1]) for x, y in points]
    draw.line(places, fill=255, width=max(1, round(2 * radius)))
    for x, y in places:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return mask


def add(mask: Image.Image | None, area: Image.Image) -> Image.Image:
    """A mask with an area more."""
    return area if mask is None else ImageChops.lighter(mask, area)


def remove(mask: Image.Image | None, area: Image.Image) -> Image.Image | None:
    """A mask without an area; None once nothing is left of it."""
    rest = None if mask is None else ImageChops.subtract(mask, area)
    return rest if rest is not None and rest.getbbox() else None


def share(mask: Image.Image) -> float:
    """The part of the picture that a mask lets change: 0 to 1."""
    return float(np.asarray(mask, dtype=np.float32).mean() / 255)


def veil(picture: Image.Image, mask: Image.Image | None) -> Image.Image:
    """The picture with what may change under a coloured veil."""
    rgb = picture.convert("RGB")
    if mask is None:
        return rgb
    return Image.composite(Image.blend(rgb, Image.new("RGB", rgb.size, _VEIL), 0.6), rgb, mask)


def _alike(picture: Image.Image, point: tuple[int, int], tolerance: float) -> Image.Image:
    """White where the colour is about that of the point's surroundings."""
    lab = np.asarray(picture.filter(ImageFilter.MedianFilter(3)).convert("LAB"), dtype=np.float32)
    # Pillow stores a* and b* as signed bytes, L* as 0 to 255.
    lightness, a, b = lab[..., 0] * (100 / 255), *(((lab[..., i] + 128) % 256) for i in (1, 2))
    values = np.stack([lightness, a, b], -1)
    x, y = point
    seed = np.median(values[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].reshape(-1, 3), axis=0)
    weighed = values * (0.7, 1, 1)  # shading changes lightness
    near = np.linalg.norm(weighed - seed * (0.7, 1, 1), axis=-1) <= tolerance
    across, down = np.gradient(weighed, axis=(0, 1))
    near &= np.linalg.norm(np.concatenate([across, down], -1), axis=-1) <= _EDGE
    near[y, x] = True
    return Image.fromarray((near * 255).astype(np.uint8))


def _connected(area: Image.Image, point: tuple[int, int]) -> Image.Image:
    """The part of a white area that holds a point."""
    marked = area.copy()
    ImageDraw.floodfill(marked, point, 128)
    return marked.point(_table(128, 255, 0))


def _filled(area: Image.Image) -> Image.Image:
    """With its holes: eyes and spots belong to the thing that was clicked."""
    framed = Image.new("L", (area.width + 2, area.height + 2))
    framed.paste(area, (1, 1))
    ImageDraw.floodfill(framed, (0, 0), 128)
    outside = framed.crop((1, 1, area.width + 1, area.height + 1))
    return outside.point(_table(128, 0, 255))


def _table(value: int, then: int, otherwise: int) -> list[int]:
    """For `Image.point`: one value becomes `then`."""
    return [then if known == value else otherwise for known in range(256)]
