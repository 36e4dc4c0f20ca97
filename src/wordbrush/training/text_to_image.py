"""The storybook's text-to-image model: a stock U-Net conditioned by the storybook CLIP's text tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from wordbrush.training.data import CaptionedLatents, CaptionedWindows
from wordbrush.training.denoising import DenoisingConfig, DenoisingRecipe, denoising_loss, fast_on_cpu
from wordbrush.training.loop import Batch, move, train


class Config(DenoisingConfig):
    """Defaults of the storybook text-to-image model."""

    widths: list[int] = Field([64, 128, 160], description="channels at 16, 8 and 4 latents a side")
    init_from: Path | None = Field(None, description="folder of the U-Net that a new run starts from")
    window: int | None = Field(
        None, ge=8, description="pixels of a side of windows around single things, in the place of pictures"
    )
    text_dropout: float = Field(0.1, ge=0, le=1, description="share of samples that lose their caption")


class TextToImageRecipe(DenoisingRecipe):
    """Trains a U-Net from scratch on (latents, caption)."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.text_dropout, self.window, self.min_snr = config.text_dropout, config.window, config.min_snr
        channels, text_width = self.edits.pair(0).shape[1], self.text.model.config.hidden_size
        if config.init_from is None:
            unet = build_unet(config.widths, channels, text_width)
        else:
            unet = UNet2DConditionModel.from_pretrained(config.init_from)
        self.model: nn.Module = fast_on_cpu(unet)

    def samples(self) -> Dataset[dict[str, Any]]:
        """Endless draws of pictures, or windows of them, with captions."""
        if self.window is not None:
            return CaptionedWindows(self.edits, self.text.tokenizer, self.window // self.edits.grid)
        return CaptionedLatents(self.edits, self.text.tokenizer)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The denoising loss, some of the captions dropped."""
        tensors = move(batch, model)
        tokens = tensors["tokens"]
        dropped = torch.rand(len(tokens), device=tokens.device) < self.text_dropout
        text = self.text(tokens, dropped)
        return {"loss": denoising_loss(model, self.noise, tensors["latents"], text, min_snr=self.min_snr)}


def build_unet(widths: list[int], latent_channels: int, text_width: int) -> UNet2DConditionModel:
    """Attention at every size; 32 channels a head."""
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
        **sizes,
    )


def main(config: Config) -> None:
    """Trains, or goes on training, the text-to-image model."""
    train(TextToImageRecipe(config), config)
