"""CLIP (2103.00020): embeddings of pictures and texts, and what InstructPix2Pix measures with them.

All functions of embeddings take unit vectors, (N, D), and are pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer
from transformers.image_processing_base import ImageProcessingMixin

from wordbrush import images
from wordbrush.errors import ModelError
from wordbrush.models import PINNED, is_hub_id, loading, resolve

_BATCH = 32
_MODES = {
    Image.Resampling.BICUBIC: "bicubic",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BOX: "area",
}


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become a CLIP's input, by the `preprocessor_config.json` beside the model.

    Attributes:
        side: Of the model's square input, pixels.
        mode: Of `torch.nn.functional.interpolate`.
        mean: Of each channel, of values in [0, 1].
        std: Likewise.
    """

    side: int
    mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 3, side, side), normalised.

        The picture is stretched, neither cropped nor antialiased, as InstructPix2Pix does and unlike CLIP's
        own processor: no part of an edit may fall outside.
        """
        options = {} if self.mode == "area" else {"align_corners": False}
        unit = F.interpolate((pixels.float() + 1) / 2, size=self.side, mode=self.mode, **options)
        mean, std = (unit.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (unit - mean) / std


@dataclass(frozen=True, eq=False)
class Clip:
    """A stock `CLIPModel`, ready to call.

    Attributes:
        model: The `CLIPModel`.
        tokenizer: Its `CLIPTokenizer`.
        preprocess: Of pixels.
    """

    model: Any
    tokenizer: Any
    preprocess: Preprocessing

    @classmethod
    def load(cls, source: str | Path, *, device: torch.device, dtype: torch.dtype = torch.float32) -> Clip:
        """Load a CLIP.

        Args:
            source: An embedded name, a folder or a hub id; either of a `CLIPModel` with its tokenizer, such
                as "openai/clip-vit-large-patch14", or of a diffusers checkpoint whose text encoder is a
                whole `CLIPModel`. Beside the model lies a `preprocessor_config.json`.
            device: Where it runs.
            dtype: Its precision.

        Raises:
            ModelError: There is no such model, it is damaged, or it is not a whole CLIP.
        """
        place = _place(source)
        model_part, tokenizer_part = _parts(place)
        revision = PINNED.get(str(source), "main")
        with loading(f"a CLIP from {source}"):
            opened: Any = CLIPModel.from_pretrained(
                place, revision=revision, subfolder=model_part, dtype=dtype, output_loading_info=True
            )
            model, report = opened
            tokenizer = CLIPTokenizer.from_pretrained(place, revision=revision, subfolder=tokenizer_part)
            config, _ = ImageProcessingMixin.get_image_processor_dict(
                place, revision=revision, subfolder=model_part
            )
        if report["missing_keys"]:  # transformers would leave them at random
            raise ModelError(f"{source} is not a whole CLIP: it has no {min(report['missing_keys'])}")
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ModelError(f"the CLIP {source} is damaged: its tokenizer has no vocabulary")
        return cls(model.to(device).eval(), tokenizer, _preprocessing(source, model, config))

    def embed_images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures of any sizes and modes -> float32 (N, D) unit vectors on the CPU."""
        return self._embed_prepared(
            [self.preprocess(images.from_pil(picture.convert("RGB"))) for picture in pictures]
        )

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> float32 (N, D) unit vectors on the CPU."""
        return self._embed_prepared([self.preprocess(picture[None]) for picture in pixels])

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> float32 (N, D) unit vectors on the CPU; what lies beyond the window is cut off."""
        window = self.model.config.text_config.max_position_embeddings
        tokens = [
            self.tokenizer(text, padding="max_length", truncation=True, max_length=window).input_ids
            for text in texts
        ]
        return self._embed(
            lambda part: self.model.get_text_features(part).pooler_output,
            torch.tensor(tokens, dtype=torch.long).view(len(texts), window),
        )

    def _embed_prepared(self, prepared: Sequence[Tensor]) -> Tensor:
        pixels = torch.cat([torch.empty(0, 3, self.preprocess.side, self.preprocess.side), *prepared])
        return self._embed(
            lambda part: self.model.get_image_features(part.to(self.model.dtype)).pooler_output, pixels
        )

    @torch.inference_mode()
    def _embed(self, features: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """In batches; the last one may be smaller."""
        found = torch.empty(len(inputs), self.model.config.projection_dim)
        for start in range(0, len(inputs), _BATCH):
            part = slice(start, start + _BATCH)
            found[part] = features(inputs[part].to(self.model.device)).float().cpu()
        return F.normalize(found, dim=-1)


def similarity(one: Tensor, other: Tensor) -> Tensor:
    """The cosine of corresponding embeddings, of pictures or texts: (N, D) twice -> (N,) in [-1, 1]."""
    return F.cosine_similarity(one, other).clamp(-1, 1)  # rounding may pass 1 by a hair


def directional_similarity(source: Tensor, edited: Tensor, text: Tensor, edited_text: Tensor) -> Tensor:
    """Whether the pictures changed as their captions did: cos(I1 - I0, T1 - T0) (StyleGAN-NADA, 2108.00946).

    Args:
        source: (N, D), of the pictures before.
        edited: (N, D), of the pictures after.
        text: (N, D), of the captions before.
        edited_text: (N, D), of the captions after.

    Returns:
        (N,) in [-1, 1]; 0 where the pictures or the captions are equal.
    """
    return similarity(edited - source, edited_text - text)


def pair_similarities(source: Tensor, edited: Tensor, text: Tensor, edited_text: Tensor) -> dict[str, Tensor]:
    """The four scores that InstructPix2Pix filters by (2211.09800, section 3.1.2), under its own names.

    Args:
        source: (N, D), of the pictures before.
        edited: (N, D), of the pictures after.
        text: (N, D), of the captions before.
        edited_text: (N, D), of the captions after.

    Returns:
        `clip_sim_0` and `clip_sim_1` of each picture and its caption, `clip_sim_dir` of the change,
        `clip_sim_image` of the two pictures; each (N,) in [-1, 1].
    """
    return {
        "clip_sim_0": similarity(source, text),
        "clip_sim_1": similarity(edited, edited_text),
        "clip_sim_dir": directional_similarity(source, edited, text, edited_text),
        "clip_sim_image": similarity(source, edited),
    }


def _place(source: str | Path) -> str | Path:
    """A path, or a hub id ("owner/name"), which transformers fetches and finds in its cache by itself."""
    return source if is_hub_id(source) else resolve(source)


def _parts(place: str | Path) -> tuple[str, str]:
    """The subfolders of model and tokenizer: those of diffusers, or none."""
    return ("text_encoder", "tokenizer") if Path(place, "model_index.json").is_file() else ("", "")


def _preprocessing(source: str | Path, model: Any, config: dict[str, Any]) -> Preprocessing:
    try:
        mode = _MODES[config["resample"]]
        mean, std = (tuple(map(float, config[name])) for name in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the CLIP {source} has an unusable preprocessor_config.json ({error!r})") from error
    return Preprocessing(model.config.vision_config.image_size, mode, mean, std)
