"""One picture under every pair of the two guidance scales (InstructPix2Pix's figure 4), with scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from wordbrush.errors import UsageError
from wordbrush.evaluation.curves import DIRECTION, KEPT
from wordbrush.evaluation.judges import Judge, Sample, judge_all
from wordbrush.evaluation.kept_pictures import KeptPictures, paint_all
from wordbrush.evaluation.page import page, picture_grid, section, table
from wordbrush.evaluation.plots import LABELS
from wordbrush.outputs import write_texts
from wordbrush.progress import Show, silent
from wordbrush.types import Editor, EditRequest

_SIDE = 256
_SCALES = ("text_scale", "image_scale")


@dataclass(frozen=True)
class Grid:
    """Results, text scale by text scale.

    Attributes:
        request: What was edited.
        text_scales: Of the rows.
        image_scales: Of the columns.
        pictures: Row by row.
        scores: Of each picture.
    """

    request: EditRequest
    text_scales: Sequence[float]
    image_scales: Sequence[float]
    pictures: list[Image.Image]
    scores: list[dict[str, float]]

    def rows(self, cells: Sequence[Any]) -> list[tuple[str, list[Any]]]:
        """One of `pictures` or of what was made of `scores`, by the name of its text scale."""
        width = len(self.image_scales)
        return [
            (f"text scale {scale:g}", list(cells[i * width : (i + 1) * width]))
            for i, scale in enumerate(self.text_scales)
        ]


def check_scales(editor: Editor) -> None:
    """Raise `UsageError` unless the editor's method has both scales."""
    if missing := [name for name in _SCALES if not hasattr(editor.settings, name)]:
        raise UsageError(f"this needs a method with {' and '.join(_SCALES)}; this one has no {missing[0]}")


def make_grid(
    editor: Editor,
    request: EditRequest,
    text_scales: Sequence[float],
    image_scales: Sequence[float],
    judges: Sequence[Judge],
    show: Show = silent,
    kept: KeptPictures | None = None,
) -> Grid:
    """Edit with one seed under every pair of scales.

    Args:
        editor: Of a method with both scales.
        request: What to edit.
        text_scales: Of the rows.
        image_scales: Of the columns.
        judges: Compare each result with the picture before.
        show: Told how far it is.
        kept: Where finished pictures are kept; what is there already is not made again.

    Raises:
        UsageError: The editor's method lacks one of the scales, or a scale is out of range.
    """
    check_scales(editor)
    pairs = list(product(text_scales, image_scales))
    editors = [editor.with_settings(text_scale=text, image_scale=image) for text, image in pairs]

    def paint(numbers: Sequence[int]) -> list[Image.Image]:
        return [editors[k].edit(request).images[0] for k in numbers]

    keep = kept.make if kept else paint_all
    pictures = keep("cell", len(pairs), paint, show, at_once=1)
    samples = [
        Sample(picture, request.image, request.source_caption, request.target_caption) for picture in pictures
    ]
    return Grid(request, text_scales, image_scales, pictures, judge_all(judges, samples))


def write_grid(grid: Grid, about: dict[str, Any], folder: Path) -> None:
    """Write report.html and results.json.

    Raises:
        OutputError: The folder cannot be written.
    """
    pairs = product(grid.text_scales, grid.image_scales)
    cells = [
        {"text_scale": text, "image_scale": image} | scores
        for (text, image), scores in zip(pairs, grid.scores, strict=True)
    ]
    written = {
        "results.json": json.dumps({"about": about, "cells": cells}, indent=1) + "\n",
        "report.html": _report(grid, about),
    }
    write_texts(folder, written)


def _report(grid: Grid, about: dict[str, Any]) -> str:
    columns = [f"image scale {scale:g}" for scale in grid.image_scales]
    before = picture_grid([], [("before", [grid.request.image])], _SIDE, "The picture that was edited.")
    shown = picture_grid(columns, grid.rows(grid.pictures), _SIDE, "Every result has the same seed.")
    names = [name for name in (KEPT, DIRECTION, "clip_sim_1", "l1", "efficientnet_lite0_distance")
             if name in grid.scores[0]]  # fmt: skip
    tables = [
        table(["", *columns], [[row, *cells] for row, cells in grid.rows(_column(grid, name))], LABELS[name])
        for name in names
    ]
    clip = next((judge["name"] for judge in about["judges"] if "inputs" in judge), None)
    abstract = f"One picture under every pair of the two guidance scales. Model: {about['model']['name']}."
    return page(
        f"“{grid.request.instruction}”",
        abstract + (f" CLIP: {clip}." if clip else ""),
        [section("Pictures", before, shown), section("Scores against the picture before", *tables)],
    )


def _column(grid: Grid, name: str) -> list[str]:
    return [f"{scores[name]:.3f}" for scores in grid.scores]
