"""The storybook's autoencoder: a stock `AutoencoderKL` at f8, trained on random crops of rendered pictures.

Crops make it cheap (it is convolutional); L1 + MSE + gradients keep edges. A small penalty keeps each latent channel near
mean 0 and variance 1, so that diffusion needs no per-channel scaling, and a fixed posterior width makes the decoder forgive
the errors of diffusion.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from wordbrush.storybook.dataset import RenderedEdits
from wordbrush.training.loop import Batch, LoopConfig, move, train

CROPS_PER_EDIT = 2


class AutoencoderConfig(LoopConfig):
    """Defaults of the storybook autoencoder."""

    data: list[Path] = Field(description="folders of rendered edits")
    steps: int = 4000
    batch_size: int = Field(16, description="edits per step; each gives one crop of either picture")
    learning_rate: float = 1.5e-3
    crop: int = Field(64, description="side of a crop, pixels")
    widths: tuple[int, ...] = Field(
        (16, 48, 64, 96), description="channels at 1/1, 1/2, 1/4 and 1/8 of the size"
    )
    latent_channels: int = 12
    latent_noise: float = Field(
        0.04, description="standard deviation of the posterior, of latents with variance 1"
    )


class Crops(Dataset[dict[str, Any]]):
    """Index -> (2, 3, crop, crop) uint8: a crop of the picture before and another of the picture after an edit."""

    def __init__(self, edits: RenderedEdits, crop: int) -> None:
        self.edits, self.crop = edits, crop

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((2, index))
        pair = self.edits.pair(int(rng.integers(len(self.edits))))
        corners = rng.integers(0, pair.shape[1] - self.crop + 1, (CROPS_PER_EDIT, 2)).tolist()
        crops = [
            picture[y : y + self.crop, x : x + self.crop]
            for picture, (y, x) in zip(pair, corners, strict=True)
        ]
        return {"pixels": torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()}


class AutoencoderRecipe:
    """Trains encoder and decoder together."""

    def __init__(self, config: AutoencoderConfig) -> None:
        self.config = config
        self.edits = RenderedEdits.open(*config.data)
        model: Any = build_autoencoder(config)
        self.model: nn.Module = model.to(memory_format=torch.channels_last)

    def samples(self) -> Dataset[dict[str, Any]]:
        """Endless crops."""
        return Crops(self.edits, self.config.crop)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """L1 + 4 MSE + half the L1 of the gradients + penalties on the latents; pixels are in [-1, 1]."""
        pixels = move(batch, model)["pixels"].flatten(0, 1).float() / 127.5 - 1
        pixels = pixels.to(memory_format=torch.channels_last)
        autoencoder: Any = getattr(model, "module", model)
        mean, logvar = autoencoder.quant_conv(autoencoder.encoder(pixels)).chunk(2, dim=1)
        restored = autoencoder.decode(mean + self.config.latent_noise * torch.randn_like(mean)).sample
        absolute, squared = F.l1_loss(restored, pixels), F.mse_loss(restored, pixels)
        edges = F.l1_loss(restored.diff(dim=-1), pixels.diff(dim=-1)) + F.l1_loss(
            restored.diff(dim=-2), pixels.diff(dim=-2)
        )
        spread = mean.mean((0, 2, 3)).square().mean() + (mean.var((0, 2, 3)) - 1).square().mean()
        width = (logvar - 2 * math.log(self.config.latent_noise)).square().mean()
        loss = absolute + 4 * squared + 0.5 * edges + 0.01 * spread + 1e-4 * width
        return {"loss": loss, "psnr": 10 * torch.log10(4 / squared.detach()), "spread": spread}

    def export(self, model: nn.Module, folder: Path) -> None:
        """As `AutoencoderKL.save_pretrained`."""
        model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """Narrow at full resolution, where a convolution costs most; no attention, so that any size fits."""
    return AutoencoderKL(
        block_out_channels=config.widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=128,
        scaling_factor=1.0,
    )


def main(config: AutoencoderConfig) -> None:
    """Trains, or goes on training, the autoencoder."""
    train(AutoencoderRecipe(config), config)
