"""What to try when an edit did nothing, or too much: which setting to move, and to what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wordbrush import images
from wordbrush.controls import Control, controls
from wordbrush.evaluation.metrics import l1

LITTLE = 0.012
"""Mean difference, of the full range of values, below which an eye sees about the same picture."""
STRANGE = 0.35
"""Likeness of the shapes below which an eye sees another picture."""
_SIDE = 64
"""Pictures are compared at this size: the grain of a style is no change of what is shown."""


@dataclass(frozen=True)
class Change:
    """How far an edit went.

    Attributes:
        amount: Mean difference where it was allowed: 0 to 1.
        likeness: Correlation of the outlines of both pictures: 1 for equal shapes under any light and colour,
            about 0 for pictures that have nothing in common.
    """

    amount: float
    likeness: float


@dataclass(frozen=True)
class Advice:
    """One thing to try."""

    reason: str
    settings: Mapping[str, float]

    @property
    def text(self) -> str:
        """In words."""
        moves = (f"{name.replace('_', ' ')} to {value:g}" for name, value in self.settings.items())
        return f"{self.reason} Set {' and '.join(moves)}."


@dataclass(frozen=True)
class _Move:
    """A way to make a setting count more (or, with the other sign, less)."""

    setting: str
    factor: float = 1.0
    step: float = 0.0
    limit: float = 0.0
    """Where it helps no more."""

    def apply(self, value: float) -> float:
        return round(value * self.factor + self.step, 2)

    def helps(self, value: float) -> bool:
        """Whether there is room left."""
        moved = self.apply(value)
        return moved <= self.limit if moved > value else moved >= self.limit


# In the order in which to try them; a method has some of these.
_MORE = (
    _Move("text_scale", factor=1.5, limit=15),
    _Move("image_scale", step=-0.25, limit=1),
    _Move("strength", step=0.1, limit=1),
    _Move("eta", step=0.2, limit=1.4),
    _Move("self_steps", step=-0.2, limit=0),
    _Move("cross_steps", step=-0.2, limit=0),
)
_LESS = (
    _Move("image_scale", step=0.5, limit=3),
    _Move("strength", step=-0.15, limit=0.2),
    _Move("eta", step=-0.2, limit=0.2),
    _Move("self_steps", step=0.2, limit=1),
    _Move("cross_steps", step=0.1, limit=1),
    _Move("text_scale", factor=0.7, limit=1.5),
)


def measure(before: Image.Image, after: Image.Image, mask: Image.Image | None = None) -> Change:
    """Compare a picture before and after.

    Args:
        before: Of any mode.
        after: Of the same size.
        mask: White where it might change; None: everywhere.
    """
    one, other = (_small(picture) for picture in (before, after))
    if mask is None:
        return Change(l1(one, other)[0], _likeness(one, other))
    share = max(float(images.from_pil(mask.convert("RGB")).mean() / 2 + 0.5), 1e-3)
    return Change(l1(one, other)[0] / share, _likeness(one, other))


def advise(change: Change, settings: Any) -> Advice | None:
    """What to try; None where the edit went about as far as one expects.

    Args:
        change: Of the last edit.
        settings: Those that it was made with, a method's dataclass.
    """
    if change.amount < LITTLE:
        return _first("Hardly anything changed.", _MORE, settings)
    if change.likeness < STRANGE:
        return _first("Little is left of the picture.", _LESS, settings)
    return None


def _first(reason: str, moves: tuple[_Move, ...], settings: Any) -> Advice | None:
    known: dict[str, Control] = {control.name: control for control in controls(type(settings))}
    for move in moves:
        if move.setting in known and move.helps(value := getattr(settings, move.setting)):
            return Advice(reason, {move.setting: _within(known[move.setting], move.apply(value))})
    return None


def _within(control: Control, value: float) -> float:
    low = value if control.low is None else max(control.low, value)
    return low if control.high is None else min(control.high, low)


def _small(picture: Image.Image) -> Tensor:
    return images.from_pil(picture.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX))


def _likeness(one: Tensor, other: Tensor) -> float:
    """Correlation of the strengths of the edges: night and a pencil keep them, another scene does not."""
    edges = [_edges(picture).flatten() for picture in (one, other)]
    first, second = (edge - edge.mean() for edge in edges)
    return float(F.cosine_similarity(first, second, dim=0))


def _edges(pixels: Tensor) -> Tensor:
    grey = images.blur(pixels.mean(1, keepdim=True), 1.0)
    across, down = grey.diff(dim=-1)[..., :-1, :], grey.diff(dim=-2)[..., :-1]
    return torch.hypot(across, down)
