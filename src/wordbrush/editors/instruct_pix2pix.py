"""InstructPix2Pix: an editor that follows an instruction (Brooks et al., 2211.09800)."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from wordbrush.diffusion.conditioning import Conditioning
from wordbrush.diffusion.guidance import dual_guidance, dual_guidance_weights, in_interval, rescale_guidance
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.diffusion.sampling import Predict, denoise, initial_latents, predict_noise
from wordbrush.diffusion.text_memory import remembered_text
from wordbrush.editors import METHODS
from wordbrush.editors.latent_editor import Batch, LatentEditor
from wordbrush.editors.settings import InstructPix2PixSettings
from wordbrush.errors import ModelError

_S = TypeVar("_S", bound=InstructPix2PixSettings)
_FULL = 2
"""Place of the fully conditional branch among (no image, no text), (image, no text), (image, text)."""


class InstructionEditor(LatentEditor[_S]):
    """An editor whose U-Net takes the picture's latents beside the noisy ones; guided with two scales."""

    @classmethod
    def check(cls, model: LatentDiffusion) -> None:
        """The U-Net must have been widened."""
        if model.unet.config.in_channels != 2 * model.latent_channels:
            raise ModelError(
                f"{cls.method.name} needs a U-Net of {2 * model.latent_channels} input channels (latents and "
                f"picture), but this checkpoint's takes {model.unet.config.in_channels}"
            )

    def edit_latents(self, batch: Batch, on_step: Callable[[int, Tensor], None] | None) -> Tensor:
        """From noise, under the guidance of equation 3."""
        scheduler = batch.scheduler
        latents = initial_latents(scheduler, batch.source.shape[1:], batch.generators, self.model.device)
        predict = self._predict(scheduler, self._branches(batch))
        with remembered_text(self.model.unet):
            return denoise(predict, scheduler, latents, on_step=on_step, generators=batch.generators)

    def _branches(self, batch: Batch) -> tuple[Conditioning, Conditioning, Conditioning]:
        """(No image, no text), (image, no text), (image, text)."""
        model, source = self.model, batch.source
        full = self.text([request.instruction for request in batch.requests])
        null = self.null_text(batch.requests)
        if model.scale_image_condition:
            source = source * model.vae.config.scaling_factor
        ids = model.add_time_ids(batch.size, len(source))
        return (
            Conditioning(null.tokens, torch.zeros_like(source), pooled=null.pooled, time_ids=ids),
            Conditioning(null.tokens, source, pooled=null.pooled, time_ids=ids),
            Conditioning(full.tokens, source, pooled=full.pooled, time_ids=ids),
        )

    def _predict(self, scheduler: Any, branches: Sequence[Conditioning]) -> Predict:
        """Guided noise, without running the branches whose weight is zero."""
        model, settings = self.model, self.settings
        scales = {"text_scale": settings.text_scale, "image_scale": settings.image_scale}
        weights = dual_guidance_weights(**scales)
        rescale = settings.guidance_rescale
        needed = [i for i, weight in enumerate(weights) if weight or (i == _FULL and rescale)]

        def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
            on = in_interval(step, len(scheduler.timesteps), settings.guidance_start, settings.guidance_end)
            run = needed if on else [_FULL]
            noise = predict_noise(model.unet, scheduler, latents, t, [branches[i] for i in run])
            if len(run) == 1:
                return noise[0]
            if len(run) == 3:
                guided = dual_guidance(noise, **scales)
            else:
                guided = weights[run[0]] * noise[0] + weights[run[1]] * noise[1]
            return rescale_guidance(guided, noise[-1], rescale) if rescale else guided

        return predict


class InstructPix2Pix(InstructionEditor[InstructPix2PixSettings]):
    """The method as published."""

    method = METHODS["instruct-pix2pix"]
