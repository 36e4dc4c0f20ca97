"""InstructPix2Pix: an editor that follows an instruction (Brooks et al., 2211.09800)."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from wordbrush.diffusion.conditioning import Conditioning
from wordbrush.diffusion.guidance import dual_guidance, dual_guidance_weights, in_interval, rescale_guidance
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.diffusion.sampling import Predict, denoise, initial_latents, predict_noise
from wordbrush.diffusion.task_embedding import ANY, TaskEmbedding, known_tasks, load_task_embedding
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


def told(
    branches: Sequence[Conditioning], conditions: tuple[Tensor, Tensor]
) -> tuple[Conditioning, Conditioning, Conditioning]:
    """Three branches with a task in each: (B, time_width) and (B, 1, text_width) of a `TaskEmbedding`."""
    time, token = conditions
    first, second, third = (
        dataclasses.replace(branch, text=torch.cat([branch.text, token.to(branch.text)], 1), task=time)
        for branch in branches
    )
    return first, second, third


class InstructPix2Pix(InstructionEditor[InstructPix2PixSettings]):
    """The method as published; with an editor of many tasks it tells none, which that must have learned."""

    method = METHODS["instruct-pix2pix"]
    embedding: TaskEmbedding | None = None

    @classmethod
    def check_parts(cls, folder: Path) -> None:
        """An editor of many tasks must follow instructions alone, too."""
        tasks = known_tasks(folder)
        if tasks and ANY not in tasks:
            raise ModelError("this editor has to be told the task: --method emu-edit does so")

    def load_extras(self, folder: Path) -> None:
        """Load the task embeddings of an editor of many tasks."""
        if known_tasks(folder):
            self.embedding = load_task_embedding(folder, self.model.unet, self.model.device)

    def _branches(self, batch: Batch) -> tuple[Conditioning, Conditioning, Conditioning]:
        branches = super()._branches(batch)
        if self.embedding is None:
            return branches
        vectors = self.embedding.vector(ANY).expand(len(batch.samples), -1)
        return told(branches, self.embedding(vectors))
