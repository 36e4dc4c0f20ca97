"""How well a vision task of the storybook was done, exactly: all that it asks for is known."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from wordbrush.storybook.render import Mask, Rendered
from wordbrush.storybook.vision import (
    BOX_COLOUR,
    CONTOUR_COLOUR,
    SHAPE_COLOUR,
    SLOT_COLOURS,
    VisionEdit,
    contours,
)

_NEAR = 80
"""How far each channel of a pixel may be from a colour to count as it: autoencoders smear thin lines."""


def overlap(edit: VisionEdit, found: Rendered, edited: Image.Image) -> float | None:
    """Intersection over union, in [0, 1], of what was marked and what was to be marked.

    Of `detect` that of the boxes around the drawn colour and the thing, of `segment` that of the shapes, of
    `to_map` the mean over the things; of `contour` that of the lines, each with the pixels beside it, so that
    a line that is off by one still counts. None where an operation marks nothing, or the thing is hidden.

    Args:
        edit: What was asked for.
        found: Its scene, rendered.
        edited: The result, of any size.
    """
    height, width = found.masks.shape[1:]
    pixels = np.asarray(edited.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    if edit.operation in ("detect", "segment"):
        colour = BOX_COLOUR if edit.operation == "detect" else SHAPE_COLOUR
        drawn = _near(pixels, colour) & ~_near(np.asarray(found.image), colour)
        wanted = found.masks[edit.item or 0]
        if edit.operation == "detect":
            drawn, wanted = _filled(drawn), _filled(wanted)
        return _iou(drawn, wanted) if wanted.any() else None
    if edit.operation == "to_map":
        shares = [
            _iou(_nearest_slot(pixels) == number, mask) for number, mask in _slots(edit, found) if mask.any()
        ]
        return float(np.mean(shares)) if shares else None
    if edit.operation == "contour":
        drawn = _near(pixels, CONTOUR_COLOUR) & ~_near(np.asarray(found.image), CONTOUR_COLOUR)
        wanted = contours(found)
        return _iou(_widened(drawn), _widened(wanted)) if wanted.any() else None
    return None


def _widened(lines: Mask) -> Mask:
    return np.asarray(Image.fromarray(lines).convert("L").filter(ImageFilter.MaxFilter(3))) > 0


def _near(pixels: np.ndarray[Any, Any], colour: tuple[int, int, int]) -> Mask:
    return np.abs(pixels.astype(int) - colour).max(-1) <= _NEAR


def _filled(mask: Mask) -> Mask:
    """The smallest box around a mask."""
    box = Image.fromarray(mask).getbbox()
    filled = np.zeros_like(mask)
    if box is not None:
        left, top, right, bottom = box
        filled[top:bottom, left:right] = True
    return filled


def _iou(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


def _slots(edit: VisionEdit, found: Rendered) -> list[tuple[int, Mask]]:
    """The number of each item's colour, and where it is."""
    numbers = {slot: number for number, slot in enumerate(SLOT_COLOURS, 1)}
    return [(numbers[item.slot], mask) for item, mask in zip(edit.scene.items, found.masks, strict=True)]


def _nearest_slot(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of each pixel: 0 where it is nearest to black, else the number of the slot's colour."""
    colours = np.array([(0, 0, 0), *SLOT_COLOURS.values()])
    return np.square(pixels[..., None, :].astype(int) - colours).sum(-1).argmin(-1)
