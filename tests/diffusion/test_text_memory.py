from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from tests import tiny
from wordbrush.diffusion.text_memory import remembered_text
from wordbrush.models import resolve


@pytest.fixture(params=["stock", "with a projection of the text"])
def unet(request: pytest.FixtureRequest) -> UNet2DConditionModel:
    torch.manual_seed(0)
    if request.param == "stock":
        return tiny.unet().eval()
    return UNet2DConditionModel.from_pretrained(resolve("storybook") / "text_to_image")


def inputs(unet: UNet2DConditionModel, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    width = unet.config.get("encoder_hid_dim") or unet.config["cross_attention_dim"]
    return torch.randn(2, unet.config["in_channels"], 8, 8), torch.randn(2, 7, width)


def run(unet: UNet2DConditionModel, latents: Tensor, text: Tensor, time: int = 500) -> Tensor:
    return unet(latents, torch.tensor(time), encoder_hidden_states=text.clone(), return_dict=False)[0]


def count_keys(unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one whenever keys of cross-attention are computed."""
    calls: list[Any] = []
    for name, layer in unet.named_modules():
        if name.endswith("attn2.to_k"):
            assert isinstance(layer, nn.Linear)
            compute = layer.forward
            monkeypatch.setattr(layer, "forward", lambda x, c=compute: calls.append(None) or c(x))
    return calls


@torch.no_grad()
def test_the_results_are_the_same_and_the_text_is_computed_once(
    unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch
):
    calls = count_keys(unet, monkeypatch)
    latents, text = inputs(unet)
    other = text.flip(0)
    runs = [(text, 900), (text, 500), (text, 100), (other, 500), (text, 500), (text[:1], 500)]
    expected = [run(unet, latents[: len(t)], t, time) for t, time in runs]
    layers = len(calls) // len(runs)
    calls.clear()
    with remembered_text(unet):
        found = [run(unet, latents[: len(t)], t, time) for t, time in runs]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(calls) == 4 * layers  # text, other, text again, one text


def test_gradients_go_through(unet: UNet2DConditionModel):
    latents, text = inputs(unet)
    grads: list[Tensor] = []

    def backward() -> None:
        leaf = text.clone().requires_grad_()
        run(unet, latents, leaf).square().sum().backward()
        assert leaf.grad is not None
        grads.append(leaf.grad)

    backward()
    with remembered_text(unet):
        with torch.no_grad():
            run(unet, latents, text)
        backward()
        backward()
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


def test_nothing_is_left_behind(unet: UNet2DConditionModel):
    before = [set(vars(module)) for module in unet.modules()]
    with pytest.raises(RuntimeError, match="stop"), remembered_text(unet):
        with torch.no_grad():
            run(unet, *inputs(unet))
        raise RuntimeError("stop")
    assert [set(vars(module)) for module in unet.modules()] == before
    assert not unet._forward_pre_hooks


@torch.no_grad()
def test_what_stood_before_stands_again(unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch):
    calls = count_keys(unet, monkeypatch)
    with remembered_text(unet):
        run(unet, *inputs(unet))
    calls.clear()
    run(unet, *inputs(unet))
    assert calls
