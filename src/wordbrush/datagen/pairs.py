"""From a pair of captions to pairs of pictures: InstructPix2Pix's generator (2211.09800, section 3.1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from wordbrush import images
from wordbrush.attention.edits import instruct_pix2pix_pairs
from wordbrush.diffusion.conditioning import Conditioning
from wordbrush.diffusion.model import LatentDiffusion, TextEmbeds
from wordbrush.diffusion.runtime import prepare_process, resolve_device, resolve_dtype
from wordbrush.diffusion.sampling import denoise, initial_latents, predict_noise
from wordbrush.diffusion.schedulers import SCHEDULERS
from wordbrush.errors import ModelError, UsageError
from wordbrush.perception.clip import Clip, pair_similarities

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Range = tuple[float, float]


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


class PairGenerator:
    """Paints pairs of pictures that show two captions and are otherwise alike.

    Both pictures of a pair start from the same noise, get the same noise from an ancestral scheduler, and
    share self-attention in the first part of the steps.

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
        self._scheduler()

    @classmethod
    def load(cls, settings: PairSettings) -> PairGenerator:
        """Load the checkpoint."""
        prepare_process()
        device = resolve_device(settings.device)
        dtype = resolve_dtype(settings.dtype, device)
        model = LatentDiffusion.load(settings.model, device=device, dtype=dtype, unet="text_to_image")
        return cls(model, settings)

    @torch.inference_mode()
    def __call__(self, caption: str, output: str, draws: Sequence[Draw]) -> Pixels:
        """Paint a pair for each draw, `batch_size` at a time.

        A pair depends on its draw alone, within float tolerance; to the last bit if also its place among the
        draws is the same.

        Args:
            caption: Of the first pictures.
            output: Of the second ones.
            draws: At least one.

        Returns:
            (N, 2, H, W, 3) uint8.

        Raises:
            ModelError: The GPU's memory is too small.
        """
        null, text = self.model.encode_null_text(), self.model.encode_text([caption, output])
        size = self.settings.batch_size
        batches = [draws[start : start + size] for start in range(0, len(draws), size)]
        try:
            return np.concatenate([self._paint(null, text, batch) for batch in batches])
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"out of memory on {self.model.device}: lower pairs.batch_size ({size})"
            ) from error

    def _paint(self, null: TextEmbeds, text: TextEmbeds, draws: Sequence[Draw]) -> Pixels:
        """(N, 2, H, W, 3), from embeds of (1, L, D) and (2, L, D)."""
        model, scheduler = self.model, self._scheduler()
        generators = [torch.Generator().manual_seed(draw.seed) for draw in draws for _ in range(2)]
        latents = initial_latents(scheduler, self.shape, generators, model.device)
        branches = self._branch(null, 2 * len(draws)), self._branch(text, len(draws))
        scales = torch.tensor([draw.guidance_scale for draw in draws for _ in range(2)], device=model.device)
        scales = scales[:, None, None, None]

        def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
            uncond, cond = predict_noise(model.unet, scheduler, latents, t, branches)
            return uncond + scales * (cond - uncond)

        control = instruct_pix2pix_pairs([draw.p2p_threshold for draw in draws])
        with control.installed(model.unet, latents.shape):
            latents = denoise(predict, scheduler, latents, control=control, generators=generators)
        pictures = np.stack([np.asarray(picture) for picture in images.to_pil(model.decode(latents))])
        return pictures.reshape(len(draws), 2, *pictures.shape[1:])

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


def score_pairs(clip: Clip, pixels: Pixels, caption: str, output: str) -> dict[str, np.ndarray[Any, Any]]:
    """The filter's four scores, as of the files in which the pictures will be read.

    Args:
        clip: Scores them.
        pixels: (N, 2, H, W, 3).
        caption: Of the first pictures.
        output: Of the second ones.

    Returns:
        (N,) for each of `rows.SCORES`.
    """
    pictures = [Image.fromarray(picture) for pair in pixels for picture in pair]
    before, after = clip.embed_images(pictures).unflatten(0, (-1, 2)).unbind(1)
    source, target = clip.embed_texts([caption, output]).expand(len(pixels), 2, -1).unbind(1)
    scores = pair_similarities(before, after, source, target)
    return {name: column.numpy() for name, column in scores.items()}
