"""`wordbrush evaluate inversions`: how well pictures come back from the noise that they are traced to.

Null-text inversion's figure (2211.09794): PSNR of the reconstruction, between that of plain DDIM inversion
under the same guidance and what the autoencoder lets through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import wordbrush
from wordbrush.editors.latent_editor import LatentEditor
from wordbrush.evaluation.base_models import round_trip
from wordbrush.evaluation.examples import Example, digest_of
from wordbrush.evaluation.identity import identity
from wordbrush.evaluation.journal import Journal
from wordbrush.evaluation.judges import PixelJudge, Sample
from wordbrush.evaluation.kept_pictures import open_jpeg, save_jpeg, shown_path
from wordbrush.evaluation.metrics import Mean
from wordbrush.evaluation.page import page, picture_grid, section, table
from wordbrush.evaluation.report import markdown_table, to_json
from wordbrush.outputs import write_texts
from wordbrush.progress import Show, silent
from wordbrush.types import EditRequest

_SHOWN = 6
_METHOD = "prompt-to-prompt"
_ROUND_TRIP = "the autoencoder's round trip (ceiling)"


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        examples: Their pictures and first captions are used.
        model: A text-to-image checkpoint, or one with such a U-Net.
        text_scales: Of the guidance under which pictures are to come back.
        steps: Of the inversion, and of the way back.
        null_text_steps: Most optimiser steps, at each of those.
        device: Where it runs.
        dtype: Its precision.
    """

    examples: Sequence[Example]
    model: str = "storybook"
    text_scales: Sequence[float] = (1.0, 3.0, 7.5)
    steps: int = 50
    null_text_steps: int = 10
    device: str = "auto"
    dtype: str = "auto"

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """Label -> settings; without guidance null texts have no say."""
        found: dict[str, dict[str, Any]] = {}
        for scale in self.text_scales:
            found[f"DDIM, guidance {scale:g}"] = {"text_scale": scale, "null_text_steps": 0}
        for scale in self.text_scales:
            if scale != 1:
                settings = {"text_scale": scale, "null_text_steps": self.null_text_steps}
                found[f"null texts, guidance {scale:g}"] = settings
        return found

    def about(self) -> dict[str, Any]:
        """All that decides the numbers."""
        examples = {"num": len(self.examples), "sha256": digest_of(self.examples)}
        return {
            "model": identity(self.model),
            "examples": examples,
            "steps": self.steps,
            "arms": self.arms,
            "dtype": self.dtype,
        }


def run(plan: Plan, folder: Path, show: Show = silent) -> str:
    """Measure what is missing, and write results.json, table.md and report.html.

    Returns:
        The table.

    Raises:
        UsageError: The folder holds another evaluation.
        ModelError: The model is missing, or no text-to-image model.
        OutputError: The folder cannot be written.
    """
    journal = measure(plan, folder, show)
    psnr = {label: [row["psnr"] for row in journal.rows if row["arm"] == label] for label in _labels(plan)}
    means = {label: mean for label, values in psnr.items() if (mean := Mean.of(values))}
    rows = [[label, f"{m.value:.1f} ({m.low:.1f} - {m.high:.1f})"] for label, m in means.items()]
    head = ["inversion", "PSNR, dB"]
    text = f"{markdown_table(head, rows)}\n\n{_note(plan)}\n"
    written = {
        "results.json": to_json(plan.about() | {"psnr": {k: m.as_json() for k, m in means.items()}}),
        "table.md": text,
        "report.html": _page(plan, journal, table(head, rows)),
    }
    write_texts(folder, written)
    return text


def measure(plan: Plan, folder: Path, show: Show = silent) -> Journal:
    """Reconstruct whatever the folder does not hold yet, picture by picture."""
    journal = Journal(folder, plan.about())
    done = {(row["arm"], row["example"]) for row in journal.rows}
    labels = _labels(plan)
    todo = [(k, label) for k in range(len(plan.examples)) for label in labels if (label, k) not in done]
    if not todo:
        return journal
    editor = wordbrush.load(plan.model, _METHOD, device=plan.device, dtype=plan.dtype, steps=plan.steps)
    assert isinstance(editor, LatentEditor)
    for k, label in todo:
        show(label, len(journal.rows), len(plan.examples) * len(labels))
        example = plan.examples[k]
        picture = example.open(editor.model.native_size)
        if label == _ROUND_TRIP:
            (restored,) = round_trip(editor.model, [picture])
        else:
            caption = example.source_caption
            request = EditRequest(picture, source_caption=caption, target_caption=caption, seed=0)
            result = editor.with_settings(detail=False, **plan.arms[label]).edit(request)
            restored = result.intermediates["reconstruction"][0]
        row = {"arm": label, "example": k, "psnr": PixelJudge()([Sample(restored, picture)])["psnr"][0]}
        if k < _SHOWN:
            save_jpeg(restored, shown_path(folder, labels.index(label), k))
        journal.append([row])
    return journal


def _labels(plan: Plan) -> list[str]:
    return [*plan.arms, _ROUND_TRIP]


def _note(plan: Plan) -> str:
    return (
        f"Means over {len(plan.examples)} pictures with bootstrap 95 % intervals; {plan.steps} steps, null "
        f"texts with at most {plan.null_text_steps} optimiser steps at each."
    )


def _page(plan: Plan, journal: Journal, numbers: str) -> str:
    labels = _labels(plan)
    rows: list[tuple[str, list[Image.Image | None]]] = []
    for k, example in enumerate(plan.examples[:_SHOWN]):
        restored = [open_jpeg(shown_path(journal.folder, arm, k)) for arm in range(len(labels))]
        rows.append((example.source_caption, [example.open(min(restored[0].size)), *restored]))
    grid = picture_grid(["picture", *labels], rows, 160, "Each picture as it comes back.")
    return page(
        "How well pictures come back from their inversion",
        f"Model: {plan.model}. {_note(plan)}",
        [section("Reconstruction", numbers), section("Pictures", grid)],
    )
