"""The storybook's open-vocabulary segmenter: a stock CLIPSeg on the storybook's own CLIP.

As in its paper (2112.10003) CLIP stays frozen, and a small decoder learns to read a mask of what a text names
out of the picture's tokens; some of the texts name what is not there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    CLIPModel,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    ViTImageProcessorPil,
)

from wordbrush.models import loading
from wordbrush.storybook.catalogue import THINGS
from wordbrush.storybook.render import Renderer
from wordbrush.storybook.scenes import Scene, draw_scene, scene_rng
from wordbrush.storybook.sprites import SpriteLibrary
from wordbrush.storybook.wording import SYNONYMS, noun
from wordbrush.training.config import BatchSize, LearningRate, LoopConfig, Steps
from wordbrush.training.loop import Batch, move, train
from wordbrush.training.optimizers import OptimizerName

_ABSENT = 0.2  # of the texts, as in the paper


class Config(LoopConfig):
    """Defaults of the storybook segmenter."""

    clip: Path = Field(description="folder with text_encoder/ and tokenizer/")
    steps: Steps = 2000
    batch_size: BatchSize = 32
    learning_rate: LearningRate = 2e-3
    optimizer: OptimizerName = "muon"
    width: int = Field(64, ge=8, description="channels of the decoder")


class NamedThings(Dataset[dict[str, Any]]):
    """Index -> a render (3, S, S) uint8, the tokens of a name (L,), and the mask (S, S) of what it names.

    Args:
        render: Draws scenes.
        tokenizer: CLIP's.
        side: S, pixels.
    """

    def __init__(self, render: Renderer, tokenizer: CLIPTokenizer, side: int) -> None:
        self.render, self.tokenizer, self.side = render, tokenizer, side

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((12, index))
        scene = draw_scene(scene_rng("train", index))
        rendered = self.render(scene)
        name, named = _draw_name(rng, scene)
        mask = np.zeros((self.render.size, self.render.size), dtype=np.uint8)
        for number in named:
            mask[rendered.masks[number]] = 255
        size, smooth = (self.side, self.side), Image.Resampling.BOX
        tokens = self.tokenizer(name, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return {
            "pixels": torch.from_numpy(np.array(rendered.image.resize(size, smooth))).permute(2, 0, 1),
            "mask": torch.from_numpy(np.array(Image.fromarray(mask).resize(size, smooth))).float() / 255,
            "tokens": tokens[0],
        }


def _draw_name(rng: np.random.Generator, scene: Scene) -> tuple[str, list[int]]:
    """A name, and the numbers of the items that it names: of none, where the thing is not there."""
    if not scene.items or rng.random() < _ABSENT:
        here = {item.thing for item in scene.items}
        absent = [thing.name for thing in THINGS if thing.name not in here]
        return str(rng.choice(absent)), []
    item = scene.items[int(rng.integers(len(scene.items)))]
    names = (item.thing, *SYNONYMS.get(item.thing, ()))
    if rng.random() < 0.5:
        return str(rng.choice(names)), [n for n, other in enumerate(scene.items) if other.thing == item.thing]
    exact = noun(item, sized=False)
    return exact, [n for n, other in enumerate(scene.items) if noun(other, sized=False) == exact]


class SegmenterRecipe:
    """Trains the decoder."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)  # of the new weights
        with loading(f"the CLIP in {config.clip}"):
            clip: Any = CLIPModel.from_pretrained(config.clip / "text_encoder", dtype=torch.float32)
            self.tokenizer = CLIPTokenizer.from_pretrained(config.clip / "tokenizer")
            look = json.loads((config.clip / "text_encoder" / "preprocessor_config.json").read_text())
        self.processor = ViTImageProcessorPil(
            **{key: look[key] for key in ("size", "resample", "image_mean", "image_std")}
        )
        self.side = int(clip.config.vision_config.image_size)
        self.model: nn.Module = build_segmenter(clip, config.width)

    def samples(self) -> Dataset[dict[str, Any]]:
        """Endless scenes of the split `train`, each with a name."""
        return NamedThings(Renderer(SpriteLibrary.load()), self.tokenizer, self.side)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Binary cross-entropy of the pixels; and how well masks agree, where something is."""
        tensors = move(batch, model)
        mean, std = (
            torch.tensor(values, device=tensors["pixels"].device)[:, None, None]
            for values in (self.processor.image_mean, self.processor.image_std)
        )
        pixels = (tensors["pixels"] / 255.0 - mean) / std
        logits = model(input_ids=tensors["tokens"], pixel_values=pixels).logits.view_as(tensors["mask"])
        loss = F.binary_cross_entropy_with_logits(logits, tensors["mask"])
        return {"loss": loss, "iou": intersection_over_union(logits > 0, tensors["mask"] > 0.5)}

    def export(self, model: nn.Module, folder: Path) -> None:
        """As `CLIPSegForImageSegmentation.save_pretrained`, with its processor."""
        model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
        CLIPSegProcessor(self.processor, self.tokenizer).save_pretrained(folder)


def intersection_over_union(found: Tensor, true: Tensor) -> Tensor:
    """The mean over masks (N, H, W), those left out that are truly empty."""
    both, either = (found & true).sum((1, 2)), (found | true).sum((1, 2))
    there = true.any(2).any(1)
    return (both / either.clamp(min=1) * there).sum() / there.sum().clamp(min=1)


def build_segmenter(clip: Any, width: int) -> CLIPSegForImageSegmentation:
    """A CLIPSeg with the weights of a CLIP, frozen, and a new decoder on three of its layers."""
    layers = int(clip.config.vision_config.num_hidden_layers)
    config = CLIPSegConfig(
        text_config=clip.config.text_config.to_dict(),
        vision_config=clip.config.vision_config.to_dict(),
        projection_dim=clip.config.projection_dim,
        extract_layers=[0, layers // 2, layers - 1],
        reduce_dim=width,
        decoder_intermediate_size=4 * width,
        decoder_num_attention_heads=max(1, width // 32),
    )
    segmenter = CLIPSegForImageSegmentation(config)
    segmenter.clip.load_state_dict(clip.state_dict())
    segmenter.clip.requires_grad_(False)
    return segmenter


def main(config: Config) -> None:
    """Trains, or goes on training, the segmenter."""
    train(SegmenterRecipe(config), config)
