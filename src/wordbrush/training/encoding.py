"""From pictures and texts to what the U-Net sees."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wordbrush.diffusion.model import LatentDiffusion, TextEmbeds


@dataclass(frozen=True)
class Encoder:
    """The frozen networks of a checkpoint.

    Attributes:
        model: The checkpoint.
        sample: Whether targets are drawn from the autoencoder's posterior; else they are its mode.
        bfloat16: Whether to compute in this precision.
    """

    model: LatentDiffusion
    sample: bool
    bfloat16: bool

    @property
    def num_moments(self) -> int:
        """What `moments` keeps of a pair."""
        return 3 if self.sample else 2

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """(B, 2, 3, H, W) uint8 -> float32 (B, K, C, h, w), unscaled latents.

        They are the mode of the picture before, the mode of the one after, and the standard deviation of the
        latter where targets are drawn.
        """
        with self._precision():
            scaled = pixels.flatten(0, 1).float() / 127.5 - 1
            output: Any = self.model.vae.encode(scaled.contiguous(memory_format=torch.channels_last))
        if not hasattr(output, "latent_dist"):
            modes = output.latents.float()
            deviations = torch.zeros_like(modes)
        else:
            modes, deviations = output.latent_dist.mode().float(), output.latent_dist.std.float()
        before, after = modes.unflatten(0, (-1, 2)).unbind(1)
        parts = [before, after, deviations.unflatten(0, (-1, 2))[:, 1]]
        return torch.stack(parts[: self.num_moments], dim=1)

    @torch.no_grad()
    def text(self, instructions: Sequence[str]) -> TextEmbeds:
        """The instructions' embeddings, float32."""
        with self._precision():
            embeds = self.model.encode_text(instructions)
        return TextEmbeds(embeds.tokens.float(), None if embeds.pooled is None else embeds.pooled.float())

    @torch.no_grad()
    def null_text(self) -> TextEmbeds:
        """What stands for no text, one row."""
        embeds = self.model.encode_null_text()
        return TextEmbeds(embeds.tokens.float(), None if embeds.pooled is None else embeds.pooled.float())

    def condition_and_target(self, moments: Tensor, posterior: Tensor) -> tuple[Tensor, Tensor]:
        """What the U-Net is given of the picture before, (B, C, h, w) unscaled; and what is noised, scaled.

        Args:
            moments: (B, K, C, h, w).
            posterior: (B, C, h, w), from the normal distribution.
        """
        condition, target = moments[:, 0], moments[:, 1]
        if self.sample:
            target = target + moments[:, 2] * posterior
        if self.model.scale_image_condition:
            condition = condition * self.model.vae.config.scaling_factor
        return condition, self.model.scale_latents(target)

    def fingerprint(self) -> str:
        """Tells apart encoders that give other results."""
        digest = hashlib.blake2b(f"{self.sample} {self.bfloat16}".encode(), digest_size=8)
        for network in (*self.model.text_encoders, self.model.vae):
            for parameter in network.parameters():
                digest.update(parameter.cpu().numpy().tobytes())
        return digest.hexdigest()

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bfloat16)
