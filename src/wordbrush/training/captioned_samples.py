"""What the text-to-image recipe draws from rendered edits: pictures with captions, or single things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from wordbrush.storybook.dataset import RenderedEdits
from wordbrush.storybook.render import centre
from wordbrush.storybook.wording import caption
from wordbrush.training.latent_cache import LatentCache
from wordbrush.training.order import Shape

Rows = Sequence[dict[str, str]]
"""Of rendered edits."""


class CaptionedLatents(Dataset[dict[str, Any]]):
    """Index -> "latents" (C, h, w) of a picture, and its "caption".

    Args:
        cache: Of the edits.
        rows: Of the edits.
        size: Height and width of the pictures' latents.
    """

    def __init__(self, cache: LatentCache, rows: Rows, size: Shape) -> None:
        self.cache, self.rows, self.size = cache, rows, size

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((3, index))
        number, side = int(rng.integers(len(self.rows))), int(rng.integers(2))
        text = self.rows[number]["source_caption" if side == 0 else "target_caption"]
        return {"latents": self.cache.moments(number, self.size)[side], "caption": text}


class CaptionedWindows(Dataset[dict[str, Any]]):
    """Index -> "latents" of a window around one thing of a scene, and a "caption" of it alone.

    A window costs a part of what the picture does, and is all about the thing.

    Args:
        cache: Of the edits.
        edits: Of drawn scenes.
        size: Height and width of the pictures' latents.
        side: Of a window, latents.
    """

    def __init__(self, cache: LatentCache, edits: RenderedEdits, size: Shape, side: int) -> None:
        self.cache, self.count, self.size, self.side = cache, len(edits), size, side
        self._edit = lru_cache(None)(edits.edit)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((11, index))
        number, after = int(rng.integers(self.count)), int(rng.integers(2))
        edit, latents = self._edit(number), self.cache.moments(number, self.size)[after]
        scene = edit.after if after else edit.before
        where = rng.uniform(0, 1, 2)
        if scene.items:
            item = scene.items[int(rng.integers(len(scene.items)))]
            scene, where = replace(scene, items=(item,)), np.array(centre(item)) + rng.uniform(-0.08, 0.08, 2)
        left, top = (
            _start(place, self.side, size) for place, size in zip(where, self.size[::-1], strict=True)
        )
        window = latents[:, top : top + self.side, left : left + self.side]
        return {"latents": window, "caption": caption(scene)}


def _start(place: float, side: int, size: int) -> int:
    """Where a window starts whose middle lies at a fraction of the size, as far as it can."""
    return min(max(round(place * size - side / 2), 0), size - side)
