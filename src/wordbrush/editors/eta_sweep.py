"""Imagic over several eta and seeds, tuned once: results ranked by CLIP, and shown as a strip."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from wordbrush.editors.imagic import Imagic
from wordbrush.errors import UsageError
from wordbrush.images import Picture
from wordbrush.outputs import RESULTS, make_folder
from wordbrush.perception.clip import Clip, pair_similarities
from wordbrush.provenance import atomic_file, save_image
from wordbrush.sheet import Cell, draw_sheet
from wordbrush.types import EditRequest, OnStep, StepInfo


@dataclass(frozen=True, eq=False)
class Candidate:
    """One result, and what CLIP says of it."""

    eta: float
    seed: int
    image: Image.Image
    settings: dict[str, Any]
    """JSON values that reproduce it."""
    direction: float
    """Whether the picture changed as the captions did, in [-1, 1]."""
    preservation: float
    """Similarity to the picture before, in [-1, 1]."""

    @property
    def score(self) -> float:
        """Direction times preservation: high where both are, 0 where nothing or the wrong thing was done."""
        return max(self.direction, 0.0) * max(self.preservation, 0.0)

    @property
    def name(self) -> str:
        """Of its file."""
        return f"eta-{self.eta:g}-seed-{self.seed}.png"


@dataclass(frozen=True, eq=False)
class Sweep:
    """All results of a picture."""

    original: Image.Image
    candidates: Sequence[Candidate]
    warnings: Sequence[str] = ()

    @property
    def ranked(self) -> list[Candidate]:
        """The best one first."""
        return sorted(self.candidates, key=lambda candidate: candidate.score, reverse=True)

    def strip(self) -> Image.Image:
        """A row for each seed: the picture, then its edits by growing eta; the best of all is framed."""
        best = self.ranked[0]
        rows: dict[int, list[Cell]] = {}
        for candidate in sorted(self.candidates, key=lambda candidate: (candidate.seed, candidate.eta)):
            row = rows.setdefault(candidate.seed, [Cell(self.original, f"seed {candidate.seed}")])
            label = f"{candidate.eta:g}: {candidate.direction:.2f}, {candidate.preservation:.2f}"
            row.append(Cell(candidate.image, label, framed=candidate is best))
        return draw_sheet(list(rows.values()))

    def write(self, folder: Path, source: Picture) -> None:
        """Write every candidate, strip.png, and last results.json, the best one first.

        Raises:
            OutputError: the folder cannot be written.
        """
        make_folder(folder)
        for candidate in self.candidates:
            path = folder / candidate.name
            save_image(candidate.image, path, settings=candidate.settings, source=source, overwrite=True)
        with atomic_file(folder / "strip.png", overwrite=True) as file:
            self.strip().save(file, "PNG")
        rows = [
            {"file": one.name, "eta": one.eta, "seed": one.seed, "score": round(one.score, 5),
             "direction": round(one.direction, 5), "preservation": round(one.preservation, 5)}
            for one in self.ranked
        ]  # fmt: skip
        with atomic_file(folder / RESULTS, overwrite=True) as file:
            file.write((json.dumps(rows, indent=1) + "\n").encode())


def parse_etas(text: str) -> list[float]:
    """The numbers of a list like "0.4,0.6", each once and in order; a `UsageError` where it is none."""
    try:
        return sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"{text!r} is not a list of numbers with commas between") from None


def sweep_eta(
    editor: Imagic,
    request: EditRequest,
    clip: Clip,
    etas: Sequence[float],
    *,
    on_step: OnStep | None = None,
) -> Sweep:
    """Edit with every eta and each of the request's variations.

    Args:
        editor: its own eta has no part in it.
        request: with captions of the picture and of the result.
        clip: ranks the results.
        etas: within the range of the setting.
        on_step: as in `Editor.edit`, counted over all.

    Raises:
        UsageError: no eta, one out of range, or a caption is missing.
    """
    if not etas:
        raise UsageError("a sweep needs at least one eta")
    if not request.source_caption.strip():
        raise UsageError("ranking edits needs source caption, which is empty")
    editors = [editor.with_settings(eta=eta) for eta in etas]  # all are checked before any work
    found: list[tuple[float, int, Image.Image, dict[str, Any]]] = []
    warnings: dict[str, None] = {}
    for number, (eta, one) in enumerate(zip(etas, editors, strict=True)):
        result = one.edit(request, on_step=_part(on_step, number, len(etas)))
        warnings |= dict.fromkeys(result.warnings)
        request = dataclasses.replace(
            request, seed=result.seeds[0], target_caption=result.settings["target_caption"]
        )
        for seed, image in zip(result.seeds, result.images, strict=True):
            found.append((eta, seed, image, result.settings | {"seed": seed, "num_variations": 1}))
    scores = _scores(clip, request, [image for _, _, image, _ in found])
    candidates = [Candidate(*one, *score) for one, score in zip(found, scores, strict=True)]
    return Sweep(request.image, candidates, list(warnings))


def _scores(clip: Clip, request: EditRequest, edited: Sequence[Image.Image]) -> list[tuple[float, float]]:
    """Direction and preservation of each."""
    count = len(edited)
    source = clip.embed_images([request.image]).expand(count, -1)
    before, after = clip.embed_texts([request.source_caption, request.target_caption]).split(1)
    found = pair_similarities(
        source, clip.embed_images(edited), before.expand(count, -1), after.expand(count, -1)
    )
    both = torch.stack([found["clip_sim_dir"], found["clip_sim_image"]], 1)
    return [(float(direction), float(kept)) for direction, kept in both.tolist()]


def _part(on_step: OnStep | None, number: int, count: int) -> OnStep | None:
    if on_step is None:
        return None

    def report(info: StepInfo) -> None:
        total = info.num_steps
        on_step(dataclasses.replace(info, step=number * total + info.step, num_steps=count * total))

    return report
