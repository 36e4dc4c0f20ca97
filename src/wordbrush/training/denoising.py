"""What the recipes of latent diffusion models share: settings, text tower, noise schedule, loss, export."""

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
from transformers import CLIPTextModel, CLIPTokenizer

from wordbrush.diffusion.loss import diffusion_target, min_snr_weights
from wordbrush.models import quiet
from wordbrush.training.data import EncodedEdits, encode_edits, tokenise
from wordbrush.training.loop import LoopConfig, TrainingError
from wordbrush.training.optimizers import OptimizerName

NOISE_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "steps_offset": 1,
}  # fmt: skip


class DenoisingConfig(LoopConfig):
    """The settings that these recipes have in common, with the storybook's defaults."""

    data: list[Path] = Field(description="folders of rendered edits")
    autoencoder: Path = Field(description="folder of the autoencoder")
    clip: Path = Field(description="folder that holds text_encoder/ and tokenizer/")
    steps: int = 6000
    batch_size: int = 32
    learning_rate: float = 2e-3
    optimizer: OptimizerName = "muon"
    ema_decay: float | None = 0.999
    min_snr: float = Field(
        5.0, ge=0, description="gamma of the min-SNR weights by which timesteps are drawn; 0: all alike"
    )


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


class DenoisingRecipe:
    """The half of a recipe that does not depend on what the U-Net is conditioned on."""

    model: nn.Module

    def __init__(self, config: DenoisingConfig) -> None:
        for folder in (config.autoencoder, config.clip):
            if not folder.is_dir():
                raise TrainingError(f"no folder {folder}: train it first")
        self.text = TextTower(config.clip)
        self.edits: EncodedEdits = encode_edits(config.autoencoder, *config.data)
        self.noise: DDPMScheduler = DDPMScheduler(**NOISE_SCHEDULE)

    def export(self, model: nn.Module, folder: Path) -> None:
        """As `UNet2DConditionModel.save_pretrained`."""
        model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]


def denoising_loss(
    model: nn.Module, noise: DDPMScheduler, latents: Tensor, text: Tensor, *, min_snr: float
) -> Tensor:
    """The error of one prediction at random timesteps.

    Args:
        model: A U-Net.
        noise: Its training schedule.
        latents: (B, C, h, w), scaled.
        text: (B, L, D).
        min_snr: Gamma of the weights by which timesteps are drawn.
    """
    weights = min_snr_weights(noise, gamma=min_snr)
    t = torch.multinomial(weights, len(latents), replacement=True).to(latents.device)
    epsilon = torch.randn_like(latents)
    return prediction_errors(model, noise, latents, text, t=t, epsilon=epsilon).mean()


def prediction_errors(
    model: nn.Module,
    noise: DDPMScheduler,
    latents: Tensor,
    text: Tensor,
    *,
    t: Tensor,
    epsilon: Tensor,
    image: Tensor | None = None,
    added: dict[str, Tensor] | None = None,
) -> Tensor:
    """The squared errors (B,) of predictions at given timesteps from given noise.

    Args:
        model: A U-Net.
        noise: Its training schedule.
        latents: (B, C, h, w), scaled.
        text: (B, L, D).
        t: (B,) timesteps.
        epsilon: (B, C, h, w), the noise.
        image: (B, C, h, w) source latents for the model's extra input channels.
        added: SDXL's pooled text and sizes.
    """
    noisy = noise.add_noise(latents, epsilon, t)  # pyright: ignore[reportArgumentType]
    inputs = noisy if image is None else torch.cat([noisy, image], dim=1)
    options: dict[str, Any] = {} if added is None else {"added_cond_kwargs": added}
    predicted = model(inputs.contiguous(memory_format=torch.channels_last), t, text, **options).sample
    target = diffusion_target(noise, latents, epsilon, t)
    return F.mse_loss(predicted.float(), target, reduction="none").mean((1, 2, 3))


def fast_on_cpu(unet: UNet2DConditionModel) -> nn.Module:
    """Channels-last; on a CPU plain attention, whose backward pass is faster than the fused one's."""
    if not torch.cuda.is_available():
        unet.set_attn_processor(AttnProcessor())
    return unet.to(memory_format=torch.channels_last)  # pyright: ignore
