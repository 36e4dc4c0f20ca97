"""What the loop draws from edits: sample i is the same whenever, wherever and beside what it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from wordbrush.data.blocks import Block, Edit
from wordbrush.training.crops import Crop, draw_crop
from wordbrush.training.latent_cache import LatentCache
from wordbrush.training.order import WINDOW, Order, Shape

_KEPT = 2 * WINDOW  # blocks: a batch may lie in two windows


@dataclass(frozen=True)
class Draws:
    """What chance decides of a sample.

    Attributes:
        seed: Of the run.
        channels: Of the latents.
        grid: Pixels a latent.
        timesteps: (T,) how likely each timestep of the noise schedule is, up to a factor.
        size: Of the crop; the shorter side where shapes differ.
        resize_to: Greatest short side before the crop.
        flip: Probability.
    """

    seed: int
    channels: int
    grid: int
    timesteps: Tensor
    size: int
    resize_to: int
    flip: float

    def latent_size(self, shape: Shape) -> Shape:
        """Height and width of the latents of a crop."""
        return shape[0] // self.grid, shape[1] // self.grid

    def crop(self, sample: int) -> Crop:
        """How its pictures are cropped."""
        rng = np.random.default_rng((8, self.seed, sample))
        return draw_crop(rng, size=self.size, resize_to=self.resize_to, flip=self.flip)

    def window(self, sample: int) -> np.random.Generator:
        """Decides where its window lies."""
        return np.random.default_rng((10, self.seed, sample))

    def noise(self, sample: int, shape: Shape) -> dict[str, Tensor]:
        """The timestep "t", "u" in [0, 1) for the conditioning dropout, "noise" and "posterior" (C, h, w)."""
        words = np.random.SeedSequence((9, self.seed, sample)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
        size = (self.channels, *self.latent_size(shape))
        return {
            "t": torch.multinomial(self.timesteps, 1, generator=generator)[0],
            "u": torch.rand((), generator=generator),
            "noise": torch.randn(size, generator=generator),
            "posterior": torch.randn(size, generator=generator),
        }


class StreamedEdits(Dataset[dict[str, Any]]):
    """Sample -> "pixels" (2, 3, H, W) uint8 and "instruction", and what chance decided.

    Args:
        blocks: Of the data set; the last few that were read are kept.
        order: Of its rows.
        shapes: Of each row's crop, pixels.
        draws: Decides the rest.
    """

    def __init__(self, blocks: Sequence[Block], order: Order, shapes: Sequence[Shape], draws: Draws) -> None:
        self.blocks, self.order, self.shapes, self.draws = blocks, order, shapes, draws
        self._kept: dict[int, Sequence[Edit]] = {}

    def __getitem__(self, sample: int) -> dict[str, Any]:
        row = self.order.row(sample)
        edit, shape = self._edit(row), self.shapes[row]
        pixels = self.draws.crop(sample)(*edit.pictures(), shape)
        found = {"row": row, "pixels": pixels, "instruction": edit.instruction}
        return found | self.draws.noise(sample, shape)

    def _edit(self, row: int) -> Edit:
        number, place = self.order.place(row)
        if number not in self._kept:
            while len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[number] = self.blocks[number].read()
        return self._kept[number][place]


class CachedEdits(Dataset[dict[str, Any]]):
    """Sample -> "moments" (K, C, h, w), "tokens" (L, D) (SDXL: "pooled" too), and what chance decided.

    Args:
        cache: Of the data set.
        order: Of its rows.
        shapes: Of each row's crop, pixels.
        draws: Decides the rest; of the crop only the flip.
        window: Pixels of a side of what is cut out of each pair, see `draw_window`; none: all is taken.
    """

    def __init__(
        self,
        cache: LatentCache,
        order: Order,
        shapes: Sequence[Shape],
        draws: Draws,
        window: int | None = None,
    ) -> None:
        self.cache, self.order, self.shapes, self.draws, self.window = cache, order, shapes, draws, window

    def __getitem__(self, sample: int) -> dict[str, Any]:
        row = self.order.row(sample)
        shape = self.shapes[row]
        flip = self.draws.crop(sample).flip
        moments = self.cache.moments(row, self.draws.latent_size(shape), flip=flip)
        if self.window is not None:
            moments = draw_window(moments, self.window // self.draws.grid, self.draws.window(sample))
            shape = self.window, self.window
        found = {"row": row, "moments": moments} | self.cache.text(row)
        return found | self.draws.noise(sample, shape)


def draw_window(moments: Tensor, side: int, rng: np.random.Generator) -> Tensor:
    """Cuts a square out of a pair, most likely where the edit changes it; anywhere if it changes all alike.

    Windows are cheap to train on, and most of the picture is not what most edits are about.

    Args:
        moments: (K, C, h, w), before and after first.
        side: Of the window, latents.
        rng: Decides where.
    """
    change = (moments[1] - moments[0]).square().sum(0, keepdim=True)
    likely = F.avg_pool2d(change, side, stride=1)[0].numpy().astype(np.float64) ** 2 + 1e-12
    top, left = divmod(int(rng.choice(likely.size, p=(likely / likely.sum()).ravel())), likely.shape[1])
    return moments[:, :, top : top + side, left : left + side]
