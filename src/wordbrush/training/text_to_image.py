"""The storybook's text-to-image model: a stock U-Net conditioned by the storybook CLIP's text tower."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from wordbrush.data.blocks import open_blocks
from wordbrush.diffusion.conditioning import narrow_input
from wordbrush.diffusion.loss import timestep_weights
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.storybook.dataset import RenderedEdits
from wordbrush.training.base import load_parts
from wordbrush.training.captioned_samples import CaptionedLatents, CaptionedWindows
from wordbrush.training.config import BatchSize, EmaDecay, LearningRate, LoopConfig, Steps
from wordbrush.training.denoising import fast_on_cpu, prediction_errors
from wordbrush.training.encoding import Encoder
from wordbrush.training.latent_cache import open_cache
from wordbrush.training.loop import Batch, move, processes, train
from wordbrush.training.optimizers import OptimizerName
from wordbrush.training.whitening import whiten_text

_WHITENED = 1000  # rows whose texts say how the states vary


class Config(LoopConfig):
    """Defaults of the storybook text-to-image model."""

    data: list[Path] = Field(description="folders of rendered edits")
    autoencoder: Path = Field(description="folder of the autoencoder")
    clip: Path = Field(description="folder that holds text_encoder/ and tokenizer/")
    cache_folder: Path | None = Field(
        None,
        description="of the latents, which other runs on the data may share (default: OUTPUT/cache)",
    )
    steps: Steps = 6000
    batch_size: BatchSize = 32
    learning_rate: LearningRate = 2e-3
    optimizer: OptimizerName = "muon"
    ema_decay: EmaDecay = 0.999
    min_snr: float = Field(
        0.0, ge=0, description="gamma of the min-SNR weights by which timesteps are drawn; 0: all alike"
    )
    timestep_shift: float = Field(
        3.0, ge=1, description="strong noise is drawn more often; 1: all timesteps alike, up to --min-snr"
    )
    widths: list[int] = Field([64, 128, 160], description="channels at 16, 8 and 4 latents a side")
    init_from: Path | None = Field(
        None,
        description="folder of the U-Net that a new run starts from; an editor loses its picture",
    )
    window: int | None = Field(
        None, ge=8, description="pixels of a side of windows around single things, in the place of pictures"
    )
    text_dropout: float = Field(0.1, ge=0, le=1, description="share of samples that lose their caption")


class TextToImageRecipe:
    """Trains a U-Net from scratch on (latents, caption)."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)  # of the new weights
        self.config = config
        self.data_sets = [open_blocks([str(folder)]) for folder in config.data]
        self.edits = RenderedEdits.open(*config.data)
        device: Any = processes().device
        parts = load_parts(config.autoencoder, config.clip, device=device)
        unet = _make_unet(config, parts)
        self.base = dataclasses.replace(parts, unet=unet)
        self.encoder = Encoder(self.base, sample=False, bfloat16=config.mixed_precision == "bf16")
        if config.init_from is None:
            whiten_text(unet, self._text_states())
        self.null = self.encoder.null_text().tokens
        self.timesteps = timestep_weights(
            self.base.scheduler, min_snr=config.min_snr, shift=config.timestep_shift
        )
        self.model: nn.Module = fast_on_cpu(unet)

    def samples(self) -> Dataset[dict[str, Any]]:
        """Endless draws of pictures, or windows of them, with captions."""
        config, rows, grid = self.config, self.edits.rows, self.base.latent_grid
        shape = self.edits.pixels[0].shape[2], self.edits.pixels[0].shape[3]
        folder = config.cache_folder or config.output / "cache"
        cache = open_cache(self.data_sets, self.encoder, [shape] * len(rows), folder, flips=False)
        size = shape[0] // grid, shape[1] // grid
        if config.window is None:
            return CaptionedLatents(cache, rows, size)
        return CaptionedWindows(cache, self.edits, size, config.window // grid)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The error of the prediction at random timesteps, some of the captions dropped."""
        latents = self.base.scale_latents(move(batch, model)["latents"])
        count = len(latents)
        dropped = torch.rand(count, device=latents.device) < self.config.text_dropout
        text = self.encoder.text(batch["caption"]).tokens.where(~dropped[:, None, None], self.null)
        t = torch.multinomial(self.timesteps, count, replacement=True).to(latents.device)
        epsilon = torch.randn_like(latents)
        errors = prediction_errors(model, self.base.scheduler, latents, text, t=t, epsilon=epsilon)
        return {"loss": errors.mean()}

    def _text_states(self) -> Tensor:
        """(N, D) of captions, and of instructions: an editor starts from this model."""
        keys = ("source_caption", "target_caption", "instruction")
        texts = [[row[key] for key in keys] for row in self.edits.rows[:_WHITENED]]
        return torch.cat([self.encoder.text(of_row).tokens.flatten(0, 1) for of_row in texts])

    def export(self, model: nn.Module, folder: Path) -> None:
        """As `UNet2DConditionModel.save_pretrained`."""
        model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]


def _make_unet(config: Config, parts: LatentDiffusion) -> UNet2DConditionModel:
    if config.init_from is not None:
        unet = UNet2DConditionModel.from_pretrained(config.init_from)
        return narrow_input(unet, parts.latent_channels)  # an editor's picture is left out
    return build_unet(config.widths, parts.latent_channels, parts.text_encoders[0].config.hidden_size)


def build_unet(widths: list[int], latent_channels: int, text_width: int) -> UNet2DConditionModel:
    """Attention at every size, 32 channels a head; a projection of the text states (see `whiten_text`)."""
    levels = len(widths)
    sizes: dict[str, Any] = {
        "block_out_channels": tuple(widths),
        "attention_head_dim": tuple(width // 32 for width in widths),  # diffusers' name for their number
    }
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=text_width,
        encoder_hid_dim=text_width,
        encoder_hid_dim_type="text_proj",
        **sizes,
    )


def main(config: Config) -> None:
    """Trains, or goes on training, the text-to-image model."""
    train(TextToImageRecipe(config), config)
