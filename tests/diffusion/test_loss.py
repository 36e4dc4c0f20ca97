import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_snr

from tests import tiny
from wordbrush.diffusion.loss import (
    conditioning_dropout,
    diffusion_target,
    min_snr_weights,
    shift_weights,
    timestep_weights,
)

LATENTS, NOISE, T = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])


def test_targets() -> None:
    def target(kind: str) -> torch.Tensor:
        return diffusion_target(DDIMScheduler(**tiny.BETAS, prediction_type=kind), LATENTS, NOISE, T)

    assert target("epsilon") is NOISE
    assert target("sample") is LATENTS
    velocity = DDPMScheduler(**tiny.BETAS).get_velocity(LATENTS, NOISE, T)
    assert torch.allclose(target("v_prediction"), velocity, atol=1e-6)


def test_min_snr() -> None:
    scheduler = DDPMScheduler(**tiny.BETAS)
    snr = compute_snr(scheduler, T)
    weight = min_snr_weights(scheduler)[T]
    assert torch.allclose(weight, snr.clamp(max=5.0) / snr)
    assert min_snr_weights(scheduler, gamma=0).unique().tolist() == [1]
    assert weight[-1] == pytest.approx(1)  # nearly pure noise: not capped
    velocity = DDPMScheduler(**tiny.BETAS, prediction_type="v_prediction")
    assert torch.allclose(min_snr_weights(velocity)[T], snr.clamp(max=5.0) / (snr + 1))


def test_conditioning_dropout_over_a_million_draws() -> None:
    text, image = conditioning_dropout(torch.rand(10**6, generator=torch.Generator().manual_seed(0)))
    shares = {
        "full": (~text & ~image),
        "text": (text & ~image),
        "both": (text & image),
        "image": (~text & image),
    }
    expected = {"full": 0.85, "text": 0.05, "both": 0.05, "image": 0.05}
    assert {name: share.float().mean().item() for name, share in shares.items()} == pytest.approx(
        expected, abs=2e-3
    )
    assert not conditioning_dropout(torch.rand(100), rate=0.0)[0].any()


@pytest.mark.parametrize("shift", [1.0, 2.5, 4.0])
def test_timesteps_are_drawn_as_shifted_even_draws(shift: float) -> None:
    weights = shift_weights(1000, shift=shift).double()
    below = weights.cumsum(0) / weights.sum()
    even = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    shifted = shift * even / (1 + (shift - 1) * even)
    assert torch.allclose(below[(1000 * shifted).long()], even, atol=5e-3)
    assert (weights.unique().numel() == 1) == (shift == 1.0)


def test_timestep_weights_are_both() -> None:
    scheduler = DDPMScheduler(**tiny.BETAS)
    steps = len(scheduler.alphas_cumprod)
    assert torch.equal(timestep_weights(scheduler, min_snr=5, shift=1), min_snr_weights(scheduler, gamma=5))
    assert torch.equal(timestep_weights(scheduler, min_snr=0, shift=3), shift_weights(steps, shift=3))
    assert torch.equal(
        timestep_weights(scheduler, min_snr=5, shift=3),
        min_snr_weights(scheduler, gamma=5) * shift_weights(steps, shift=3),
    )
