"""InstructPix2Pix: a text-to-image U-Net, widened, fine-tuned on (source, instruction, target)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from wordbrush.diffusion.conditioning import widen_input
from wordbrush.diffusion.loss import conditioning_dropout
from wordbrush.training.data import EditedLatents
from wordbrush.training.denoising import DenoisingConfig, DenoisingRecipe, denoising_loss, fast_on_cpu
from wordbrush.training.loop import Batch, move, train


class Config(DenoisingConfig):
    """Defaults of the storybook editor."""

    init_from: Path = Field(description="folder of a text-to-image U-Net, or of one that is widened already")
    learning_rate: float = 1e-3
    dropout: float = Field(
        0.05, ge=0, le=1 / 3, description="share that loses its text, its image, and both (each)"
    )


class InstructPix2PixRecipe(DenoisingRecipe):
    """Section 3.2 of InstructPix2Pix (2211.09800)."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.dropout = config.dropout
        unet: UNet2DConditionModel = UNet2DConditionModel.from_pretrained(config.init_from)
        if unet.config["in_channels"] == unet.config["out_channels"]:
            unet = widen_input(unet, int(unet.config["out_channels"]))
        self.model: nn.Module = fast_on_cpu(unet)

    def samples(self) -> Dataset[dict[str, Any]]:
        """Endless draws of edits."""
        return EditedLatents(self.edits, self.text.tokenizer)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The denoising loss; one draw a sample decides which conditioning it loses."""
        tensors = move(batch, model)
        no_text, no_image = conditioning_dropout(torch.rand(len(tensors["tokens"])), rate=self.dropout)
        source = tensors["source"] * ~no_image.to(tensors["source"].device)[:, None, None, None]
        text = self.text(tensors["tokens"], no_text.to(source.device))
        return {"loss": denoising_loss(model, self.noise, tensors["latents"], text, source)}


def main(config: Config) -> None:
    """Trains, or goes on training, the editor."""
    train(InstructPix2PixRecipe(config), config)
