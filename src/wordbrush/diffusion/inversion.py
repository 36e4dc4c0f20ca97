"""From a picture back to the noise that makes it: DDIM inversion and null-text inversion."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler
from torch import Tensor

from wordbrush.diffusion.conditioning import Conditioning
from wordbrush.diffusion.guidance import classifier_free_guidance
from wordbrush.diffusion.sampling import Predict, denoise, predict_noise
from wordbrush.models import quiet

_GRADIENT_SCALE = 2.0**12
"""Keeps the gradient of a squared error above what float16 can hold; Adam sees the gradient itself."""


@dataclass(frozen=True, eq=False)
class Inversion:
    """Where pictures come from, sample beside sample."""

    trajectory: Tensor
    """(B, steps + 1, C, h, w): latents at every noise level, the clean ones first."""
    null_texts: Tensor | None = None
    """(B, steps, L, D), one for each step of sampling: the noisiest first. None: they were not optimised."""

    def to(self, device: torch.device) -> "Inversion":
        """The same on a device."""
        null_texts = None if self.null_texts is None else self.null_texts.to(device)
        return Inversion(self.trajectory.to(device), null_texts)

    def split(self) -> "list[Inversion]":
        """One for each sample."""
        null_texts = [None] * len(self.trajectory) if self.null_texts is None else self.null_texts.split(1)
        return [Inversion(*parts) for parts in zip(self.trajectory.split(1), null_texts, strict=True)]

    @classmethod
    def join(cls, parts: "Sequence[Inversion]") -> "Inversion":
        """Undoes `split`."""
        null_texts = [part.null_texts for part in parts if part.null_texts is not None]
        trajectory = torch.cat([part.trajectory for part in parts])
        return cls(trajectory, torch.cat(null_texts) if null_texts else None)


@dataclass(frozen=True)
class NullTextSettings:
    """Of null-text inversion, at the defaults of the paper's code (which are given for 50 steps).

    The paper itself names a constant learning rate and tolerance: decay and growth 0.
    """

    text_scale: float = 7.5
    """Of the guidance under which the picture shall come back."""
    inner_steps: int = 10
    """Most optimiser steps at one timestep."""
    learning_rate: float = 1e-2
    decay: float = 0.5
    """Part of the learning rate that is lost, evenly, from the first step to the end."""
    tolerance: float = 1e-5
    """Mean squared error of a sample's latents below which its null text is left alone."""
    growth: float = 1e-3
    """What the tolerance gains, evenly, from the first step to the end."""


def ddim_scheduler(scheduler: Any) -> Any:
    """DDIM over a checkpoint's noise schedule, as in the papers' code; `ddim_inversion` inverts it.

    It ends at the first trained noise level, and clips nothing.
    """
    return DDIMScheduler.from_config(
        scheduler.config,
        set_alpha_to_one=False,
        clip_sample=False,
        thresholding=False,
        timestep_spacing="leading",
    )


def ddim_inversion(
    predict: Predict,
    scheduler: Any,
    latents: Tensor,
    *,
    num_steps: int | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Noise clean latents by DDIM run backwards (2010.02502).

    A step to the level of t takes the noise that the network sees when told t. Diffusers' inverse scheduler
    would read a velocity as if told the level before, which leaves the noise too weak: it is given the noise.

    Args:
        predict: what the network predicts; the less it is guided, the less the inversion drifts.
        scheduler: of `ddim_scheduler`, its timesteps set.
        latents: (B, C, h, w) as the U-Net makes them.
        num_steps: how many of its steps to go; None: all of them, to noise.
        on_step: called with (step, latents).

    Returns:
        (B, num_steps + 1, C, h, w), see `Inversion.trajectory`.
    """
    with quiet():  # about settings of the checkpoint's own sampler, which it does not have
        inverse: Any = DDIMInverseScheduler.from_config(scheduler.config, prediction_type="epsilon")
    inverse.set_timesteps(len(scheduler.timesteps), device=scheduler.timesteps.device)
    trajectory = [latents]

    def noise(latents: Tensor, t: Tensor, step: int) -> Tensor:
        return _to_noise(predict(latents, t, step), scheduler, latents, t)

    def keep(step: int, noisier: Tensor) -> None:
        trajectory.append(noisier)
        if on_step is not None:
            on_step(step, noisier)

    denoise(noise, inverse, latents, timesteps=inverse.timesteps[:num_steps], on_step=keep)
    return torch.stack(trajectory, 1)


def null_text_inversion(
    unet: UNet2DConditionModel,
    scheduler: Any,
    trajectory: Tensor,
    text: Conditioning,
    null: Conditioning,
    settings: NullTextSettings,
    *,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Null texts under which guided sampling follows an inverted trajectory (Mokady et al., 2211.09794).

    Each sample of a batch is optimised as if it were alone. No gradient outlives its optimiser step. It may
    be called in inference mode, which it leaves for its own time.

    Args:
        unet: its weights get no gradient.
        scheduler: of `ddim_scheduler`, its timesteps set; a fresh copy is used.
        trajectory: (B, steps + 1, C, h, w), of `ddim_inversion` under `text` alone.
        text: what the pictures show.
        null: what the null texts start from.
        settings: of the optimisation.
        on_step: called with (step, latents).

    Returns:
        float32 (B, steps, L, D), see `Inversion.null_texts`. With a text_scale of 1, at which null texts have
        no say, they are those of `null`.
    """
    with torch.inference_mode(False), torch.no_grad():
        # What was made in inference mode cannot have a part in a gradient.
        scheduler, num_steps = _fresh(scheduler), len(scheduler.timesteps)
        trajectory, text, null = trajectory.clone(), _cloned(text), _cloned(null)
        found: list[Tensor] = []

        def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
            cond = predict_noise(unet, scheduler, latents, t, [text])

            def guided(embeds: Tensor) -> Tensor:
                branch = dataclasses.replace(null, text=embeds)
                uncond = predict_noise(unet, scheduler, latents, t, [branch])
                return classifier_free_guidance(torch.cat([uncond, cond]), settings.text_scale)

            def errors(embeds: Tensor) -> Tensor:
                reached = scheduler.step(guided(embeds), t, latents, return_dict=False)[0]
                return (reached - trajectory[:, -2 - step]).square().flatten(1).mean(1)

            start = found[-1] if found else null.text.float()
            found.append(_optimise(errors, start, settings, step / num_steps))
            return guided(found[-1])

        denoise(predict, scheduler, trajectory[:, -1], on_step=on_step)
        return torch.stack(found, 1)


def _optimise(
    errors: Callable[[Tensor], Tensor], start: Tensor, settings: NullTextSettings, progress: float
) -> Tensor:
    """The null texts (B, L, D) that `errors` (B,) are small for, at a part of all steps."""
    if settings.text_scale == 1:
        return start
    tolerance = settings.tolerance + settings.growth * progress
    embeds = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([embeds], lr=settings.learning_rate * (1 - settings.decay * progress))
    best, active = start, torch.ones(len(start), dtype=torch.bool, device=start.device)
    for _ in range(settings.inner_steps):
        embeds.grad, error = _gradient(errors, embeds)
        optimizer.step()
        best = torch.where(active[:, None, None], embeds.detach(), best)
        active &= error >= tolerance
        if not active.any():
            break
    return best


def _gradient(errors: Callable[[Tensor], Tensor], embeds: Tensor) -> tuple[Tensor, Tensor]:
    """Of the sum of errors, and the errors; a function of its own, so that the graph ends with it."""
    with torch.enable_grad():
        error = errors(embeds)
        gradient = torch.autograd.grad(error.sum() * _GRADIENT_SCALE, embeds)[0]
    return gradient / _GRADIENT_SCALE, error.detach()


def _to_noise(output: Tensor, scheduler: Any, latents: Tensor, t: Tensor) -> Tensor:
    """The noise in latents at t, by what a network predicts, of whatever kind."""
    signal, noise = scheduler.alphas_cumprod[t] ** 0.5, (1 - scheduler.alphas_cumprod[t]) ** 0.5
    match scheduler.config.prediction_type:
        case "v_prediction":
            return signal * output + noise * latents
        case "sample":
            return (latents - signal * output) / noise
        case _:
            return output


def _fresh(scheduler: Any) -> Any:
    """The same scheduler, made anew."""
    fresh = type(scheduler).from_config(scheduler.config)
    fresh.set_timesteps(len(scheduler.timesteps), device=scheduler.timesteps.device)
    return fresh


def _cloned(branch: Conditioning) -> Conditioning:
    parts = {field.name: getattr(branch, field.name) for field in dataclasses.fields(branch)}
    clones = {name: part.clone() for name, part in parts.items() if part is not None}
    return dataclasses.replace(branch, **clones)
