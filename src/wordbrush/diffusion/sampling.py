"""The sampler: `denoise` runs any diffusers scheduler over a `Predict` function."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from wordbrush.diffusion.conditioning import Conditioning

Predict = Callable[[Tensor, Tensor, int], Tensor]
"""latents (B, C, h, w), timestep (), step -> guided noise (B, C, h, w)."""


@dataclass(frozen=True)
class Progress:
    """Where a run of `denoise` stands."""

    step: int
    """From 0."""
    num_steps: int


class Control(Protocol):
    """What acts inside the network, such as attention control, and so has to be told the step."""

    def begin_step(self, progress: Progress) -> None:
        """Called before the noise of this step is predicted."""
        ...


def initial_latents(
    scheduler: Any, shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device
) -> Tensor:
    """(B, *shape) pure noise, sample k drawn from generator k alone; after `scheduler.set_timesteps`."""
    noise = randn_tensor((len(generators), *shape), generator=list(generators), device=device)
    return noise * scheduler.init_noise_sigma


def predict_noise(
    unet: UNet2DConditionModel, scheduler: Any, latents: Tensor, t: Tensor, branches: Sequence[Conditioning]
) -> Tensor:
    """Predict the noise of (B, C, h, w) latents under every branch in one call: (branches, B, C, h, w).

    A branch without an image takes zeros where another has one.
    """
    num, dtype = len(branches), unet.dtype
    inputs = scheduler.scale_model_input(latents, t).repeat(num, 1, 1, 1)
    images = [b.image for b in branches]
    like = next((image for image in images if image is not None), None)
    if like is not None:
        null = torch.zeros_like(like)
        inputs = torch.cat([inputs, torch.cat([null if image is None else image for image in images])], dim=1)
    noise: Tensor = unet(
        inputs.to(dtype),
        t,
        encoder_hidden_states=torch.cat([b.text for b in branches]).to(dtype),
        class_labels=_stack([b.task for b in branches], dtype),
        added_cond_kwargs=_added(branches, dtype),
        return_dict=False,
    )[0]
    return noise.to(latents.dtype).unflatten(0, (num, len(latents)))


def denoise(
    predict: Predict,
    scheduler: Any,
    latents: Tensor,
    *,
    timesteps: Tensor | None = None,
    control: Control | None = None,
    after_step: Sequence[Callable[[Tensor, Tensor, int], Tensor]] = (),
    on_step: Callable[[int, Tensor], None] | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Run the scheduler from noisy to clean latents (B, C, h, w).

    Args:
        predict: the guided noise at each step.
        scheduler: a diffusers scheduler whose timesteps are set.
        latents: scaled by the scheduler's `init_noise_sigma`, or noised to the first timestep.
        timesteps: the last part of the scheduler's; None runs them all.
        control: told before each step where the run stands; steps count from the first that is run.
        after_step: functions (latents, timestep, step) -> latents, applied in order after each step.
        on_step: called with (step, latents); an exception raised in it ends the run.
        generators: one for each sample, for schedulers that add noise as they go.
    """
    steps: Tensor = scheduler.timesteps if timesteps is None else timesteps
    if timesteps is not None and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(len(scheduler.timesteps) - len(timesteps))
    options: dict[str, Any] = {"return_dict": False}
    if generators is not None and "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = list(generators)
    for step, t in enumerate(steps):
        if control is not None:
            control.begin_step(Progress(step, len(steps)))
        noise = predict(latents, t, step)
        latents = scheduler.step(noise, t, latents, **options)[0]
        for change in after_step:
            latents = change(latents, t, step)
        if on_step is not None:
            on_step(step, latents)
    return latents


def _added(branches: Sequence[Conditioning], dtype: torch.dtype) -> dict[str, Tensor] | None:
    pooled = _stack([b.pooled for b in branches], dtype)
    time_ids = _stack([b.time_ids for b in branches], dtype)
    return None if pooled is None or time_ids is None else {"text_embeds": pooled, "time_ids": time_ids}


def _stack(parts: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given).to(dtype) if given else None
