"""One crop of both pictures of an edit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wordbrush.training.order import Shape


@dataclass(frozen=True)
class Crop:
    """How both pictures are scaled, cropped and mirrored.

    Attributes:
        enlarge: The scaled picture's size over that of the smallest one that covers the crop; at least 1.
        place: (y, x) of the crop in [0, 1]; (0.5, 0.5) is the centre.
        flip: Whether left and right are exchanged.
    """

    enlarge: float = 1.0
    place: tuple[float, float] = (0.5, 0.5)
    flip: bool = False

    def __call__(self, before: Image.Image, after: Image.Image, shape: Shape) -> Tensor:
        """Two pictures -> (2, 3, H, W) uint8; `after` is stretched where its size is another."""
        height, width = shape
        factor = self.enlarge * max(height / before.height, width / before.width)
        size = max(width, round(before.width * factor)), max(height, round(before.height * factor))
        y, x = (
            int(p * (extra + 1))
            for p, extra in zip(self.place, (size[1] - height, size[0] - width), strict=True)
        )
        box = x, y, x + width, y + height
        pictures = [picture.resize(size, Image.Resampling.LANCZOS).crop(box) for picture in (before, after)]
        if self.flip:
            pictures = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pictures]
        return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).contiguous()


def draw_crop(rng: np.random.Generator, *, size: int, resize_to: int, flip: float) -> Crop:
    """The short side is scaled to U{size, ..., resize_to}, the crop is placed at random (2211.09800, A.2).

    Args:
        rng: Gives the same draws whatever the settings.
        size: Of the crop.
        resize_to: As large as `size`: nothing is left to chance but the flip.
        flip: Its probability.
    """
    scale, y, x, mirror = rng.random(4).tolist()
    if resize_to <= size:
        return Crop(flip=mirror < flip)
    return Crop((size + int(scale * (resize_to - size + 1))) / size, (y, x), mirror < flip)
