"""The storybook's autoencoder: a stock `AutoencoderKL` at f8, trained on random crops of rendered pictures.

Crops make it cheap (it is convolutional); residual blocks that start as the identity, and Muon, make it learn
many times faster than the default initialisation with AdamW. L1 + MSE + gradients keep edges. Its latents
are the means: a small penalty, in the place of the KL divergence, keeps each channel near mean 0 and variance
1, so that diffusion needs no scaling; a little noise makes the decoder forgive the errors of diffusion.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from wordbrush.storybook.dataset import RenderedEdits
from wordbrush.training.config import EmaDecay, LearningRate, LoopConfig, Steps
from wordbrush.training.loop import Batch, move, train
from wordbrush.training.optimizers import OptimizerName

CROPS_PER_EDIT = 2


class Config(LoopConfig):
    """Settings, with the storybook autoencoder's defaults."""

    data: list[Path] = Field(description="folders of rendered edits")
    steps: Steps = 4500
    batch_size: int = Field(6, ge=1, description="edits per step; each gives one crop of either picture")
    learning_rate: LearningRate = 2e-3
    optimizer: OptimizerName = "muon"
    ema_decay: EmaDecay = 0.998
    crop: int = Field(64, description="side of a crop, pixels")
    widths: list[int] = Field([16, 32, 64, 96], description="channels, from pixels to latents")
    latent_channels: int = 16
    latent_noise: float = Field(0.04, description="standard deviation of the noise added to the latents")


class Crops(Dataset[dict[str, Any]]):
    """Index -> (2, 3, crop, crop) uint8: a crop of each of the two pictures of an edit."""

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

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)  # of the new weights
        self.config = config
        self.edits = RenderedEdits.open(*config.data)
        model: Any = build_autoencoder(config)
        self.model: nn.Module = model.to(memory_format=torch.channels_last)

    def samples(self) -> Dataset[dict[str, Any]]:
        """Endless crops."""
        return Crops(self.edits, self.config.crop)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """L1 + 4 MSE + half the L1 of the gradients + the penalty on the latents; pixels in [-1, 1]."""
        pixels = move(batch, model)["pixels"].flatten(0, 1).float() / 127.5 - 1
        pixels = pixels.to(memory_format=torch.channels_last)
        autoencoder: Any = getattr(model, "module", model)
        latents = autoencoder.encode(pixels).latent_dist.mean
        noise = self.config.latent_noise * torch.randn_like(latents)
        restored = autoencoder.decode(latents + noise).sample
        absolute, squared = F.l1_loss(restored, pixels), F.mse_loss(restored, pixels)
        edges = sum(F.l1_loss(restored.diff(dim=d), pixels.diff(dim=d)) for d in (-1, -2))
        means, variances = latents.mean((0, 2, 3)), latents.var((0, 2, 3))
        spread = means.square().mean() + (variances - 1).square().mean()
        loss = absolute + 4 * squared + 0.5 * edges + 0.01 * spread
        return {"loss": loss, "psnr": 10 * torch.log10(4 / squared.detach()), "spread": spread}

    def export(self, model: nn.Module, folder: Path) -> None:
        """As `AutoencoderKL.save_pretrained`."""
        model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]


def build_autoencoder(config: Config) -> AutoencoderKL:
    """Few channels where there are many pixels; no attention, as crops of any size must do."""
    levels = len(config.widths)
    model = AutoencoderKL(
        block_out_channels=tuple(config.widths),  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * levels,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * levels,  # pyright: ignore[reportArgumentType]
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    model.apply(_keep_variance)
    model.apply(_start_as_identity)
    return model


def _keep_variance(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _start_as_identity(module: nn.Module) -> None:
    if isinstance(module, ResnetBlock2D):
        nn.init.zeros_(module.conv2.weight)


def main(config: Config) -> None:
    """Trains, or goes on training, the autoencoder."""
    train(AutoencoderRecipe(config), config)
