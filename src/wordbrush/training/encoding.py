"""From pictures and texts to what the U-Net sees: encoded in every step, or once into a cache on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.format import open_memmap
from torch import Tensor

from wordbrush.data.blocks import Block, Edit
from wordbrush.diffusion.model import LatentDiffusion, TextEmbeds
from wordbrush.training.crops import Crop
from wordbrush.training.order import Shape

_BATCH = 16


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


class LatentCache:
    """What an `Encoder` makes of each row, as float16 arrays in a folder.

    `latents.npy` is (n, flips, K, C, A): A latents, row by row, of the largest shape; `tokens.npy` (n, L, D);
    SDXL has `pooled.npy`, (n, P).
    """

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("*.npy"))
        self.arrays = {path.stem: np.load(path, mmap_mode="r") for path in paths}

    def __len__(self) -> int:
        return len(self.arrays["latents"])

    def read(self, row: int, size: Shape, *, flip: bool) -> dict[str, Tensor]:
        """The "moments" (K, C, h, w) and text of a row.

        Args:
            row: Its number.
            size: Height and width of its latents.
            flip: Whether its pictures are mirrored.
        """
        flat = self.arrays["latents"][row, int(flip)][..., : size[0] * size[1]]
        values = {"moments": flat.reshape(*flat.shape[:2], *size)}
        values |= {name: array[row] for name, array in self.arrays.items() if name != "latents"}
        return {name: torch.from_numpy(value.astype(np.float32)) for name, value in values.items()}


def encode_rows(
    folder: Path,
    blocks: Iterable[Block],
    encoder: Encoder,
    shapes: Sequence[Shape],
    *,
    flips: bool,
) -> None:
    """Writes a `LatentCache` of all rows, cropped at their centres.

    Args:
        folder: Of the cache; empty.
        blocks: Of the data set.
        encoder: Makes the latents.
        shapes: Of each row's crop, pixels.
        flips: Whether to encode mirrored pictures too.
    """
    area = max(height * width for height, width in shapes) // encoder.model.latent_grid**2
    write, start = _Writer(folder, len(shapes)), 0
    for block in blocks:
        edits = block.read()
        for places in _of_one_shape(shapes[start : start + block.count]):
            chosen, rows = [edits[i] for i in places], [start + i for i in places]
            moments = torch.stack(
                [_moments(encoder, chosen, shapes[rows[0]], flip=bool(f)) for f in range(1 + flips)], dim=1
            )
            write("latents", rows, F.pad(moments, (0, area - moments.shape[-1])))
            text = encoder.text([edit.instruction for edit in chosen])
            write("tokens", rows, text.tokens)
            if text.pooled is not None:
                write("pooled", rows, text.pooled)
        start += block.count


def _moments(encoder: Encoder, edits: Sequence[Edit], shape: Shape, *, flip: bool) -> Tensor:
    """(B, K, C, A)."""
    crop = Crop(flip=flip)
    pixels = torch.stack([crop(*edit.pictures(), shape) for edit in edits])
    return encoder.moments(pixels.to(encoder.model.device)).flatten(3)


def _of_one_shape(shapes: Sequence[Shape]) -> Iterator[list[int]]:
    """Places in batches."""
    places = sorted(range(len(shapes)), key=lambda place: shapes[place])
    for _, group in groupby(places, key=lambda place: shapes[place]):
        members = list(group)
        yield from (members[i : i + _BATCH] for i in range(0, len(members), _BATCH))


class _Writer:
    """Rows of float16 arrays whose further axes are those of the first rows that come."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.arrays: dict[str, Any] = {}

    def __call__(self, name: str, rows: list[int], values: Tensor) -> None:
        if name not in self.arrays:
            self.arrays[name] = open_memmap(
                self.folder / f"{name}.npy", "w+", np.float16, (self.count, *values.shape[1:])
            )
        self.arrays[name][rows] = values.cpu().numpy()
