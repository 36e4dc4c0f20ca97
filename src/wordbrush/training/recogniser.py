"""The storybook's recogniser, which judges edits: trained on renders, some of them degraded."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from wordbrush.storybook.catalogue import STYLES, TONES
from wordbrush.storybook.dataset import RenderedEdits
from wordbrush.storybook.recogniser import (
    BASE_SIZE,
    ITEM_LABELS,
    PICTURE_LABELS,
    SIZE,
    Facts,
    Recogniser,
    picture_facts,
    slot_facts,
    slot_windows,
)
from wordbrush.storybook.scenes import SLOTS, Scene
from wordbrush.storybook.styles import apply_style, apply_tone
from wordbrush.training.config import LearningRate, LoopConfig, Steps
from wordbrush.training.loop import Batch, TrainingError, move, train

_IGNORED = -100
_SLOTS_PER_PICTURE = 2
_TONED, _STYLED = 0.3, 0.15


class Config(LoopConfig):
    """Defaults of the storybook recogniser."""

    data: Path = Field(description="folder of rendered edits of scenes, split `train`, from number 0 on")
    steps: Steps = 1400
    batch_size: int = Field(32, ge=1, description="pictures per step; each gives two slots")
    learning_rate: LearningRate = 2e-3
    weight_decay: float = Field(0.05, ge=0)
    item_widths: list[int] = [32, 64, 128, 176]
    picture_widths: list[int] = [24, 48, 80, 112]


class LabelledPictures(Dataset[dict[str, Any]]):
    """Index -> a degraded picture (3, SIZE, SIZE) uint8, the labels of the picture and of two of its slots.

    Labels are not on disk: the edit is drawn again from its number.
    """

    def __init__(self, edits: RenderedEdits) -> None:
        self.edits = edits
        self._edit = lru_cache(4096)(edits.edit)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((5, index))
        number, side = int(rng.integers(len(self.edits))), int(rng.integers(2))
        edit = self._edit(number)
        picture, scene = _restyle(
            rng, Image.fromarray(self.edits.pair(number)[side]), edit.after if side else edit.before
        )
        pixels = np.array(_degrade(rng, picture))
        slots = _draw_slots(rng, scene)
        labels = _labels(picture_facts(scene), PICTURE_LABELS)
        items = [_slot_labels(scene, slot) for slot in slots]
        labels |= {name: torch.tensor([item[name] for item in items]) for name in items[0]}
        return {"pixels": torch.from_numpy(pixels).permute(2, 0, 1), "slots": torch.tensor(slots), **labels}


def _restyle(rng: np.random.Generator, picture: Image.Image, scene: Scene) -> tuple[Image.Image, Scene]:
    """Styles and tones are the last step of rendering: on plain pictures they make rare labels frequent."""
    if scene.style != "none" or scene.tone != "none":
        return picture, scene
    draw = rng.random()
    if draw < _TONED:
        tone = str(rng.choice(list(TONES)[1:]))
        return apply_tone(picture, tone), replace(scene, tone=tone)
    if draw < _TONED + _STYLED:
        style = str(rng.choice(list(STYLES)[1:]))
        return apply_style(picture, style), replace(scene, style=style)
    return picture, scene


def _degrade(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """A quarter each: as it is, resampled, JPEG, noise. All milder than the tone `blur`."""
    kind = int(rng.integers(4))
    if kind == 1:
        side = round(SIZE * float(rng.uniform(0.6, 0.95)))
        small = picture.resize((side, side), Image.Resampling.BILINEAR)
        return small.resize(picture.size, Image.Resampling.BICUBIC)
    if kind == 2:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(rng.integers(50, 95)))
        return Image.open(buffer).convert("RGB")
    if kind == 3:
        noise = rng.normal(0, rng.uniform(1, 8), (picture.height, picture.width, 3))
        return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    return picture


def _draw_slots(rng: np.random.Generator, scene: Scene) -> list[int]:
    """Two slots; those with an item come first, since empty ones are easily learned."""
    free = [SLOTS.index(slot) for slot in scene.free_slots()]
    taken = [SLOTS.index(item.slot) for item in scene.items]
    order = [*rng.permutation(taken).tolist(), *rng.permutation(free).tolist()]
    return [int(slot) for slot in order[:_SLOTS_PER_PICTURE]]


def _slot_labels(scene: Scene, slot: int) -> dict[str, float]:
    """A label of each attribute of an item; `_IGNORED`, for the side NaN, where there is none."""
    found = slot_facts(scene, SLOTS[slot])
    side = found.pop("side", None)
    target = math.nan if side is None else math.log(float(side) / BASE_SIZE)
    return {**_labels(found, ITEM_LABELS), "side": target}


def _labels(found: Facts, labels: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    return {
        name: values.index(cast("str", found[name])) if name in found else _IGNORED
        for name, values in labels.items()
    }


class RecogniserRecipe:
    """Trains both towers together."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)  # of the new weights
        self.edits = RenderedEdits.open(config.data)
        if not len(self.edits):
            raise TrainingError(f"{config.data} holds no rendered edits: render the storybook first")
        model: Any = Recogniser(config.item_widths, config.picture_widths)
        self.model: nn.Module = model.to(memory_format=torch.channels_last)

    def samples(self) -> Dataset[dict[str, Any]]:
        """Endless draws of pictures with labels."""
        return LabelledPictures(self.edits)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of every attribute that has a label, and the error of the logarithm of the sides."""
        tensors = move(batch, model)
        recogniser: Any = getattr(model, "module", model)
        pixels = tensors["pixels"].float() / 255.0
        windows = slot_windows(pixels)[torch.arange(len(pixels))[:, None], tensors["slots"]].flatten(0, 1)
        scores = recogniser.picture(pixels) | recogniser.items(windows)
        side = scores.pop("side")[:, 0]
        losses = {name: _cross_entropy(score, tensors[name].flatten()) for name, score in scores.items()}
        losses["side"] = _side_error(side, tensors["side"].flatten().float())
        total = torch.stack(list(losses.values())).sum()
        right = _share_right(scores["thing"], tensors["thing"].flatten())
        return {"loss": total, **losses, "thing_right": right}

    def export(self, model: nn.Module, folder: Path) -> None:
        """As `Recogniser.load` reads it."""
        cast("Recogniser", model).save(folder)


def _cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """The mean over the labels that count; 0 if none does."""
    total = F.cross_entropy(scores, labels, ignore_index=_IGNORED, reduction="sum")
    return total / (labels != _IGNORED).sum().clamp(min=1)


def _side_error(read: Tensor, target: Tensor) -> Tensor:
    known = ~target.isnan()
    errors = F.smooth_l1_loss(read, target.nan_to_num(), beta=0.1, reduction="none")
    return (errors * known).sum() / known.sum().clamp(min=1)


def _share_right(scores: Tensor, labels: Tensor) -> Tensor:
    known = labels != _IGNORED
    return ((scores.argmax(-1) == labels) & known).sum() / known.sum().clamp(min=1)


def main(config: Config) -> None:
    """Trains, or goes on training, the recogniser."""
    train(RecogniserRecipe(config), config)
