"""Edits of photographs that no training saw, scikit-image's: judged by their exact results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from wordbrush.evaluation.base_models import distances, load_photographs
from wordbrush.evaluation.metrics import Mean
from wordbrush.perception.features import EfficientNetLite0
from wordbrush.storybook.edits import PHOTO_WEIGHTS, EditSample, draw_photo_edit, render_edit
from wordbrush.storybook.photographs import PhotoLibrary
from wordbrush.storybook.render import Renderer
from wordbrush.storybook.scenes import scene_rng
from wordbrush.storybook.sprites import SpriteLibrary

OPERATIONS = tuple(PHOTO_WEIGHTS)
"""Those that change the whole picture: what is in a photograph is not known."""
_SIDE = 512
_FIRST = 900_000_000
"""Seed of the first edit, away from those of scenes."""


def draw_photograph_edits(size: int, count: int) -> list[EditSample]:
    """`count` edits of each operation, of crops at `size` pixels; none if scikit-image is not installed."""
    photographs = load_photographs(_SIDE)
    if not photographs:
        return []
    render = Renderer(SpriteLibrary.load(), PhotoLibrary(photographs), size)
    numbers = range(_FIRST, _FIRST + count)
    edits = [
        draw_photo_edit(scene_rng("test", number), "test", len(photographs), operation)
        for operation in OPERATIONS
        for number in numbers
    ]
    return [render_edit(render, edit) for edit in edits]


def score_photographs(
    samples: Sequence[EditSample], pictures: Sequence[Image.Image], features: EfficientNetLite0
) -> dict[str, Any]:
    """The distances to the exact results: operation, or "all" -> measure -> mean and interval."""
    rows = distances(features, pictures, [sample.after for sample in samples])
    found: dict[str, Any] = {}
    for group in ("all", *OPERATIONS):
        mine = [row for row, s in zip(rows, samples, strict=True) if group in ("all", s.edit.operation)]
        means = {name: Mean.of([row[name] for row in mine]) for name in rows[0]}
        found[group] = {name: mean and mean.as_json() for name, mean in means.items()}
    return found
