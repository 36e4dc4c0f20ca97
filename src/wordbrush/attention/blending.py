"""Hooks for `denoise(after_step=...)` that confine an edit to a part of the picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wordbrush.attention.alignment import find_words
from wordbrush.attention.control import AttentionStore, normalise, split_groups


@dataclass(frozen=True, eq=False)
class LocalBlend:
    """Prompt-to-Prompt's local editing: an edit stays where its words, or the source's, have attention.

    The maps of the words, summed, are dilated by a 3x3 maximum, enlarged to the latents' size, divided by
    their maximum and cut at `threshold`; the mask of an edit is united with that of its source. Outside of it
    the latents are the source's. (The paper's code takes the five layers of Stable Diffusion at a quarter of
    the latents' side: so does `level` 2, in any U-Net.)
    """

    store: AttentionStore
    """Behind the edits of the control that is at work."""
    words: Tensor
    """(groups, members, tokens), see `word_mask`; one group stands for all."""
    subtract: Tensor | None = None
    """As `words`: where these have attention (not dilated) the source stays."""
    threshold: float = 0.3
    subtract_threshold: float = 0.3
    start: float = 0.2
    """Part of the steps after which blending begins."""
    level: int = 2

    def __call__(self, latents: Tensor, t: Tensor, step: int) -> Tensor:
        """Latents (prompts, C, h, w) after a step -> those of each source outside of the mask."""
        progress = self.store.progress
        if progress is not None and step < int(self.start * progress.num_steps):
            return latents
        mask = self.mask((latents.shape[-2], latents.shape[-1]))
        return torch.lerp(_sources(latents, self.words.shape[1]), latents, mask.to(latents))

    def mask(self, size: tuple[int, int]) -> Tensor:
        """(prompts, 1, *size) bool: where the edits may differ from their source, by the maps so far."""
        mask = self._mask(self.words, size, self.threshold, dilate=True)
        if self.subtract is not None:
            mask &= ~self._mask(self.subtract, size, self.subtract_threshold, dilate=False)
        return mask.flatten(0, 1)[:, None]

    def _mask(self, words: Tensor, size: tuple[int, int], threshold: float, *, dilate: bool) -> Tensor:
        maps = split_groups(self.store.maps(self.level), words.shape[1], 0)
        summed = torch.einsum("gmhwt,gmt->gmhw", maps, words.to(maps).expand(len(maps), -1, -1))
        if dilate:
            summed = F.max_pool2d(summed, 3, stride=1, padding=1)
        mask = normalise(F.interpolate(summed, size)) > threshold
        return mask | mask[:, :1]


def word_mask(
    tokenizer: Any, prompts: Sequence[str], words: Sequence[Sequence[str]], *, members: int | None = None
) -> Tensor:
    """(groups, members, tokens), 1 at the tokens of words, else 0: for `LocalBlend`.

    Args:
        tokenizer: of the model.
        prompts: in groups, the source of each first.
        words: of each prompt; none where it does not show the thing.
        members: prompts in a group; None: all prompts are one group.

    Raises:
        UsageError: a prompt does not have one of its words, or no whole groups.
    """
    mask = torch.zeros(len(prompts), tokenizer.model_max_length)
    for row, prompt, wanted in zip(mask, prompts, words, strict=True):
        for word in wanted:
            row[find_words(tokenizer, [prompt], word)[0]] = 1.0
    return split_groups(mask, members or len(prompts), 0)


@dataclass(frozen=True, eq=False)
class MaskBlend:
    """Keeps latents outside of a given mask: latents = mask * latents + (1 - mask) * outside."""

    mask: Tensor
    """(B or 1, 1, h, w) in [0, 1], 1 where the picture may change."""
    outside: Callable[[Tensor, int], Tensor]
    """Latents after a step (B, C, h, w), step -> latents of the same noise level to keep."""

    def __call__(self, latents: Tensor, t: Tensor, step: int) -> Tensor:
        """Blend the latents after a step."""
        return torch.lerp(self.outside(latents, step).to(latents), latents, self.mask.to(latents))


def from_source(members: int) -> Callable[[Tensor, int], Tensor]:
    """For `MaskBlend`: outside of the mask stands what the source of each group has."""
    return lambda latents, step: _sources(latents, members)


def from_trajectory(trajectory: Sequence[Tensor]) -> Callable[[Tensor, int], Tensor]:
    """For `MaskBlend`: outside of the mask stands an earlier run, given as its latents after each step."""
    return lambda latents, step: trajectory[step]


def _sources(latents: Tensor, members: int) -> Tensor:
    """(prompts, ...): for each prompt the latents of its group's source."""
    groups = split_groups(latents, members, 0)
    return groups[:, :1].expand_as(groups).flatten(0, 1)
