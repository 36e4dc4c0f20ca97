import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from wordbrush.diffusion.guidance import dual_guidance, dual_guidance_weights, in_interval, rescale_guidance

NOISE = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
UNCOND, IMAGE, FULL = NOISE
SCALES = [(7.5, 1.5), (1.0, 1.0), (0.0, 1.0), (3.0, 3.0), (0.0, 0.0), (5.0, 1.0), (2.0, 0.0), (0.3, 0.7)]


def guide(text_scale: float, image_scale: float) -> torch.Tensor:
    return dual_guidance(NOISE, text_scale=text_scale, image_scale=image_scale)


def test_identities_of_the_paper() -> None:
    assert torch.allclose(guide(1.0, 1.0), FULL, atol=1e-6)
    assert torch.allclose(guide(0.0, 1.0), IMAGE, atol=1e-6)
    assert torch.allclose(guide(0.0, 0.0), UNCOND)
    for scale in (0.5, 2.0, 7.5):  # ordinary guidance between nothing and everything
        assert torch.allclose(guide(scale, scale), UNCOND + scale * (FULL - UNCOND), atol=1e-5)
    expected = UNCOND + 7.5 * (FULL - IMAGE) + 1.5 * (IMAGE - UNCOND)
    assert torch.allclose(guide(7.5, 1.5), expected, atol=1e-5)


@pytest.mark.parametrize(("text_scale", "image_scale"), SCALES)
def test_weights_are_those_of_dual_guidance(text_scale: float, image_scale: float) -> None:
    weights = dual_guidance_weights(text_scale, image_scale)
    assert sum(weights) == pytest.approx(1)
    weighed = sum(weight * noise for weight, noise in zip(weights, NOISE, strict=True))
    assert torch.allclose(guide(text_scale, image_scale), torch.as_tensor(weighed), atol=1e-5)


def test_rescale() -> None:
    guided = guide(7.5, 1.5)
    for strength in (0.0, 0.3, 1.0):
        mine = rescale_guidance(guided, FULL, strength)
        assert torch.allclose(mine, rescale_noise_cfg(guided, FULL, strength), atol=1e-5)
    assert torch.equal(rescale_guidance(guided, FULL, 0.0), guided)
    full = rescale_guidance(guided, FULL, 1.0)
    assert torch.allclose(full.std((1, 2, 3)), FULL.std((1, 2, 3)))


def test_interval() -> None:
    assert [in_interval(i, 4, 0.0, 1.0) for i in range(4)] == [True] * 4
    assert [in_interval(i, 4, 0.25, 0.75) for i in range(4)] == [False, True, True, False]
    assert not any(in_interval(i, 4, 0.5, 0.5) for i in range(4))
