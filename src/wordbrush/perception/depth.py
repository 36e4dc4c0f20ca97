"""How far away is everything? By any depth model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from wordbrush.models import loading

_BATCH = 16


class DepthEstimator:
    """A depth model, whose maps are brought to [0, 1]: models differ in unit, offset and direction.

    Args:
        model: An `AutoModelForDepthEstimation`.
        processor: Its own.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    @classmethod
    def load(cls, name: str, *, device: torch.device) -> DepthEstimator:
        """Load a model.

        Args:
            name: Folder or hub id, such as "depth-anything/Depth-Anything-V2-Small-hf".
            device: Where the network goes.

        Raises:
            ModelError: There is no such model, or it is of another kind.
        """
        with loading(f"{name} to tell depth"):
            model: Any = AutoModelForDepthEstimation.from_pretrained(name)
            return cls(model.to(device).eval(), AutoImageProcessor.from_pretrained(name))

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(N, h, w) in [0, 1], 0 and 1 being the two ends of each picture's range.

        Args:
            pictures: At least one, all of one size (h, w).
        """
        maps: list[Tensor] = []
        for start in range(0, len(pictures), _BATCH):
            some = [picture.convert("RGB") for picture in pictures[start : start + _BATCH]]
            given = self.processor(images=some, return_tensors="pt").to(self.model.device)
            found = self.model(**given).predicted_depth.float().cpu()
            size = (some[0].height, some[0].width)
            maps.append(F.interpolate(found[:, None], size, mode="bilinear", align_corners=False)[:, 0])
        return _to_unit_range(torch.cat(maps))


def _to_unit_range(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)


def depth_distances(one: Tensor, other: Tensor) -> Tensor:
    """(N,) mean absolute difference of depth maps (N, h, w): 0 for equal ones, at most 1."""
    return (one - other).abs().mean((1, 2))
