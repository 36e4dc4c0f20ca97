from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from torch import Tensor

from tests import tiny
from tests.attention.sampling import (
    FAMILIES,
    TOKENIZER,
    TOKENS,
    branches,
    distance,
    model,
    probabilities,
    randn,
)
from wordbrush.attention.alignment import word_tokens
from wordbrush.attention.control import AttentionControl, AttentionSite, AttentionStore, attention_sites
from wordbrush.attention.edits import SelfInjection, in_window
from wordbrush.diffusion.sampling import Progress, predict_noise
from wordbrush.errors import UsageError

Wants = Callable[[AttentionSite], bool]
PROMPTS = ["a red cat", "a blue dog", "an owl"]
SHAPE = (3, 4, 16, 16)


class Watch:
    """An edit that changes nothing and keeps what it sees."""

    def __init__(self, wants: Wants = lambda site: True) -> None:
        self.wants = wants
        self.seen: list[tuple[AttentionSite, Tensor, Progress]] = []

    def __call__(self, probs: Tensor, site: AttentionSite, progress: Progress) -> Tensor:
        self.seen.append((site, probs.clone(), progress))
        return probs


class Fail(Watch):
    def __call__(self, probs: Tensor, site: AttentionSite, progress: Progress) -> Tensor:
        raise KeyboardInterrupt


def begun(*edits: Any) -> AttentionControl:
    control = AttentionControl(edits)
    control.begin_step(Progress(0, 1))
    return control


@torch.no_grad()
def predict(family: str, prompts: list[str] = PROMPTS, latents: Tensor | None = None) -> Tensor:
    """(branches, prompts, 4, 16, 16)."""
    which = model(family)
    latents = randn(len(prompts), *SHAPE[1:]) if latents is None else latents
    return predict_noise(which.unet, which.scheduler, latents, torch.tensor(500), branches(which, prompts))


def processors(unet: UNet2DConditionModel) -> list[tuple[str, int]]:
    return [(name, id(processor)) for name, processor in unet.attn_processors.items()]


def cross_at_a_quarter(unet: UNet2DConditionModel, size: tuple[int, int]) -> list[AttentionSite]:
    return [site for site in attention_sites(unet, size) if site.kind == "cross" and site.level == 2]


def test_sites_of_stable_diffusion() -> None:
    """The five layers that Prompt-to-Prompt takes its 16x16 maps from are those of level 2."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            cross_attention_dim=768,
            down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
            up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        )
    sites = attention_sites(unet, (64, 64))
    assert len(sites) == len(unet.attn_processors) == 32
    assert [site.kind for site in sites] == ["self", "cross"] * 16
    found = cross_at_a_quarter(unet, (64, 64))
    assert [site.place for site in found] == ["down"] * 2 + ["up"] * 3
    assert {site.size for site in found} == {(16, 16)}
    assert {(site.place, site.size) for site in sites if site.level == 3} == {("mid", (8, 8))}


def test_sites_of_sdxl() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
        )
    assert len(attention_sites(unet, (104, 152))) == 140
    found = cross_at_a_quarter(unet, (104, 152))
    assert len(found) == 60
    assert {(site.size, site.queries) for site in found} == {((26, 38), 988)}


@pytest.mark.parametrize("size", [(16, 16), (13, 22)])
def test_sites_are_as_large_as_they_say(size: tuple[int, int]) -> None:
    """Also where a side is odd; and each layer is seen once, with its kind of keys."""
    watch, unet = Watch(), model("storybook").unet
    with begun(watch).installed(unet, (3, 4, *size)):
        predict("storybook", latents=randn(3, 4, *size))
    assert {site for site, _, _ in watch.seen} == set(attention_sites(unet, size))
    assert len(watch.seen) == len(unet.attn_processors) == 20
    for site, probs, _ in watch.seen:
        keys = TOKENS if site.kind == "cross" else site.queries
        layer = unet.get_submodule(site.name)
        assert probs.shape == (2, 3, layer.heads, site.queries, keys)
        assert torch.allclose(probs.sum(-1), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_and_prompts_stay_apart(family: str) -> None:
    """What stands at [branch, prompt] is what this prompt alone gives in this branch."""
    unet = model(family).unet

    def seen(prompts: list[str], latents: Tensor) -> list[Tensor]:
        watch = Watch()
        with begun(watch).installed(unet, latents.shape):
            predict(family, prompts, latents)
        return [probs for _, probs, _ in watch.seen]

    latents = randn(*SHAPE)
    together = seen(PROMPTS, latents)
    for i, prompt in enumerate(PROMPTS):
        for one, alone in zip(together, seen([prompt], latents[i : i + 1]), strict=True):
            assert torch.allclose(one[:, i], alone[:, 0], atol=1e-5)
    assert any(distance(probs[1, 0], probs[1, 1]) > 1e-2 for probs in together)
    assert any(distance(probs[0, 0], probs[1, 0]) > 1e-2 for probs in together)


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_that_do_nothing_change_nothing(family: str) -> None:
    plain = predict(family)
    with begun(Watch(), Watch()).installed(model(family).unet, SHAPE):
        assert distance(predict(family), plain) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("changes", [{"upcast_attention": True}, {"attention_head_dim": 8, "dropout": 0.1}])
def test_attention_of_other_kinds(changes: dict[str, Any]) -> None:
    """Upcast attention as in SD 2.1, and masked padding."""
    unet = tiny.unet("sd2", in_channels=4, **changes).eval()
    mask = (torch.arange(5) < torch.tensor([[3], [5]])).float()
    inputs = (randn(2, 4, 16, 16), 10, randn(2, 5, 32, seed=1))
    plain = unet(*inputs, encoder_attention_mask=mask).sample
    assert distance(plain, unet(*inputs).sample) > 1e-5
    with begun(watch := Watch()).installed(unet, (2, 4, 16, 16)):
        assert distance(unet(*inputs, encoder_attention_mask=mask).sample, plain) < 1e-5
    cross = [probs for site, probs, _ in watch.seen if site.kind == "cross"]
    assert all(probs[0, 0, ..., 3:].max() < 1e-6 < probs[0, 1, ..., 3:].min() for probs in cross)


def test_an_edit_decides_what_the_layer_uses() -> None:
    class Swap(Watch):
        def __call__(self, probs: Tensor, site: AttentionSite, progress: Progress) -> Tensor:
            return probs.flip(1)

    plain = predict("sd1")
    with begun(Swap()).installed(model("sd1").unet, SHAPE):
        assert distance(predict("sd1"), plain) > 1e-3
    with begun(Swap(), Swap()).installed(model("sd1").unet, SHAPE):  # in order, each on the last one's
        assert distance(predict("sd1"), plain) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_no_trace_is_left(family: str) -> None:
    unet = model(family).unet
    plain, before = predict(family), processors(unet)
    with begun(Watch()).installed(unet, SHAPE):
        assert not set(processors(unet)) & set(before)
        predict(family)
    assert processors(unet) == before
    assert torch.equal(predict(family), plain)


def test_no_trace_is_left_by_a_failure() -> None:
    unet = model("sd1").unet
    plain, before = predict("sd1"), processors(unet)
    with pytest.raises(KeyboardInterrupt), begun(Fail()).installed(unet, SHAPE):
        predict("sd1")
    assert processors(unet) == before
    assert torch.equal(predict("sd1"), plain)


def test_only_wanted_layers_are_touched() -> None:
    unet = model("storybook").unet
    before = dict(processors(unet))

    def wants(site: AttentionSite) -> bool:
        return site.kind == "cross" and site.place == "up" and site.level == 1

    with begun(watch := Watch(wants), Watch(lambda site: False)).installed(unet, SHAPE):
        inside = dict(processors(unet))
        predict("storybook")
    changed = [name for name in before if inside[name] != before[name]]
    assert changed == [f"up_blocks.1.attentions.{i}.transformer_blocks.0.attn2.processor" for i in (0, 1)]
    assert [f"{site.name}.processor" for site, _, _ in watch.seen] == changed
    with begun(Watch(lambda site: False)).installed(unet, SHAPE):
        assert dict(processors(unet)) == before


def test_misuse_is_told() -> None:
    unet = model("sd1").unet
    with (
        AttentionControl([Watch()]).installed(unet, SHAPE),
        pytest.raises(UsageError, match="told no step: call denoise"),
    ):
        predict("sd1")
    with (
        begun(Watch()).installed(unet, (4, 4, 16, 16)),
        pytest.raises(UsageError, match="installed for 4 latents, 8x8 .* 6 with 64 positions do not fit"),
    ):
        predict("sd1")
    with (
        begun(Watch()).installed(unet, (3, 4, 32, 32)),
        pytest.raises(UsageError, match="installed for 3 latents, 16x16 .* 6 with 64 positions"),
    ):
        predict("sd1")


def test_processors_with_weights_are_not_put_aside() -> None:
    unet = tiny.unet(in_channels=4)
    adapter = IPAdapterAttnProcessor2_0(hidden_size=32, cross_attention_dim=32)
    layer = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2")
    layer.set_processor(adapter)
    before = processors(unet)
    control = begun(Watch())
    with (
        pytest.raises(UsageError, match="IPAdapterAttnProcessor2_0 of mid_block.* unload it"),
        control.installed(unet, SHAPE),
    ):
        pass
    assert processors(unet) == before
    with begun(Watch(lambda site: site.kind == "self")).installed(unet, SHAPE):
        assert layer.processor is adapter


def test_tokens_alone_are_shared_without_writing_attention_out(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = tiny.unet(in_channels=4)
    monkeypatch.setattr(Attention, "get_attention_scores", None)
    with torch.no_grad(), begun(SelfInjection(2, in_window(1.0))).installed(unet, (2, 4, 16, 16)):
        first, second = unet(randn(1, 4, 16, 16).repeat(2, 1, 1, 1), 10, randn(2, 5, 32)).sample
    assert distance(first, second) > 1e-5  # by what they read, not by where they look


def test_gradients_pass_through_edits_that_write() -> None:
    class Halve(Watch):
        def __call__(self, probs: Tensor, site: AttentionSite, progress: Progress) -> Tensor:
            probs[-1:] *= 0.5
            return probs

    unet = tiny.unet(in_channels=4)
    text = randn(2, 5, 32).requires_grad_()
    with begun(Halve()).installed(unet, (2, 4, 16, 16)):
        unet(randn(2, 4, 16, 16), 10, text).sample.sum().backward()
    assert text.grad is not None
    assert text.grad.abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_store_keeps_the_mean_conditional_maps(family: str) -> None:
    """Against the layer's own scores, computed from its inputs, over two calls."""
    unet, expected = model(family).unet, dict[str, list[Tensor]]()

    def look(name: str) -> Any:
        def hook(attn: Any, args: Any, kwargs: Any) -> None:
            query = attn.head_to_batch_dim(attn.to_q(args[0]))
            key = attn.head_to_batch_dim(attn.to_k(kwargs["encoder_hidden_states"]))
            scores = attn.get_attention_scores(query, key).unflatten(0, (2, 3, attn.heads))
            expected.setdefault(name, []).append(scores[1].mean(1))

        return hook

    sites = [site for site in attention_sites(unet, (16, 16)) if site.kind == "cross"]
    hooks = [
        unet.get_submodule(site.name).register_forward_pre_hook(look(site.name), with_kwargs=True)
        for site in sites
    ]
    store = AttentionStore()
    try:
        with begun(store).installed(unet, SHAPE):
            predict(family)
            predict(family, latents=randn(*SHAPE, seed=1))
    finally:
        for hook in hooks:
            hook.remove()
    levels = {site.level for site in sites}
    assert levels == ({0, 1, 2} if family == "storybook" else {1})
    for level in levels:
        parts = [torch.stack(expected[site.name]).mean(0) for site in sites if site.level == level]
        maps = store.maps(level)
        assert torch.allclose(maps.flatten(1, 2), torch.stack(parts).mean(0), atol=1e-6)
        assert maps.shape == (3, 16 >> level, 16 >> level, TOKENS)


def test_the_store_leaves_large_layers_alone() -> None:
    unet = model("storybook").unet
    before, store = dict(processors(unet)), AttentionStore(max_queries=64)
    with begun(store).installed(unet, SHAPE):
        kept = {name for name, processor in processors(unet) if processor != before[name]}
        predict("storybook")
    sites = attention_sites(unet, (16, 16))
    assert kept == {f"{site.name}.processor" for site in sites if site.kind == "cross" and site.level > 0}
    with pytest.raises(UsageError, match=r"levels \[1, 2\] only, not of 0: see max_queries"):
        store.maps(0)
    assert AttentionStore().wants(AttentionSite("attn2", "cross", "up", 1, (32, 32)))
    assert not AttentionStore().wants(AttentionSite("attn2", "cross", "up", 1, (32, 33)))


def test_maps_of_words() -> None:
    store, site = AttentionStore(), AttentionSite("attn2", "cross", "up", 2, (2, 3))
    probs = probabilities(2, 2, 4, 6, TOKENS)
    store(probs, site, Progress(0, 1))
    words = word_tokens(TOKENIZER, "a cat")
    maps = store.word_maps(words, prompt=1)
    assert maps.shape == (2, 2, 3)
    cat = probs[1, 1, :, :, 2:5].mean(0).sum(-1).view(2, 3)
    assert torch.allclose(maps[1], cat / cat.max())
    assert maps.min() >= 0
    assert torch.equal(maps.amax((1, 2)), torch.ones(2))
    assert distance(maps, store.word_maps(words, prompt=0)) > 1e-3
    assert torch.equal(store.word_maps([[]]), torch.zeros(1, 2, 3))
    store(-3.0 * probs, site, Progress(0, 1))  # what a negative factor leaves
    assert torch.equal(store.word_maps(words), torch.zeros(2, 2, 3))
