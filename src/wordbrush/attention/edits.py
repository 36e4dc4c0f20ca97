"""Edits of attention that carry the layout of one picture over to another.

Prompt-to-Prompt (Hertz et al., 2208.01626) and its use in InstructPix2Pix (2211.09800, section 3.1.2) to make
pairs of pictures that agree. Prompts come in groups of `members`, the source first: see `control`. What
differs from group to group or from edit to edit is a tensor that begins with (groups, edits) or (groups,),
where one group stands for all.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from wordbrush.attention.alignment import find_words, refine_mapper, replace_mapper
from wordbrush.attention.control import (
    AttentionControl,
    AttentionEdit,
    AttentionSite,
    AttentionStore,
    TokenEdit,
    split_groups,
)
from wordbrush.diffusion.sampling import Progress
from wordbrush.errors import UsageError

Window = float | tuple[float, float]
"""A part of the steps: (start, end) as fractions, or its end."""


def prompt_to_prompt(
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    members: int | None = None,
    method: Literal["replace", "refine"] = "refine",
    cross_steps: Window | Mapping[str, Window] = 0.8,
    self_steps: Window = 0.4,
    max_self_queries: int = 16**2,
    equalizer: Mapping[str, float] | None = None,
    store: AttentionStore | None = None,
) -> AttentionControl:
    """Control of the conditional branch that gives edited prompts the layout of their source.

    Args:
        tokenizer: of the model; for SDXL either of its two.
        prompts: in groups, the source of each first.
        members: prompts in a group; None: all prompts are one group.
        method: "replace" where words were swapped for as many others, "refine" where words came or went.
        cross_steps: when the source's cross-attention is injected; by word of the edited prompts, "default_"
            being all others (all steps, unless given).
        self_steps: when its self-attention is.
        max_self_queries: leaves the self-attention of larger layers alone: 16**2 in the paper's code, 32**2
            in that of null-text inversion.
        equalizer: factors of the attention to words of the edited prompts; the paper uses -2 to 2.
        store: keeps the edited maps, for `word_maps` or `LocalBlend`.

    Raises:
        UsageError: no whole groups, a window outside of [0, 1], a word that no edited prompt has, or
            prompts of different length for "replace".
    """
    groups = _group(prompts, len(prompts) if members is None else members)
    windows = word_windows(tokenizer, groups, cross_steps)
    edits: list[AttentionEdit | TokenEdit] = [
        SelfInjection(
            members=len(groups[0]),
            active=in_window(self_steps),
            max_queries=max_self_queries,
            conditional_only=True,
        )
    ]
    if method == "replace":
        edits.append(Replace(windows, _for_edits(groups, lambda s, e: replace_mapper(tokenizer, s, e))))
    else:
        edits.append(Refine(windows, _for_edits(groups, lambda s, e: refine_mapper(tokenizer, s, e))))
    if equalizer is not None:
        edits.append(Reweight(windows, word_factors(tokenizer, groups, equalizer)))
    return AttentionControl(edits if store is None else [*edits, store])


def instruct_pix2pix_pairs(thresholds: float | Sequence[float]) -> AttentionControl:
    """Control with which InstructPix2Pix generates its pairs: [caption, edited caption, caption, ...].

    Self-attention of every resolution and in all branches, no cross-attention. The original copies
    similarities before softmax; to copy the queries and keys that they are of is the same, and cheaper.

    Args:
        thresholds: p of each pair, or one for all: the part of the steps with injection, drawn from
            [0.1, 0.9] in the paper. The higher, the more alike the two pictures.
    """
    return AttentionControl([SelfInjection(members=2, active=below_threshold(thresholds))])


def mask_controlled_pairs(
    tokenizer: Any, prompts: Sequence[str], thresholds: Sequence[float], *, cross_steps: Window
) -> AttentionControl:
    """Control with which Emu Edit generates its pairs (2311.10089, section 4).

    The words that a prompt shares with the source have its cross-attention; self-attention is as in
    `instruct_pix2pix_pairs`.

    Args:
        tokenizer: of the model.
        prompts: of one group, the source first; all groups have the same.
        thresholds: of each group, see `instruct_pix2pix_pairs`.
        cross_steps: when the source's cross-attention is injected.
    """
    groups = [list(prompts)]
    mapper = _for_edits(groups, lambda source, edit: refine_mapper(tokenizer, source, edit))
    return AttentionControl(
        [
            SelfInjection(members=len(prompts), active=below_threshold(thresholds)),
            Refine(word_windows(tokenizer, groups, cross_steps), mapper),
        ]
    )


Active = Callable[[Progress], Tensor]
"""Which groups an edit is on for in a step: (groups,) or (1,) bool."""


def in_window(window: Window) -> Active:
    """Prompt-to-Prompt's rule: in steps int(num_steps * start) <= step < int(num_steps * end)."""
    start, end = _bounds(window)

    def active(progress: Progress) -> Tensor:
        count = progress.num_steps
        return torch.tensor([int(count * start) <= progress.step < int(count * end)])

    return active


def below_threshold(thresholds: float | Sequence[float]) -> Active:
    """InstructPix2Pix's rule: while p > step / (num_steps - 1)."""
    limits = torch.tensor(thresholds, dtype=torch.float64).flatten()
    return lambda progress: limits > progress.step / max(1, progress.num_steps - 1)


@dataclass(frozen=True, eq=False)
class SelfInjection:
    """Self-attention of the source for all members of its group: they get its queries and keys."""

    members: int
    active: Active
    max_queries: int | None = None
    """Layers with more are left alone; None: every layer."""
    conditional_only: bool = False
    """Only in the last branch."""

    def wants(self, site: AttentionSite) -> bool:
        """Self-attention of at most `max_queries`."""
        return site.kind == "self" and (self.max_queries is None or site.queries <= self.max_queries)

    def share(self, tokens: Tensor, progress: Progress) -> Tensor:
        """Copy in the groups that are on in this step."""
        on = self.active(progress)
        if on.any():
            groups = split_groups(tokens[-1:] if self.conditional_only else tokens, self.members, 1)
            on = on.expand(groups.shape[1])
            groups[:, on, 1:] = groups[:, on, :1]
        return tokens


@dataclass(frozen=True, eq=False)
class CrossEdit(ABC):
    """An edit of the conditional branch's cross-attention, by token and step.

    new = alpha * change(source, own) + (1 - alpha) * own, where alpha is 1 in a token's window, else 0.
    """

    windows: Tensor
    """(groups, edits, tokens, 2) float64 start and end, as fractions of num_steps + 1."""

    @abstractmethod
    def change(self, source: Tensor, own: Tensor) -> Tensor:
        """The new attention of edits.

        Args:
            source: (groups, 1, heads, queries, tokens).
            own: (groups, edits, heads, queries, tokens), as left by the edit before.
        """

    def alpha(self, progress: Progress) -> Tensor:
        """(groups, edits, tokens) bool: which tokens are on in a step."""
        bounds = (self.windows * (progress.num_steps + 1)).long()
        return (bounds[..., 0] <= progress.step) & (progress.step < bounds[..., 1])

    def wants(self, site: AttentionSite) -> bool:
        """All cross-attention."""
        return site.kind == "cross"

    def __call__(self, probs: Tensor, site: AttentionSite, progress: Progress) -> Tensor:
        """Mix the change in where alpha is 1."""
        alpha = self.alpha(progress)
        if alpha.any():
            groups = split_groups(probs[-1], 1 + self.windows.shape[1], 0)
            source, own = groups[:, :1], groups[:, 1:]
            alpha = alpha[:, :, None, None].to(probs.device)
            groups[:, 1:] = torch.where(alpha, self.change(source, own), own)
        return probs


@dataclass(frozen=True, eq=False)
class Replace(CrossEdit):
    """Word swap: the attention to the source's tokens, handed on to those of the edit."""

    mapper: Tensor
    """(groups, edits, source tokens, tokens), see `alignment.replace_mapper`."""

    def change(self, source: Tensor, own: Tensor) -> Tensor:
        """Source @ mapper."""
        return source @ self.mapper[:, :, None].to(source)


@dataclass(frozen=True, eq=False)
class Refine(CrossEdit):
    """A phrase added: the source's attention to common tokens, the edit's own to new ones.

    Probabilities are not normalised again, as in the paper's code.
    """

    mapper: Tensor
    """(groups, edits, tokens) int64, -1 for new tokens, see `alignment.refine_mapper`."""

    def change(self, source: Tensor, own: Tensor) -> Tensor:
        """The source's column of each token that it has."""
        mapper = self.mapper[:, :, None, None].to(source.device)
        return torch.where(mapper >= 0, source.take_along_dim(mapper.clamp_min(0), -1), own)


@dataclass(frozen=True, eq=False)
class Reweight(CrossEdit):
    """Re-weighting: the attention to tokens, times their factors.

    It stands behind a Replace or Refine, whose output it scales. With an edited prompt that equals its source
    that is the plain case of the paper: the source's attention, scaled.
    """

    factors: Tensor
    """(groups, edits, tokens)."""

    def change(self, source: Tensor, own: Tensor) -> Tensor:
        """Own * factors."""
        return own * self.factors[:, :, None, None].to(own)


def word_windows(
    tokenizer: Any, groups: Sequence[Sequence[str]], windows: Window | Mapping[str, Window]
) -> Tensor:
    """(groups, edits, tokens, 2) float64: the windows of the tokens of edited prompts.

    Args:
        tokenizer: gives the tokens of words.
        groups: prompts, the source of each group first.
        windows: of all tokens, or by word (of two that share a token the later holds), "default_" being all
            others (all steps, unless given).
    """
    by_word = dict(windows) if isinstance(windows, Mapping) else {"default_": windows}
    default = torch.tensor(_bounds(by_word.pop("default_", (0.0, 1.0))), dtype=torch.float64)
    bounds = {word: torch.tensor(_bounds(window), dtype=torch.float64) for word, window in by_word.items()}
    return _by_word(tokenizer, groups, default, bounds)


def word_factors(tokenizer: Any, groups: Sequence[Sequence[str]], equalizer: Mapping[str, float]) -> Tensor:
    """(groups, edits, tokens): the factors of words of edited prompts, 1 for all others."""
    return _by_word(tokenizer, groups, torch.tensor(1.0), {w: torch.tensor(f) for w, f in equalizer.items()})


def _by_word(
    tokenizer: Any, groups: Sequence[Sequence[str]], default: Tensor, values: Mapping[str, Tensor]
) -> Tensor:
    """Values (...) for the tokens of edited prompts: (groups, edits, tokens, ...)."""
    edits = [prompt for group in groups for prompt in group[1:]]
    table = default.repeat(len(edits), tokenizer.model_max_length, *[1] * default.ndim)
    for word, value in values.items():
        for row, tokens in zip(table, find_words(tokenizer, edits, word), strict=True):
            row[tokens] = value
    return table.unflatten(0, (len(groups), -1))


def _for_edits(groups: Sequence[Sequence[str]], make: Callable[[str, str], Tensor]) -> Tensor:
    """(groups, edits, ...): what `make` gives for the source and each edit."""
    return torch.stack([torch.stack([make(group[0], edit) for edit in group[1:]]) for group in groups])


def _group(prompts: Sequence[str], members: int) -> list[list[str]]:
    if members < 2 or len(prompts) % members:
        raise UsageError(f"{len(prompts)} prompts do not make groups of {members}: a source and its edits")
    return [list(prompts[i : i + members]) for i in range(0, len(prompts), members)]


def _bounds(window: Window) -> tuple[float, float]:
    start, end = window if isinstance(window, tuple) else (0.0, window)
    if not 0.0 <= start <= end <= 1.0:
        raise UsageError(f"the window of steps ({start}, {end}) must lie in 0 <= start <= end <= 1")
    return start, end
