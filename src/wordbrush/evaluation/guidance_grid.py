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
from wordbrush.evaluation.curves import DIRECTION, KEPT, save_jpeg
from wordbrush.evaluation.judges import Judge, Sample, judge_all
from wordbrush.evaluation.page import page, picture_grid, section, table
from wordbrush.evaluation.plots import LABELS
from wordbrush.outputs import make_folder
from wordbrush.progress import Show, silent
from wordbrush.provenance import atomic_file
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


def make_grid(
    editor: Editor,
    request: EditRequest,
    text_scales: Sequence[float],
    image_scales: Sequence[float],
    judges: Sequence[Judge],
    show: Show = silent,
) -> Grid:
    """Edit with one seed under every pair of scales.

    Raises:
        UsageError: The editor's method lacks one of the scales, or a scale is out of range.
    """
    if missing := [name for name in _SCALES if not hasattr(editor.settings, name)]:
        raise UsageError(f"this needs a method with {' and '.join(_SCALES)}; this one has no {missing[0]}")
    pictures: list[Image.Image] = []
    pairs = list(product(text_scales, image_scales))
    for text, image in pairs:
        show(f"text scale {text:g}, image scale {image:g}", len(pictures), len(pairs))
        pictures += editor.with_settings(text_scale=text, image_scale=image).edit(request).images
    samples = [
        Sample(picture, request.image, request.source_caption, request.target_caption) for picture in pictures
    ]
    return Grid(request, text_scales, image_scales, pictures, judge_all(judges, samples))


def write_grid(grid: Grid, about: dict[str, Any], folder: Path) -> None:
    """Write report.html, results.json and the pictures.

    Raises:
        OutputError: The folder cannot be written.
    """
    make_folder(folder)
    pairs = list(product(grid.text_scales, grid.image_scales))
    for (text, image), picture in zip(pairs, grid.pictures, strict=True):
        save_jpeg(picture, folder / "pictures" / f"text-{text:g}-image-{image:g}.jpg")
    cells = [
        {"text_scale": text, "image_scale": image} | scores
        for (text, image), scores in zip(pairs, grid.scores, strict=True)
    ]
    texts = ("instruction", "source_caption", "target_caption")
    asked = {name: getattr(grid.request, name) for name in texts}
    written = {
        "results.json": json.dumps({"about": about | asked, "cells": cells}, indent=1) + "\n",
        "report.html": _report(grid, about),
    }
    for name, text in written.items():
        with atomic_file(folder / name, overwrite=True) as file:
            file.write(text.encode())


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
    abstract = f"The two guidance scales trade one against the other. Model: {about['model']['name']}."
    return page(
        f"“{grid.request.instruction}”",
        abstract + (f" CLIP: {clip}." if clip else ""),
        [section("Pictures", before, shown), section("Scores against the picture before", *tables)],
    )


def _column(grid: Grid, name: str) -> list[str]:
    return [f"{scores[name]:.3f}" for scores in grid.scores]
