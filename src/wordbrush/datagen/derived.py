"""Pairs that follow from one picture: colour and light, outlines, depth, lettering (Emu Edit, 2311.10089).

The paper makes its pairs of these tasks so, from pictures that are there already: by filters, by annotators,
by rendering. What is put on can be taken off again, and a picture be made from its map: both are pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from wordbrush.data.rows import Row, decode, encode_png
from wordbrush.diffusion.runtime import resolve_device
from wordbrush.errors import UsageError
from wordbrush.perception.depth import DepthEstimator
from wordbrush.storybook.catalogue import TONES
from wordbrush.storybook.styles import apply_tone
from wordbrush.storybook.vision import WORDS, captions_of, letter, sketch
from wordbrush.storybook.wording import phrase

OPERATIONS: dict[str, tuple[str, ...]] = {
    "color": tuple(tone for tone in TONES if tone != "none"),
    "sketch": ("to_sketch", "from_sketch"),
    "text": ("text_add", "text_remove"),
    "depth": ("to_depth", "from_depth"),
}
"""Task -> what is done, one for each pair. An operation from_... needs the picture's caption."""


@dataclass(frozen=True)
class Deriver:
    """Rows of edits -> rows of other tasks, of the pictures before those edits.

    Attributes:
        tasks: Some of `OPERATIONS`; of each a pair a row.
        depth: Estimates it, where that is one of the tasks.
        seed: Decides what is drawn.
    """

    tasks: Sequence[str]
    depth: DepthEstimator | None = None
    seed: int = 0

    @classmethod
    def load(cls, tasks: Sequence[str], *, depth: str | None, seed: int, device: str) -> Deriver:
        """With a depth model, by its folder or hub id.

        Raises:
            UsageError: There is no such task; or depth is asked for without a model.
            ModelError: The model is missing, or no depth model.
        """
        if unknown := [task for task in tasks if task not in OPERATIONS]:
            raise UsageError(f"--tasks: {unknown[0]!r} is none of {', '.join(OPERATIONS)}")
        if "depth" not in tasks:
            return cls(tasks, None, seed)
        if depth is None:
            raise UsageError("--tasks depth needs --depth MODEL")
        return cls(tasks, DepthEstimator.load(depth, device=resolve_device(device)), seed)

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row]:
        """A pair of each task for each row; the same whatever other tasks are asked for."""
        for number, row in enumerate(rows):
            picture = decode(row.input_image)
            for task in self.tasks:
                rng = np.random.default_rng((13, self.seed, number, list(OPERATIONS).index(task)))
                yield self._pair(rng, task, picture, row, number)

    def _pair(self, rng: np.random.Generator, task: str, picture: Image.Image, row: Row, number: int) -> Row:
        names = [name for name in OPERATIONS[task] if row.source_caption or not name.startswith("from_")]
        operation = str(rng.choice(names))
        words = {"caption": row.source_caption or "", "word": str(rng.choice(WORDS))}
        changed = self._changed(operation, picture, words["word"])
        words["word"] = words["word"].lower()
        backwards = operation.startswith("from_") or operation == "text_remove"
        before, after = (changed, picture) if backwards else (picture, changed)
        captions = (None, None) if not row.source_caption else _captions(operation, words)
        return Row(
            input_image=encode_png(before),
            edit_prompt=phrase(rng, operation, "train", **words),
            edited_image=encode_png(after),
            source_caption=captions[0],
            target_caption=captions[1],
            task=task,
            unit=row.unit or f"{number:07d}",
        )

    def _changed(self, operation: str, picture: Image.Image, word: str) -> Image.Image:
        if operation in OPERATIONS["color"]:
            return apply_tone(picture, operation)
        if operation in OPERATIONS["sketch"]:
            return sketch(picture)
        return letter(picture, word) if operation in OPERATIONS["text"] else self._depth(picture)

    def _depth(self, picture: Image.Image) -> Image.Image:
        """Near is white, as the models of relative depth have it."""
        assert self.depth is not None  # `load` has seen to it
        levels = (self.depth([picture])[0] * 255).round().byte().numpy()
        return Image.fromarray(levels).convert("RGB")


def _captions(operation: str, words: dict[str, str]) -> tuple[str, str]:
    if operation in TONES:
        return words["caption"], f"{words['caption']}, {TONES[operation]}"
    return captions_of(operation, **words)
