"""What the recipes of latent diffusion models share: the noise schedule and the error of a prediction."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from wordbrush.diffusion.loss import diffusion_target

NOISE_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "steps_offset": 1,
}  # fmt: skip


def prediction_errors(
    model: nn.Module,
    noise: DDPMScheduler,
    latents: Tensor,
    text: Tensor,
    *,
    t: Tensor,
    epsilon: Tensor,
    image: Tensor | None = None,
    added: dict[str, Tensor] | None = None,
    task: Tensor | None = None,
) -> Tensor:
    """The squared errors (B,) of predictions at given timesteps from given noise.

    Args:
        model: A U-Net.
        noise: Its training schedule.
        latents: (B, C, h, w), scaled.
        text: (B, L, D).
        t: (B,) timesteps.
        epsilon: (B, C, h, w), the noise.
        image: (B, C, h, w) source latents for the model's extra input channels.
        added: SDXL's pooled text and sizes.
        task: (B,), what a model with task embeddings takes as `class_labels`.
    """
    noisy = noise.add_noise(latents, epsilon, t)  # pyright: ignore[reportArgumentType]
    inputs = noisy if image is None else torch.cat([noisy, image], dim=1)
    options: dict[str, Any] = {} if added is None else {"added_cond_kwargs": added}
    options |= {} if task is None else {"class_labels": task}
    predicted = model(inputs.contiguous(memory_format=torch.channels_last), t, text, **options).sample
    target = diffusion_target(noise, latents, epsilon, t)
    return (predicted.float() - target).square().mean((1, 2, 3))


def fast_on_cpu(unet: UNet2DConditionModel) -> nn.Module:
    """Channels-last; on a CPU plain attention, whose backward pass is faster than the fused one's."""
    if not torch.cuda.is_available():
        unet.set_attn_processor(AttnProcessor())
    return unet.to(memory_format=torch.channels_last)  # pyright: ignore
