"""Pairs whose change stays where the thing is that it is about: Emu Edit's generator (2311.10089, section 4).

The first picture is painted alone, and the thing is found in it. Then it is painted again beside one edited
picture for each of three masks of the thing: all have the first one's cross-attention for the words that they
share, and outside of the mask its latents. The paper states no number for any of this; all are settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from wordbrush.attention.alignment import find_word
from wordbrush.attention.blending import MaskBlend, from_source
from wordbrush.attention.control import AttentionControl, AttentionStore, normalise
from wordbrush.attention.edits import mask_controlled_pairs
from wordbrush.datagen.painting import Draw, Painter, Pixels, in_batches
from wordbrush.perception.depth import DepthEstimator, depth_distances
from wordbrush.perception.grounding import Grounder, Mask, load_grounder, three_masks

MaskKind = Literal["precise", "dilated", "box"]
ATTENTION = "attention"
"""The grounder that is none: the words' own cross-attention."""
Flaw = Literal["not_found", "still_there", "not_there", "depth"]


class GroundedSettings(BaseModel):
    """How the pairs of tasks are confined to the thing that they are about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grounder: str = Field(
        default=ATTENTION,
        description="what finds things: a CLIPSeg, DETECTOR+SEGMENTER, or attention, the painting model's "
        "own, which cannot say that a thing is not there",
    )
    masks: tuple[MaskKind, ...] = Field(
        default=("precise", "dilated", "box"), min_length=1, description="an edited picture for each"
    )
    dilation: float = Field(
        default=0.05, ge=0, le=1, description="of the dilated mask, in sides of a picture"
    )
    blur: float = Field(default=0.02, ge=0, le=1, description="of its edge: standard deviation, likewise")
    cross_steps: float = Field(
        default=0.8, ge=0, le=1, description="share of the steps in which shared words have shared attention"
    )
    copied: float = Field(
        default=0.1, ge=0, le=1, description="share of the steps until which nothing differs anywhere"
    )
    blended: float = Field(
        default=1.0, ge=0, le=1, description="share of the steps after which the mask counts no more"
    )
    attention_threshold: float = Field(
        default=0.4, gt=0, lt=1, description="attention: share of the largest value that is the thing"
    )
    attention_level: int = Field(
        default=2, ge=0, description="attention: of the layers, 2 for those at a quarter of the latents' side"
    )
    depth: str | None = Field(
        default=None, description="depth model that compares the pictures; default: they are not compared"
    )
    depth_l1: float = Field(
        default=0.1, gt=0, le=1, description="greatest mean difference of two pictures' depth"
    )

    @model_validator(mode="after")
    def _check(self) -> GroundedSettings:
        if self.copied > self.blended:
            raise ValueError("copied must not be greater than blended")
        return self

    @property
    def models(self) -> list[str]:
        """Models that decide the pairs."""
        found = [] if self.grounder == ATTENTION else self.grounder.split("+")
        return [*found, *([self.depth] if self.depth else [])]


@dataclass(frozen=True)
class Plan:
    """What to paint for a pair, and what to see in it; "" is nothing.

    Attributes:
        first: Caption of the picture that is painted first.
        second: Caption of the one that is made from it.
        thing: Of the first picture: where the second may differ; "" for everywhere.
        around: Whether it may differ everywhere but there.
        swapped: Whether the first picture is the one after the edit.
        gone: May not be in the second picture.
        there: Must be in it.
    """

    first: str
    second: str
    thing: str = ""
    around: bool = False
    swapped: bool = False
    gone: str = ""
    there: str = ""


def plan(task: str, caption: str, output: str, original: str, edited: str) -> Plan:
    """How a task's pairs are made; of a task without things the whole picture may change.

    To add a thing is to remove it, backwards: where it will be can be seen only where it is.
    """
    if task == "add":
        return Plan(output, caption, edited, swapped=True, gone=edited)
    if task == "remove":
        return Plan(caption, output, original, gone=original)
    if task in ("local", "texture"):
        return Plan(caption, output, original, there=edited)
    if task == "background":
        return Plan(caption, output, original, around=True, there=original)
    return Plan(caption, output)


@dataclass
class Candidates:
    """Pairs of one unit.

    Attributes:
        pixels: (N, 2, H, W, 3), before and after.
        masks: (N, H, W) uint8, 255 where the pair may differ.
        kinds: Of each mask; None: the whole picture may differ.
        draws: Of each.
        flaws: What speaks against each, before any score; None: nothing.
        not_found: Draws whose first picture has no such thing; none of their pairs was painted.
        num_masks: Pairs that a draw would have given.
    """

    pixels: Pixels
    masks: Pixels
    kinds: list[MaskKind | None]
    draws: list[Draw]
    flaws: list[Flaw | None]
    not_found: list[Draw]
    num_masks: int


class GroundedGenerator:
    """Paints pairs that differ where the edit's thing is, and looks whether they show it.

    Args:
        painter: Of the pictures.
        settings: How.
    """

    def __init__(self, painter: Painter, settings: GroundedSettings) -> None:
        self.painter, self.settings = painter, settings
        device = painter.model.device
        self.tokenizer = painter.model.tokenizers[0]
        self.grounder: Grounder | None = None
        if settings.grounder != ATTENTION:
            self.grounder = load_grounder(settings.grounder, device=device)
        self.depth = DepthEstimator.load(settings.depth, device=device) if settings.depth else None

    def __call__(self, wanted: Plan, draws: Sequence[Draw]) -> Candidates:
        """Paint a pair for each kind of mask and each draw whose first picture has the thing.

        Args:
            wanted: What.
            draws: At least one.

        Raises:
            ModelError: The GPU's memory is too small.
        """
        kinds = self.settings.masks if wanted.thing else self.settings.masks[:1]
        found: list[tuple[Draw, dict[MaskKind, Tensor]]] = []
        not_found: list[Draw] = []
        for batch in in_batches(draws, self.painter.settings.batch_size):
            masks = self._find(wanted, batch)
            for draw, mask in zip(batch, masks, strict=True):
                found.append((draw, mask)) if mask is not None else not_found.append(draw)
        size = max(1, self.painter.settings.batch_size // len(kinds))
        groups = [self._paint(wanted, kinds, batch) for batch in in_batches(found, size)]
        side = self.painter.size
        pixels = np.concatenate([np.zeros((0, 2, side, side, 3), np.uint8), *groups])
        shown = [(255 * masks[kind]).round().byte().numpy() for _, masks in found for kind in kinds]
        return Candidates(
            pixels=pixels[:, ::-1] if wanted.swapped else pixels,
            masks=np.stack(shown) if shown else np.zeros((0, side, side), np.uint8),
            kinds=[kind if wanted.thing else None for _ in found for kind in kinds],
            draws=[draw for draw, _ in found for _ in kinds],
            flaws=self._flaws(wanted, pixels),
            not_found=not_found,
            num_masks=len(kinds),
        )

    def _find(self, wanted: Plan, draws: Sequence[Draw]) -> list[dict[MaskKind, Tensor] | None]:
        """For each draw the masks, (H, W) in [0, 1], of where its pictures may differ; None: no thing."""
        side = self.painter.size
        if not wanted.thing:
            return [dict.fromkeys(self.settings.masks, torch.ones(side, side)) for _ in draws]
        store = AttentionStore()
        pictures = self.painter([wanted.first], draws, AttentionControl([] if self.grounder else [store]))
        if self.grounder is None:
            masks = self._attended(wanted, store)
        else:
            names = [wanted.thing] * len(draws)
            masks = [x.mask for x in self.grounder.locate(_to_pil(pictures[:, 0]), names)]
        return [self._kinds(mask, around=wanted.around) if mask.any() else None for mask in masks]

    def _attended(self, wanted: Plan, store: AttentionStore) -> list[Mask]:
        tokens = find_word(self.tokenizer, wanted.first, wanted.thing)
        maps = store.maps(self.settings.attention_level)[..., tokens].sum(-1)
        side = self.painter.size
        large = F.interpolate(maps[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]
        return list((normalise(large) > self.settings.attention_threshold).cpu().numpy())

    def _kinds(self, mask: Mask, *, around: bool) -> dict[MaskKind, Tensor]:
        three: Any = three_masks(mask, dilation=self.settings.dilation, blur=self.settings.blur)
        return {kind: 1 - three[kind] if around else three[kind] for kind in self.settings.masks}

    def _paint(
        self, wanted: Plan, kinds: Sequence[MaskKind], batch: Sequence[tuple[Draw, dict[MaskKind, Tensor]]]
    ) -> Pixels:
        """(draws * kinds, 2, H, W, 3): the first picture and each of those made from it."""
        draws, captions = [draw for draw, _ in batch], [wanted.first, *[wanted.second] * len(kinds)]
        control = mask_controlled_pairs(
            self.tokenizer, captions, [draw.p2p_threshold for draw in draws],
            cross_steps=self.settings.cross_steps,
        )  # fmt: skip
        whole = torch.ones(self.painter.size, self.painter.size)
        masks = torch.stack([mask for _, found in batch for mask in (whole, *(found[k] for k in kinds))])
        latents = F.interpolate(masks[:, None], self.painter.shape[1:], mode="area")
        blend = _in_part_of_the_steps(latents, len(captions), self.painter.settings.steps, self.settings)
        pictures = self.painter(captions, draws, control, [blend])
        pairs = [[group[0], group[1 + k]] for group, k in product(pictures, range(len(kinds)))]
        return np.stack([np.stack(pair) for pair in pairs])

    def _flaws(self, wanted: Plan, pixels: Pixels) -> list[Flaw | None]:
        """What speaks against pairs of (first, second)."""
        first, second = (_to_pil(pixels[:, i]) for i in range(2))
        flaws: list[Flaw | None] = [None] * len(pixels)
        checks: list[tuple[Flaw, Sequence[bool]]] = []
        if self.grounder and wanted.gone:
            checks.append(("still_there", _seen(self.grounder, second, wanted.gone)))
        if self.grounder and wanted.there:
            checks.append(("not_there", [not seen for seen in _seen(self.grounder, second, wanted.there)]))
        if self.depth and len(pixels):
            apart = depth_distances(self.depth(first), self.depth(second))
            checks.append(("depth", (apart > self.settings.depth_l1).tolist()))
        for name, failed in checks:  # a pair counts at the first
            flaws = [flaw or (name if bad else None) for flaw, bad in zip(flaws, failed, strict=True)]
        return flaws


def _seen(grounder: Grounder, pictures: Sequence[Image.Image], thing: str) -> list[bool]:
    return [located.found for located in grounder.locate(pictures, [thing] * len(pictures))]


def _in_part_of_the_steps(
    masks: Tensor, members: int, steps: int, settings: GroundedSettings
) -> Callable[[Tensor, Tensor, int], Tensor]:
    """For `denoise(after_step=...)`: first all latents are the source's, then those outside, then none."""
    outside = from_source(members)
    blend, copy = MaskBlend(masks, outside), MaskBlend(torch.zeros_like(masks), outside)

    def after_step(latents: Tensor, t: Tensor, step: int) -> Tensor:
        if step < int(settings.copied * steps):
            return copy(latents, t, step)
        return blend(latents, t, step) if step < int(settings.blended * steps) else latents

    return after_step


def _to_pil(pixels: Pixels) -> list[Image.Image]:
    return [Image.fromarray(picture) for picture in pixels]
