"""Reads a storybook picture back into what its caption could say: the judge of edited pictures.

The world's geometry is known, so every slot is judged on a window of its own, by one small ResNet; another
sees the whole picture. Trained on renders only (`training.recogniser`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from wordbrush.errors import ModelError, one_line
from wordbrush.models import resolve
from wordbrush.storybook.catalogue import (
    COLOURS,
    EXPRESSIONS,
    INDOORS,
    PLACES,
    STYLES,
    THING,
    THINGS,
    TIMES,
    TONES,
    WEATHERS,
)
from wordbrush.storybook.render import BASE_SIZE, SLOT_PLACE, Mask
from wordbrush.storybook.scenes import SIZES, SLOTS, Item, Scene

Facts = dict[str, str | float]
"""Attribute -> value: `place` -> `beach`, `left.thing` -> `dog` or `none`, `left.side` -> 0.4 (pictures)."""

SIZE = 128
"""Side in pixels of the pictures that are read; others are resized."""
WINDOW = 96
"""Side in pixels of a slot's window; its last 10 rows lie below the item's foot."""
_BELOW = 10
_MARGIN = 20

_POSES = tuple(THING["man"].variants)
ITEM_LABELS: dict[str, tuple[str, ...]] = {
    "thing": ("none", *(thing.name for thing in THINGS)),
    "colour": tuple(COLOURS),
    "variant": (*_POSES, *EXPRESSIONS),
}
PICTURE_LABELS: dict[str, tuple[str, ...]] = {
    "place": tuple(PLACES),
    "time": tuple(TIMES),
    "weather": tuple(WEATHERS),
    "style": tuple(STYLES),
    "tone": tuple(TONES),
}

# What a style leaves to see. In the other styles the attribute is neither taught nor judged.
_WITH_COLOUR = frozenset({"none", "watercolour", "oil", "pixel", "poster"})
_WITH_THINGS = frozenset(STYLES) - {"pixel"}
_MIN_AREA = 0.013
"""Smallest visible share of the picture at which an item is judged: about 15 x 15 of 128 x 128 pixels."""
_MIN_AREA_STYLED = 0.04
"""The same in a style or blurred, which take small things away."""
_MIN_SEEN = 0.7
"""Smallest visible share of an item's longer side at which it is judged."""
SIDE_TOLERANCE = math.log(1.2)
"""Largest error of a side's logarithm that counts as right; small, normal and large are further apart."""


def item_side(item: Item) -> float:
    """The item's longer side as a fraction of the picture's side."""
    return BASE_SIZE * SLOT_PLACE[item.slot][2] * SIZES[item.size] * item.scale


def facts(scene: Scene, masks: Mask | None = None) -> Facts:
    """What can be seen in a scene.

    Args:
        scene: No photograph.
        masks: (items, H, W), the visible pixels; given these, leaves out items that are too small or hidden.
    """
    found = picture_facts(scene)
    numbers = {item.slot: number for number, item in enumerate(scene.items)}
    for slot in SLOTS:
        number = numbers.get(slot)
        if number is None or masks is None or _is_clear(scene, number, masks[number]):
            found |= {f"{slot}.{name}": value for name, value in slot_facts(scene, slot).items()}
    return found


def picture_facts(scene: Scene) -> Facts:
    """Those of the whole picture; time and weather only where there is a sky, tone only without a style."""
    found: Facts = {"place": scene.place, "style": scene.style}
    if scene.place not in INDOORS and scene.style in _WITH_COLOUR:
        found["time"] = scene.time
    if scene.place not in INDOORS and scene.style == "none":
        found["weather"] = scene.weather
    if scene.style == "none":
        found["tone"] = scene.tone
    return found


def slot_facts(scene: Scene, slot: str) -> Facts:
    """Thing (or `none`), colour, variant and side, as far as the style leaves them to see."""
    if scene.style not in _WITH_THINGS:
        return {}
    item = next((item for item in scene.items if item.slot == slot), None)
    if item is None:
        return {"thing": "none"}
    found: Facts = {"thing": item.thing, "side": item_side(item)}
    if item.variant:
        found["variant"] = item.variant
    if item.colour and scene.style in _WITH_COLOUR:
        found["colour"] = item.colour
    return found


def _is_clear(scene: Scene, number: int, mask: Mask) -> bool:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return False
    seen = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    plain = scene.style == "none" and scene.tone != "blur"
    area = _MIN_AREA if plain else _MIN_AREA_STYLED
    return mask.mean() >= area and seen >= _MIN_SEEN * item_side(scene.items[number]) * len(mask)


def agrees(name: str, read: Facts, wanted: Facts, before: Facts | None = None) -> bool:
    """Whether an attribute was read as wanted.

    A side has to be right within `SIDE_TOLERANCE`; where it was to change, nearer to the new than to the old.
    """
    value, right = read[name], wanted[name]
    if isinstance(value, str) or isinstance(right, str):
        return value == right
    error = abs(math.log(value / right))
    if before is None or before.get(name) == right:
        return error < SIDE_TOLERANCE
    return error < abs(math.log(value / float(before[name])))


class Tower(nn.Module):
    """A stock ResNet, pooled by a depthwise convolution as large as its last map, and a head an attribute.

    Args:
        widths: Channels of the four stages.
        side: Of the square inputs, pixels.
        heads: Attribute -> number of outputs.
    """

    def __init__(self, widths: Sequence[int], side: int, heads: Mapping[str, int]) -> None:
        super().__init__()
        sizes: dict[str, Any] = {
            "embedding_size": widths[0],
            "hidden_sizes": list(widths),
            "depths": [1] * len(widths),
        }
        self.backbone = ResNetModel(ResNetConfig(**sizes, layer_type="basic"))
        extent, width = -(-side // 2 ** (len(widths) + 1)), widths[-1]
        # Unlike a mean, it can tell what is in the centre from what is beside it.
        self.pool = nn.Conv2d(width, width, extent, groups=width)
        nn.init.constant_(self.pool.weight, 1 / extent**2)
        self.heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in heads.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, side, side) in [0, 1] -> attribute -> (B, outputs)."""
        pixels = ((pixels - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
        pooled = self.pool(self.backbone(pixels).last_hidden_state).flatten(1)
        return {name: head(pooled) for name, head in self.heads.items()}


class Recogniser(nn.Module):
    """One tower for the windows of the slots, one for the whole picture."""

    def __init__(
        self,
        item_widths: Sequence[int] = (32, 64, 128, 176),
        picture_widths: Sequence[int] = (24, 48, 80, 112),
    ) -> None:
        super().__init__()
        self.config = {"item_widths": list(item_widths), "picture_widths": list(picture_widths)}
        self.items = Tower(item_widths, WINDOW, _counts(ITEM_LABELS) | {"side": 1})
        self.picture = Tower(picture_widths, SIZE, _counts(PICTURE_LABELS))

    @torch.inference_mode()
    def read(self, pictures: Sequence[Image.Image], batch_size: int = 32) -> list[Facts]:
        """Every attribute of every slot and of the picture, whether it can be judged or not."""
        found: list[Facts] = []
        for start in range(0, len(pictures), batch_size):
            found += self._read(to_pixels(pictures[start : start + batch_size]))
        return found

    def _read(self, pixels: Tensor) -> list[Facts]:
        pixels = pixels.to(next(self.parameters()).device)
        whole = _names(self.picture(pixels), PICTURE_LABELS)
        items = self.items(slot_windows(pixels).flatten(0, 1))
        sides = (BASE_SIZE * items.pop("side")[:, 0].float().exp()).tolist()
        slots = _names(items, ITEM_LABELS)
        for facts_, side in zip(slots, sides, strict=True):
            facts_["side"] = side
        for number, found in enumerate(whole):
            for place, slot in enumerate(SLOTS):
                read = slots[number * len(SLOTS) + place]
                found |= {f"{slot}.{name}": value for name, value in read.items()}
        return whole

    def save(self, folder: Path) -> None:
        """`config.json` and, in float16, `model.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config | {"labels": _labels()}, indent=1) + "\n")
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        halves = {name: v.half() if v.is_floating_point() else v for name, v in state.items()}
        save_file(halves, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path | None = None) -> Recogniser:
        """From a folder; None: the embedded one.

        Raises:
            ModelError: It is missing or damaged, or was trained for another catalogue.
        """
        folder = folder or resolve("storybook") / "recogniser"
        try:
            config: dict[str, Any] = json.loads((folder / "config.json").read_text())
            labels = config.pop("labels")
            model = cls(**config)
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except Exception as error:
            raise ModelError(f"cannot load the recogniser {folder}: {one_line(error)}") from error
        if labels != _labels():
            raise ModelError(f"the recogniser {folder} was trained for another catalogue: train it again")
        return model.eval()


def to_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """(B, 3, SIZE, SIZE) float32 in [0, 1]."""
    same = [picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS) for picture in pictures]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in same])).permute(0, 3, 1, 2) / 255.0


def slot_windows(pixels: Tensor) -> Tensor:
    """(B, 3, SIZE, SIZE) -> (B, slots, 3, WINDOW, WINDOW), the foot of an item always at the same height."""
    padded = F.pad(pixels, (_MARGIN,) * 4, mode="replicate")
    windows: list[Tensor] = []
    for slot in SLOTS:
        x, foot, _ = SLOT_PLACE[slot]
        left = round(x * SIZE) - WINDOW // 2 + _MARGIN
        top = round(foot * SIZE) + _BELOW - WINDOW + _MARGIN
        windows.append(padded[..., top : top + WINDOW, left : left + WINDOW])
    return torch.stack(windows, dim=1)


def _counts(labels: Mapping[str, Sequence[str]]) -> dict[str, int]:
    return {name: len(values) for name, values in labels.items()}


def _labels() -> dict[str, list[str]]:
    return {name: list(values) for name, values in (ITEM_LABELS | PICTURE_LABELS).items()}


def _names(scores: Mapping[str, Tensor], labels: Mapping[str, Sequence[str]]) -> list[Facts]:
    """The most likely label of each attribute, for each of the batch."""
    best = {name: score.argmax(-1).tolist() for name, score in scores.items()}
    count = len(next(iter(best.values())))
    found: list[Facts] = [{name: labels[name][int(best[name][i])] for name in best} for i in range(count)]
    return found
