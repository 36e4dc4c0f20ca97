"""Pictures from captions, in groups that start from the same noise: what every kind of pair is painted by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from wordbrush import images
from wordbrush.attention.control import AttentionControl
from wordbrush.diffusion.conditioning import Conditioning
from wordbrush.diffusion.model import LatentDiffusion, TextEmbeds
from wordbrush.diffusion.runtime import prepare_process, resolve_device, resolve_dtype
from wordbrush.diffusion.sampling import denoise, initial_latents, predict_noise
from wordbrush.diffusion.schedulers import SCHEDULERS
from wordbrush.diffusion.text_memory import remembered_text
from wordbrush.errors import ModelError, UsageError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Range = tuple[float, float]
T = TypeVar("T")


class PairSettings(BaseModel):
    """How pairs are drawn; the defaults are the paper's.

    A model's useful guidance differs: the storybook's pictures are spoilt by the paper's 7.5 to 15, and take
    about 2 to 5.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        default="storybook", description="text-to-image checkpoint: embedded name, folder, file or hub id"
    )
    clip: str = Field(
        default="storybook",
        description="CLIP that scores the pairs: embedded name, folder or hub id; "
        "the paper's is openai/clip-vit-large-patch14",
    )
    samples: int = Field(default=100, ge=1, description="pairs drawn for each pair of captions")
    batch_size: int = Field(
        default=8, ge=1, description="pairs denoised at once; for each the U-Net sees 4 latents"
    )
    p2p_threshold: Range = Field(
        default=(0.1, 0.9), description="least and greatest share of steps with shared self-attention"
    )
    guidance_scale: Range = Field(default=(7.5, 15.0), description="least and greatest guidance by the text")
    scheduler: str = Field(default="euler-a", description=f"one of {', '.join(SCHEDULERS)}")
    steps: int = Field(default=100, ge=1, description="of the scheduler; 10 to 20 do with dpm++")
    size: int | None = Field(
        default=None, ge=8, description="side of the pictures, pixels; default: the model's own"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto is half precision where that is faster"
    )

    @model_validator(mode="after")
    def _check(self) -> PairSettings:
        if self.scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler is {self.scheduler!r}: one of {', '.join(SCHEDULERS)}")
        if not 0 <= self.p2p_threshold[0] <= self.p2p_threshold[1] <= 1:
            raise ValueError("p2p_threshold must be two numbers in [0, 1], the smaller one first")
        if not 0 <= self.guidance_scale[0] <= self.guidance_scale[1]:
            raise ValueError("guidance_scale must be two numbers from 0 up, the smaller one first")
        return self


@dataclass(frozen=True)
class Draw:
    """What is drawn for one pair of pictures.

    Attributes:
        seed: Of all its noise, in [0, 2**53): a number that every JSON reader takes.
        p2p_threshold: The share of the steps in which the second picture has the first one's self-attention.
        guidance_scale: Of classifier-free guidance, for both pictures.
    """

    seed: int
    p2p_threshold: float
    guidance_scale: float


def draw_samples(settings: PairSettings, seed: int, unit: str) -> list[Draw]:
    """The draws of a unit; draw n depends on the run's seed, the unit's name, n and the ranges alone."""
    return [_draw(settings, Random(f"{seed}/{unit}/{n}")) for n in range(settings.samples)]


def _draw(settings: PairSettings, random: Random) -> Draw:
    seed = random.getrandbits(53)
    return Draw(seed, random.uniform(*settings.p2p_threshold), random.uniform(*settings.guidance_scale))


class Painter:
    """Paints groups of pictures: those of a group start from the same noise, and differ by their captions.

    They also get the same noise from an ancestral scheduler.

    Args:
        model: A text-to-image checkpoint.
        settings: How to sample.

    Raises:
        ModelError: The U-Net wants more than latents.
        UsageError: The size does not fit the model, or the scheduler cannot take so many steps.
    """

    def __init__(self, model: LatentDiffusion, settings: PairSettings) -> None:
        self.model, self.settings = model, settings
        channels, grid = model.unet.config.in_channels, model.latent_grid
        if channels != model.latent_channels:
            raise ModelError(
                f"{settings.model} is no text-to-image model: its U-Net takes {channels} channels, not "
                f"{model.latent_channels}"
            )
        self.size = settings.size or model.native_size
        if self.size % grid:
            raise UsageError(
                f"pairs.size is {self.size}: with {settings.model} it must be a multiple of {grid}"
            )
        self.shape = model.latent_channels, self.size // grid, self.size // grid
        self._encode = lru_cache(maxsize=2)(self._encode_captions)  # batch after batch has the same
        self._scheduler()

    @classmethod
    def load(cls, settings: PairSettings) -> Painter:
        """Load the checkpoint."""
        prepare_process()
        device = resolve_device(settings.device)
        dtype = resolve_dtype(settings.dtype, device)
        model = LatentDiffusion.load(settings.model, device=device, dtype=dtype, unet="text_to_image")
        return cls(model, settings)

    @torch.inference_mode()
    def __call__(
        self,
        captions: Sequence[str],
        draws: Sequence[Draw],
        control: AttentionControl,
        after_step: Sequence[Callable[[Tensor, Tensor, int], Tensor]] = (),
    ) -> Pixels:
        """Paint a group for each draw, all at once.

        Args:
            captions: Of the pictures of a group.
            draws: At least one.
            control: Of the attention, over (groups * captions) prompts.
            after_step: For `denoise`.

        Returns:
            (groups, captions, H, W, 3) uint8.

        Raises:
            ModelError: The GPU's memory is too small.
        """
        model, scheduler, members = self.model, self._scheduler(), len(captions)
        null, text = self._encode(tuple(captions))
        generators = [torch.Generator().manual_seed(draw.seed) for draw in draws for _ in captions]
        latents = initial_latents(scheduler, self.shape, generators, model.device)
        branches = self._branch(null, members * len(draws)), self._branch(text, len(draws))
        scales = torch.tensor([draw.guidance_scale for draw in draws for _ in captions], device=model.device)
        scales = scales[:, None, None, None]

        def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
            uncond, cond = predict_noise(model.unet, scheduler, latents, t, branches)
            return uncond + scales * (cond - uncond)

        try:
            with control.installed(model.unet, latents.shape), remembered_text(model.unet):
                latents = denoise(
                    predict, scheduler, latents, control=control, after_step=after_step, generators=generators
                )
            pictures = np.stack([np.asarray(picture) for picture in images.to_pil(model.decode(latents))])
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"out of memory on {model.device}: lower pairs.batch_size ({self.settings.batch_size})"
            ) from error
        return pictures.reshape(len(draws), members, *pictures.shape[1:])

    def _encode_captions(self, captions: tuple[str, ...]) -> tuple[TextEmbeds, TextEmbeds]:
        return self.model.encode_null_text(), self.model.encode_text(list(captions))

    def _branch(self, text: TextEmbeds, times: int) -> Conditioning:
        pooled = None if text.pooled is None else text.pooled.repeat(times, 1)
        tokens = text.tokens.repeat(times, 1, 1)
        ids = self.model.add_time_ids((self.size, self.size), len(tokens))
        return Conditioning(tokens, pooled=pooled, time_ids=ids)

    def _scheduler(self) -> Any:
        scheduler = self.model.make_scheduler(self.settings.scheduler)
        try:
            scheduler.set_timesteps(self.settings.steps, device=self.model.device)
        except (ValueError, IndexError) as error:
            name = self.settings.scheduler
            raise UsageError(f"{name} cannot sample in {self.settings.steps} steps: {error}") from error
        return scheduler


def in_batches(rows: Sequence[T], size: int) -> list[Sequence[T]]:
    """Consecutive rows, `size` at a time."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
