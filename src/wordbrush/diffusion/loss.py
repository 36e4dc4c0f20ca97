"""What a diffusion model is trained towards."""

from typing import Any

import torch
from torch import Tensor


def diffusion_target(scheduler: Any, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the U-Net should predict, by the scheduler's `prediction_type`; all (B, C, h, w), t (B,).

    epsilon: the noise. v_prediction: sqrt(a) noise - sqrt(1 - a) latents (2202.00512). sample: the latents.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return latents
    if kind != "v_prediction":
        raise ValueError(f"unknown prediction_type {kind!r}")
    alphas: Tensor = scheduler.alphas_cumprod
    alpha = alphas.to(t.device)[t].to(latents.dtype)[:, None, None, None]
    return alpha.sqrt() * noise - (1.0 - alpha).sqrt() * latents


def min_snr_weights(scheduler: Any, *, gamma: float = 5.0) -> Tensor:
    """(T,) weights of the losses at all timesteps of training: Min-SNR-gamma (2303.09556).

    Drawing timesteps in proportion to them has the expected gradient of weighing uniform draws, up to a
    constant, and less variance: no sample is computed only to count for next to nothing.

    Args:
        scheduler: Says what is predicted.
        gamma: The greatest ratio of signal to noise; 0: all weights are 1.
    """
    alpha: Tensor = scheduler.alphas_cumprod.float()
    if not gamma:
        return torch.ones_like(alpha)
    snr = alpha / (1.0 - alpha)
    capped = snr.clamp(max=gamma)
    kind = scheduler.config.prediction_type
    if kind == "sample":
        return capped
    return capped / (snr + 1.0) if kind == "v_prediction" else capped / snr


def shift_weights(count: int, *, shift: float) -> Tensor:
    """(count,) how likely timesteps are in training, up to a factor, when strong noise is to come more often.

    Even draws u from [0, 1] become shift u / (1 + (shift - 1) u), as parts of the steps (2403.03206, section
    5.3.2). At 1 all are alike.
    """
    parts = (torch.arange(count) + 0.5) / count
    return shift / (shift - (shift - 1.0) * parts) ** 2


def timestep_weights(scheduler: Any, *, min_snr: float, shift: float) -> Tensor:
    """(T,) how likely timesteps are in training, up to a factor: `min_snr_weights` times `shift_weights`."""
    by_snr = min_snr_weights(scheduler, gamma=min_snr)
    return by_snr * shift_weights(len(by_snr), shift=shift)


def conditioning_dropout(u: Tensor, *, rate: float = 0.05) -> tuple[Tensor, Tensor]:
    """Which samples lose their text and which their image, from one u ~ U[0, 1) a sample.

    At `rate` only the text, at `rate` both, at `rate` only the image (InstructPix2Pix, section 3.2.1).

    Returns:
        Two boolean tensors of u's shape: text dropped, image dropped.
    """
    return u < 2 * rate, (u >= rate) & (u < 3 * rate)
