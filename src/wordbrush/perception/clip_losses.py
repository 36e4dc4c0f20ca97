"""What Text2LIVE (Bar-Tal et al., 2204.02491) asks of a picture by a frozen CLIP; gradients reach the pixels.

Pixels are (B, 3, H, W) in [0, 1]; embeddings are (N, D), not normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wordbrush.perception.clip import Clip
from wordbrush.perception.views import random_views

_VIEW, _STRUCTURE = 320 / 224, 380 / 224
"""Longest side of a view, and of the picture whose structure is compared, for each pixel of CLIP's side."""

TEMPLATES = (
    "photo of {}.", "high quality photo of {}.", "a photo of {}.", "the photo of {}.", "image of {}.",
    "an image of {}.", "high quality image of {}.", "a high quality image of {}.", "the {}.", "a {}.", "{}.",
    "{}", "{}!", "{}...",
)  # fmt: skip
SCREEN_TEMPLATES = ("{} over a green screen.", "{} in front of a green screen.")
PLAIN = ("{}",)


@dataclass(frozen=True, eq=False)
class ClipEyes:
    """A CLIP to look through: frozen, and with attention that can be read."""

    clip: Clip

    def __post_init__(self) -> None:
        self.clip.model.requires_grad_(False)
        self.clip.model.set_attn_implementation("eager")  # the fused one does not give its weights

    @torch.no_grad()
    def texts(self, text: str, templates: Sequence[str] = PLAIN) -> Tensor:
        """Embeddings of a text in each template."""
        model, window = self.clip.model, self.clip.model.config.text_config.max_position_embeddings
        tokens = self.clip.tokenizer(
            [template.format(text) for template in templates],
            padding="max_length", truncation=True, max_length=window, return_tensors="pt",
        )  # fmt: skip
        return model.get_text_features(tokens.input_ids.to(model.device)).pooler_output

    def views(self, pixels: Tensor, count: int, rng: torch.Generator) -> Tensor:
        """Random views of one picture at CLIP's size, normalised for `embed`."""
        return self._normalise(random_views(pixels, count, self._size(pixels, _VIEW), rng))

    def embed(self, prepared: Tensor) -> Tensor:
        """Embeddings of prepared pictures of any size."""
        out = self.clip.model.get_image_features(prepared, interpolate_pos_encoding=True)
        return out.pooler_output

    def self_similarity(self, pixels: Tensor) -> Tensor:
        """(B, T, T): the cosines between the tokens before the picture tower's last block, CLS included."""
        prepared = self._normalise(_resize(pixels, self._size(pixels, _STRUCTURE)))
        out = self.clip.model.vision_model(
            pixel_values=prepared, interpolate_pos_encoding=True, output_hidden_states=True
        )
        tokens = F.normalize(out.hidden_states[-2], dim=-1)
        return tokens @ tokens.mT

    def relevance(self, pixels: Tensor, text: Tensor) -> Tensor:
        """Where a picture shows what a text says: (1, 1, side, side) in [0, 1].

        By the attention of the last block's CLS token, weighed by the gradient of the similarity (Chefer et
        al., 2103.15679, eq. 5), stretched from the least value to the greatest.

        Args:
            pixels: Of one picture.
            text: (1, D).
        """
        prepared = self._normalise(self.square(pixels.detach())).requires_grad_()
        with torch.enable_grad():
            out = self.clip.model.get_image_features(prepared, output_attentions=True)
            similarity = F.cosine_similarity(out.pooler_output, text)
            attention: Tensor = out.attentions[-1]
            (gradient,) = torch.autograd.grad(similarity.sum(), attention)
        seen = (gradient * attention.detach()).clamp(min=0).mean(1)[:, 0, 1:]
        side = round(seen.shape[-1] ** 0.5)
        grid = F.interpolate(
            seen.view(1, 1, side, side), self.clip.preprocess.side, mode="bilinear", align_corners=False
        )
        low, high = grid.aminmax()
        return (grid - low) / (high - low).clamp(min=1e-12)

    def square(self, pixels: Tensor) -> Tensor:
        """Stretched to CLIP's own square."""
        side = self.clip.preprocess.side
        return _resize(pixels, (side, side))

    def _size(self, pixels: Tensor, longest: float) -> tuple[int, int]:
        """A picture's own shape at CLIP's short side, in whole patches."""
        side, patch = self.clip.preprocess.side, self.clip.model.config.vision_config.patch_size
        height, width = pixels.shape[-2:]
        scale = min(side / min(height, width), longest * side / max(height, width))
        return max(1, round(scale * height / patch)) * patch, max(1, round(scale * width / patch)) * patch

    def _normalise(self, unit: Tensor) -> Tensor:
        preprocess: Any = self.clip.preprocess
        mean, std = (unit.new_tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
        return (unit - mean) / std


def spherical_distance(pictures: Tensor, texts: Tensor) -> Tensor:
    """The mean over all pairs of 2 arcsin(|x - y| / 2)^2, of unit vectors."""
    pairs = F.normalize(pictures, dim=-1)[:, None] - F.normalize(texts, dim=-1)
    return 2 * (pairs.norm(dim=-1) / 2).arcsin().square().mean()


def directional_distance(before: Tensor, after: Tensor, directions: Tensor) -> Tensor:
    """The mean over all pairs of 1 - cos(after - before, direction)."""
    return 1 - F.cosine_similarity((after - before)[:, None], directions[None], dim=-1).mean()


def structure_distance(eyes: ClipEyes, before: Tensor, after: Tensor) -> Tensor:
    """The mean squared difference of the self-similarities: 0 for equal pictures."""
    with torch.no_grad():
        wanted = eyes.self_similarity(before)
    return F.mse_loss(eyes.self_similarity(after), wanted)


def opacity_penalty(alpha: Tensor) -> Tensor:
    """0.01 times the mean opacity, plus 0.01 times a smooth count of what is not transparent."""
    return 0.01 * alpha.mean() + 0.01 * (2 * (torch.sigmoid(5 * alpha) - 0.5)).mean()


def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
