"""A small grid over the two guidance scales, the best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from PIL import Image

from wordbrush.evaluation.curves import DIRECTION, KEPT
from wordbrush.evaluation.guidance_grid import Grid, make_grid
from wordbrush.evaluation.judges import Judge
from wordbrush.progress import Show, silent
from wordbrush.types import Editor, EditRequest

_TEXT_FACTORS = (0.6, 1.0, 1.6)
_IMAGE_STEPS = (-0.3, 0.0, 0.6)
_SOMETHING = "a picture"
"""Stands for the picture's caption where nobody gave one."""


@dataclass(frozen=True)
class Found:
    """One cell of the grid."""

    picture: Image.Image
    text_scale: float
    image_scale: float
    direction: float
    kept: float

    @property
    def label(self) -> str:
        """Its scales and scores in words."""
        return (
            f"text {self.text_scale:g}, image {self.image_scale:g} · "
            f"followed {self.direction:.2f}, kept {self.kept:.2f}"
        )


def scales_around(text_scale: float, image_scale: float) -> tuple[list[float], list[float]]:
    """Three values about each scale."""
    texts = [round(text_scale * factor, 1) for factor in _TEXT_FACTORS]
    images = [round(max(0.0, image_scale + step), 2) for step in _IMAGE_STEPS]
    return list(dict.fromkeys(texts)), list(dict.fromkeys(images))


def explore(
    editor: Editor, request: EditRequest, judges: Sequence[Judge], show: Show = silent
) -> list[Found]:
    """Edit under nine pairs of scales with one seed, and rank the results.

    What counts is how well CLIP sees the picture change as the captions do, times how like the picture the
    result is to it. Without captions, the instruction stands for that of the result.

    Args:
        editor: Of a method with both scales.
        request: With a seed; its captions are those that the judges read.
        judges: Give CLIP's scores.
        show: Told before each edit; an exception raised in it ends the exploring.

    Raises:
        UsageError: The method lacks one of the scales.
    """
    settings = editor.settings
    around = scales_around(getattr(settings, "text_scale", 0.0), getattr(settings, "image_scale", 0.0))
    return rank(make_grid(editor, _captioned(request), *around, judges, show))


def rank(grid: Grid) -> list[Found]:
    """The cells of a grid, the best first: by what was followed times what was kept."""
    pairs = product(grid.text_scales, grid.image_scales)
    cells = [
        Found(picture, text, image, scores[DIRECTION], scores[KEPT])
        for (text, image), picture, scores in zip(pairs, grid.pictures, grid.scores, strict=True)
    ]
    return sorted(cells, key=lambda cell: max(cell.direction, 0) * max(cell.kept, 0), reverse=True)


def _captioned(request: EditRequest) -> EditRequest:
    source = request.source_caption.strip() or _SOMETHING
    return replace(
        request, source_caption=source, target_caption=request.target_caption.strip() or request.instruction
    )
