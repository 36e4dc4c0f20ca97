"""`AttentionControl`: look at the attention of a U-Net and change it, layer by layer, while it samples.

Attention probabilities have five axes: (branches, prompts, heads, queries, keys). `branches` are the guidance
branches of one `predict_noise`, of which the last is the fully conditional one; `prompts` are the samples of
the batch. Prompts that belong together form a group: its source first, then its edits. All groups of a batch
have the same number of members and lie one behind the other, so that the prompts axis is groups x members:

    one edit of two words:      prompts = [source, edit, edit]                        members = 3
    three pairs of captions:    prompts = [source, edit, source, edit, source, edit]  members = 2
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from wordbrush.diffusion.sampling import Progress
from wordbrush.errors import UsageError

Kind = Literal["self", "cross"]
Place = Literal["down", "mid", "up"]
_MAP_SIDE = 16
_KINDS: dict[str, Kind] = {"attn1": "self", "attn2": "cross"}


@dataclass(frozen=True)
class AttentionSite:
    """One attention layer of a U-Net at one size of latents."""

    name: str
    """Its path in the U-Net, such as "mid_block.attentions.0.transformer_blocks.0.attn2"."""
    kind: Kind
    place: Place
    level: int
    """How many times the latents were halved: 2 is a quarter of their side."""
    size: tuple[int, int]
    """(h, w) of its queries."""

    @property
    def queries(self) -> int:
        """Number of query tokens, h * w."""
        return self.size[0] * self.size[1]


class _Wants(Protocol):
    def wants(self, site: AttentionSite) -> bool:
        """Whether to see this layer at all; a layer that no edit wants keeps its own fast attention."""
        ...


class AttentionEdit(_Wants, Protocol):
    """One change of attention probabilities; several are applied in order, each to what the last one left.

    A layer that such an edit wants has to write its probabilities out, queries x keys for each head.
    """

    def __call__(self, probs: Tensor, site: AttentionSite, progress: Progress) -> Tensor:
        """What the layer shall use for (branches, prompts, heads, queries, keys) `probs`, after softmax.

        It may write into `probs`.
        """
        ...


@runtime_checkable
class TokenEdit(_Wants, Protocol):
    """One change of queries and keys, before attention is computed, which stays fast."""

    def share(self, tokens: Tensor, progress: Progress) -> Tensor:
        """What the layer shall use for (branches, prompts, positions, channels) queries, and then for keys.

        It may write into `tokens`.
        """
        ...


class AttentionControl:
    """Edits of the attention, at work in a U-Net for the length of a `with` block.

    with control.installed(unet, latents.shape):
        latents = denoise(predict, scheduler, latents, control=control)
    """

    def __init__(self, edits: Sequence[AttentionEdit | TokenEdit]) -> None:
        self.edits = tuple(edits)
        self._progress: Progress | None = None

    def begin_step(self, progress: Progress) -> None:
        """Take note of the step; `denoise(control=...)` calls it."""
        self._progress = progress

    @contextmanager
    def installed(self, unet: UNet2DConditionModel, shape: Sequence[int]) -> Generator[None]:
        """Control `unet` inside the block; afterwards, also after an exception, it is as it was before.

        Args:
            unet: of the Stable Diffusion family (1.x, 2.x, XL).
            shape: (prompts, C, h, w) of the latents that will be denoised. A call of the U-Net takes them
                once for each branch, branch after branch, as `predict_noise` does.

        Raises:
            UsageError: a layer's processor has weights of its own (an IP-Adapter); in a call of the U-Net:
                the latents have another shape, or no step was begun.
        """
        previous: dict[str, Any] = {}
        try:
            for site in attention_sites(unet, (shape[-2], shape[-1])):
                edits = [edit for edit in self.edits if edit.wants(site)]
                if edits:
                    layer = cast(Attention, unet.get_submodule(site.name))
                    _check_replaceable(site, layer.processor)
                    previous[site.name] = layer.processor
                    layer.set_processor(cast(AttnProcessor, _Processor(self, edits, site, shape[0])))
            yield
        finally:
            for name, processor in previous.items():
                cast(Attention, unet.get_submodule(name)).set_processor(processor)
            self._progress = None

    @property
    def progress(self) -> Progress:
        """Where the run stands.

        Raises:
            UsageError: no step was begun.
        """
        if self._progress is None:
            raise UsageError("attention control was told no step: call denoise(..., control=control)")
        return self._progress


def attention_sites(unet: UNet2DConditionModel, size: tuple[int, int]) -> list[AttentionSite]:
    """The self- and cross-attention layers of a U-Net over latents of `size` (h, w), in the U-Net's order."""
    depth = len(unet.down_blocks)
    sites: list[AttentionSite] = []
    for processor in unet.attn_processors:
        name = processor.removesuffix(".processor")
        if kind := _KINDS.get(name.rpartition(".")[2]):
            place, level = _locate(name, depth)
            # Each level halves the side, rounded up: a convolution of stride 2 and padding 1.
            height, width = (-(-side // 2**level) for side in size)
            sites.append(AttentionSite(name, kind, place, level, (height, width)))
    return sites


def map_site(unet: UNet2DConditionModel, size: tuple[int, int]) -> AttentionSite:
    """A layer of the coarsest cross-attention that still shows where: that of 16x16, as in the paper.

    Args:
        unet: of the Stable Diffusion family.
        size: (h, w) of the latents; where all layers are smaller than 16x16, the largest are taken.
    """
    sites = attention_sites(unet, size)
    cross = [site for site in sites if site.kind == "cross" and site.place != "mid"]
    large = [site for site in cross if min(site.size) >= _MAP_SIDE]
    return max(large, key=lambda site: site.level) if large else min(cross, key=lambda site: site.level)


def split_groups(x: Tensor, members: int, dim: int) -> Tensor:
    """View the prompts axis `dim` as two, (groups, members).

    Raises:
        UsageError: the prompts do not make whole groups.
    """
    if x.shape[dim] % members:
        raise UsageError(f"{x.shape[dim]} prompts do not make groups of {members}: fill up the last group")
    return x.unflatten(dim, (-1, members))


class AttentionStore:
    """An edit that changes nothing: it keeps the mean cross-attention of the conditional branch over a run.

    Put it behind the edits whose effect it shall see, and make one for each run.
    """

    def __init__(self, max_queries: int = 32**2) -> None:
        """Keep no maps of layers with more than `max_queries` queries, which would take much memory."""
        self.max_queries = max_queries
        self.progress: Progress | None = None
        """Of the last map."""
        self._sums: dict[AttentionSite, Tensor] = {}
        self._counts: dict[AttentionSite, int] = {}

    def wants(self, site: AttentionSite) -> bool:
        """Cross-attention that is not too large."""
        return site.kind == "cross" and site.queries <= self.max_queries

    def __call__(self, probs: Tensor, site: AttentionSite, progress: Progress) -> Tensor:
        """Add the mean over heads to the layer's sum."""
        maps = probs[-1].detach().mean(1, dtype=torch.float32)
        self._sums[site] = maps + self._sums[site] if site in self._sums else maps
        self._counts[site] = self._counts.get(site, 0) + 1
        self.progress = progress
        return probs

    def maps(self, level: int = 2) -> Tensor:
        """(prompts, h, w, tokens) mean over steps, heads and the layers of one level.

        Args:
            level: of the layers (`AttentionSite.level`); 2 takes those at a quarter of the latents' side,
                the 16x16 maps that Prompt-to-Prompt shows for latents of 64x64.

        Raises:
            UsageError: no maps of that level were kept.
        """
        sites = [site for site in self._sums if site.level == level]
        if not sites:
            kept = sorted({site.level for site in self._sums})
            raise UsageError(
                f"the store has attention of levels {kept} only, not of {level}: see max_queries"
            )
        maps = torch.stack([self._sums[site] / self._counts[site] for site in sites])
        return maps.mean(0).unflatten(1, sites[0].size)

    def word_maps(self, words: Sequence[Sequence[int]], *, prompt: int = 0, level: int = 2) -> Tensor:
        """Where each word of a prompt looks: (words, h, w) in [0, 1], the largest value of each map being 1.

        Args:
            words: the tokens of each word, see `alignment.word_tokens`.
            prompt: index on the prompts axis.
            level: see `maps`.
        """
        maps = self.maps(level)[prompt]
        summed = torch.stack([maps[..., list(tokens)].sum(-1) for tokens in words])
        return normalise(summed)


def normalise(maps: Tensor) -> Tensor:
    """Maps (..., h, w) divided by their largest value, in [0, 1]; where a factor made them negative, 0."""
    maps = maps.clamp_min(0.0)
    return maps / maps.amax((-2, -1), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def _locate(name: str, depth: int) -> tuple[Place, int]:
    block, number, *_ = name.split(".")
    if block == "mid_block":
        return "mid", depth - 1
    return ("down", int(number)) if block == "down_blocks" else ("up", depth - 1 - int(number))


def _check_replaceable(site: AttentionSite, processor: object) -> None:
    if isinstance(processor, nn.Module):
        kind = type(processor).__name__
        raise UsageError(f"attention control cannot take the place of the {kind} of {site.name}: unload it")


class _Processor:
    """In place of a layer's own: diffusers' processor, with the edits of tokens and of probabilities.

    Where no edit wants the probabilities, they are never written out.
    """

    def __init__(
        self,
        control: AttentionControl,
        edits: Sequence[AttentionEdit | TokenEdit],
        site: AttentionSite,
        prompts: int,
    ) -> None:
        self.control, self.site, self.prompts = control, site, prompts
        self.of_tokens = [edit for edit in edits if isinstance(edit, TokenEdit)]
        self.of_probs = [edit for edit in edits if not isinstance(edit, TokenEdit)]
        self.plain = AttnProcessor() if self.of_probs else AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        rows, queries, _ = hidden_states.shape
        if rows % self.prompts or queries != self.site.queries:
            height, width = self.site.size
            raise UsageError(
                f"attention control is installed for {self.prompts} latents, {height}x{width} in "
                f"{self.site.name}: {rows} with {queries} positions do not fit"
            )
        layer = cast(Attention, _EditedLayer(attn, self))
        return self.plain(layer, hidden_states, encoder_hidden_states, attention_mask, temb)

    def share(self, tokens: Tensor) -> Tensor:
        """Run the edits of tokens on (branches * prompts, positions, channels)."""
        tokens = tokens.unflatten(0, (-1, self.prompts))
        for edit in self.of_tokens:
            tokens = edit.share(tokens, self.control.progress)
        return tokens.flatten(0, 1)

    def edit(self, probs: Tensor, heads: int) -> Tensor:
        """Run the edits of probabilities on (branches * prompts * heads, queries, keys)."""
        if probs.requires_grad:  # edits may write, and softmax needs its output for the gradient
            probs = probs.clone()
        probs = probs.unflatten(0, (-1, self.prompts, heads))
        for edit in self.of_probs:
            probs = edit(probs, self.site, self.control.progress)
        return probs.flatten(0, 2)


class _EditedLayer:
    """An attention layer, but for its queries, keys and scores, which pass through the edits."""

    def __init__(self, attn: Attention, processor: _Processor) -> None:
        self._attn, self._processor = attn, processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attn, name)

    def to_q(self, states: Tensor) -> Tensor:
        return self._processor.share(self._attn.to_q(states))

    def to_k(self, states: Tensor) -> Tensor:
        assert self._attn.to_k is not None  # a layer with keys of others is no layer of these U-Nets
        return self._processor.share(self._attn.to_k(states))

    def get_attention_scores(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        probs = self._attn.get_attention_scores(query, key, cast(Tensor, mask))
        return self._processor.edit(probs, self._attn.heads)
