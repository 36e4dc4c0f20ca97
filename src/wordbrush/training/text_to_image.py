"""The storybook's text-to-image model: a stock U-Net conditioned by the storybook CLIP's text tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import CLIPTextModel, CLIPTokenizer

from wordbrush.diffusion.loss import diffusion_target, min_snr_weight
from wordbrush.models import quiet
from wordbrush.training.data import CaptionedLatents, encode_edits, tokenise
from wordbrush.training.loop import Batch, LoopConfig, move, train

NOISE_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "steps_offset": 1,
}  # fmt: skip


class Config(LoopConfig):
    """Defaults of the storybook text-to-image model."""

    data: list[Path] = Field(description="folders of rendered edits")
    autoencoder: Path = Field(description="folder of the autoencoder")
    clip: Path = Field(description="folder that holds text_encoder/ and tokenizer/")
    steps: int = 6000
    batch_size: int = 64
    learning_rate: float = 8e-4
    ema_decay: float | None = 0.999
    widths: list[int] = Field([64, 128, 160], description="channels at 16, 8 and 4 latents a side")
    text_dropout: float = Field(0.1, ge=0, le=1, description="share of samples that lose their caption")


class TextTower:
    """The frozen text encoder, with the null text's embedding ready."""

    def __init__(self, clip: Path) -> None:
        self.tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(clip / "tokenizer")
        with quiet():  # about the picture tower, which stays unused
            model: Any = CLIPTextModel.from_pretrained(clip / "text_encoder")
        self.model = model.eval().requires_grad_(False)
        self.null_tokens = tokenise(self.tokenizer, "")

    @torch.no_grad()
    def __call__(self, tokens: Tensor, dropped: Tensor) -> Tensor:
        """(B, L) ids and (B,) bool -> (B, L, D), the dropped ones replaced by the null text."""
        self.model.to(tokens.device)
        ids = torch.where(dropped[:, None], self.null_tokens.to(tokens.device), tokens)
        return self.model(ids).last_hidden_state


class TextToImageRecipe:
    """Trains a U-Net from scratch on (latents, caption)."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.text = TextTower(config.clip)
        self.edits = encode_edits(config.autoencoder, *config.data)
        self.noise = DDPMScheduler(**NOISE_SCHEDULE)
        unet = build_unet(config.widths, self.edits.pair(0).shape[1], self.text.model.config.hidden_size)
        self.model: nn.Module = fast_on_cpu(unet)

    def samples(self) -> Dataset[dict[str, Any]]:
        """Endless draws of pictures with captions."""
        return CaptionedLatents(self.edits, self.text.tokenizer)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error of the predicted v, weighted by min-SNR-5."""
        tensors = move(batch, model)
        dropped = (
            torch.rand(len(tensors["tokens"]), device=tensors["tokens"].device) < self.config.text_dropout
        )
        text = self.text(tensors["tokens"], dropped)
        return {"loss": denoising_loss(model, self.noise, tensors["latents"], text)}

    def export(self, model: nn.Module, folder: Path) -> None:
        """As `UNet2DConditionModel.save_pretrained`."""
        model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]


def denoising_loss(
    model: nn.Module, noise: DDPMScheduler, latents: Tensor, text: Tensor, image: Tensor | None = None
) -> Tensor:
    """The weighted error of one noise prediction at random timesteps.

    Args:
        model: A U-Net.
        noise: Its training schedule.
        latents: (B, C, h, w), scaled.
        text: (B, L, D).
        image: (B, C, h, w) source latents for the model's extra input channels.
    """
    steps: int = noise.config["num_train_timesteps"]
    t = torch.randint(0, steps, (len(latents),), device=latents.device)
    epsilon = torch.randn_like(latents)
    noisy = noise.add_noise(latents, epsilon, t)  # pyright: ignore[reportArgumentType]
    inputs = noisy if image is None else torch.cat([noisy, image], dim=1)
    predicted = model(inputs.contiguous(memory_format=torch.channels_last), t, text).sample
    errors = F.mse_loss(
        predicted.float(), diffusion_target(noise, latents, epsilon, t), reduction="none"
    ).mean((1, 2, 3))
    return (errors * min_snr_weight(noise, t)).mean()


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


def fast_on_cpu(unet: UNet2DConditionModel) -> nn.Module:
    """Channels-last; on a CPU plain attention, whose backward pass is faster than the fused one's."""
    if not torch.cuda.is_available():
        unet.set_attn_processor(AttnProcessor())
    return unet.to(memory_format=torch.channels_last)  # pyright: ignore


def main(config: Config) -> None:
    """Trains, or goes on training, the text-to-image model."""
    train(TextToImageRecipe(config), config)
