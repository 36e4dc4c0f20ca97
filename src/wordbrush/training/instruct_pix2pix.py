"""InstructPix2Pix: a text-to-image U-Net, widened, fine-tuned on (source, instruction, target)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from wordbrush.diffusion.conditioning import widen_input
from wordbrush.diffusion.loss import conditioning_dropout
from wordbrush.training.data import EditedLatents, encode_edits
from wordbrush.training.loop import Batch, LoopConfig, move, train
from wordbrush.training.text_to_image import NOISE_SCHEDULE, TextTower, denoising_loss, fast_on_cpu


class Config(LoopConfig):
    """Defaults of the storybook editor."""

    data: list[Path] = Field(description="folders of rendered edits")
    autoencoder: Path = Field(description="folder of the autoencoder")
    clip: Path = Field(description="folder that holds text_encoder/ and tokenizer/")
    init_from: Path = Field(description="folder of a text-to-image U-Net, or of one that is widened already")
    steps: int = 6000
    batch_size: int = 64
    learning_rate: float = 5e-4
    ema_decay: float | None = 0.999
    dropout: float = Field(
        0.05, ge=0, le=1 / 3, description="share that loses its text, its image, and both (each)"
    )


class InstructPix2PixRecipe:
    """Section 3.2 of InstructPix2Pix (2211.09800)."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.text = TextTower(config.clip)
        self.edits = encode_edits(config.autoencoder, *config.data)
        self.noise = DDPMScheduler(**NOISE_SCHEDULE)
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
        no_text, no_image = conditioning_dropout(torch.rand(len(tensors["tokens"])), rate=self.config.dropout)
        source = tensors["source"] * ~no_image.to(tensors["source"].device)[:, None, None, None]
        text = self.text(tensors["tokens"], no_text.to(source.device))
        return {"loss": denoising_loss(model, self.noise, tensors["latents"], text, source)}

    def export(self, model: nn.Module, folder: Path) -> None:
        """As `UNet2DConditionModel.save_pretrained`."""
        model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]


def main(config: Config) -> None:
    """Trains, or goes on training, the editor."""
    train(InstructPix2PixRecipe(config), config)
