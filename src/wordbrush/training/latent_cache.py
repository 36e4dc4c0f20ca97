"""What a checkpoint's encoders make of data sets: once, on disk, for all runs that have the same encoders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.format import open_memmap
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from wordbrush.data.blocks import Block, Edit
from wordbrush.provenance import atomic_file
from wordbrush.training.crops import Crop
from wordbrush.training.encoding import Encoder
from wordbrush.training.order import Shape
from wordbrush.training.resuming import made_once

_BATCH = 16
_Pair = tuple[Image.Image, Image.Image]


class LatentCache:
    """What an `Encoder` makes of each row, as float16 arrays in a folder for each data set.

    `latents.npy` is (n, flips, K, C, A): A latents, row by row, of the largest shape; `tokens.npy` (n, L, D);
    SDXL has `pooled.npy`, (n, P).

    Args:
        folders: Of the data sets, in the order of their rows.
    """

    def __init__(self, *folders: Path) -> None:
        self.parts = [
            {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")} for folder in folders
        ]
        self.starts = np.cumsum([0, *(len(part["latents"]) for part in self.parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def moments(self, row: int, size: Shape, *, flip: bool = False) -> Tensor:
        """The latents of a row's pictures, see `Encoder.moments`: float32 (K, C, h, w).

        Args:
            row: Its number.
            size: Height and width of its latents.
            flip: Whether its pictures are mirrored.
        """
        part, place = self._place(row)
        flat = part["latents"][place, int(flip)][..., : size[0] * size[1]]
        return _float32(flat.reshape(*flat.shape[:2], *size))

    def text(self, row: int) -> dict[str, Tensor]:
        """The "tokens" (L, D) of a row's instruction, SDXL's "pooled" (P,) too, float32."""
        part, place = self._place(row)
        return {name: _float32(array[place]) for name, array in part.items() if name != "latents"}

    def _place(self, row: int) -> tuple[dict[str, Any], int]:
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.parts[number], row - int(self.starts[number])


def _float32(values: Any) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def open_cache(
    data_sets: Sequence[Sequence[Block]],
    encoder: Encoder,
    shapes: Sequence[Shape],
    folder: Path,
    *,
    flips: bool,
) -> LatentCache:
    """The cache of some data sets; those that the folder does not hold yet are encoded.

    Args:
        data_sets: The blocks of each.
        encoder: Makes the latents.
        shapes: Of the crop of each row of all, pixels.
        folder: Of all caches, each under a name that tells what is in it.
        flips: Whether to encode mirrored pictures too.
    """
    paths, start = list[Path](), 0
    for blocks in data_sets:
        own = shapes[start : start + _count(blocks)]
        make = partial(encode_rows, blocks=blocks, encoder=encoder, shapes=own, flips=flips)
        paths.append(made_once(folder / _name(blocks, encoder, own, flips), make))
        start += len(own)
    return LatentCache(*paths)


def _count(blocks: Sequence[Block]) -> int:
    return sum(block.count for block in blocks)


def _name(blocks: Sequence[Block], encoder: Encoder, shapes: Sequence[Shape], flips: bool) -> str:
    """One of its own for all that decides what is in a cache, the content of the first block among it."""
    what = blocks[0].name, _count(blocks), list(shapes), flips, encoder.fingerprint()
    digest = hashlib.blake2b(str(what).encode(), digest_size=8)
    for edit in blocks[0].read():
        digest.update(edit.instruction.encode())
        for picture in (edit.before, edit.after):
            digest.update(picture if isinstance(picture, bytes) else picture.tobytes())
    return digest.hexdigest()


def encode_rows(
    folder: Path,
    blocks: Sequence[Block],
    encoder: Encoder,
    shapes: Sequence[Shape],
    *,
    flips: bool,
) -> None:
    """Writes what a `LatentCache` has of a data set, cropped at the centre of each picture.

    Args:
        folder: Of this data set; one that a killed run left half done is gone on with.
        blocks: Of the data set.
        encoder: Makes the latents.
        shapes: Of each row's crop, pixels.
        flips: Whether to encode mirrored pictures too.
    """
    area = max(height * width for height, width in shapes) // encoder.model.latent_grid**2
    write, start = _Writer(folder, len(shapes)), 0
    for block in track(blocks, "Encoding the edits", console=Console(stderr=True)):
        end = start + block.count
        if end > write.done:
            edits, own = block.read(), shapes[start:end]
            for places in _of_one_shape(own):
                chosen, shape = [edits[place] for place in places], own[places[0]]
                encoded = _encode(encoder, chosen, shape, flips=flips, area=area)
                write([start + place for place in places], encoded)
            write.finish(end)
        start = end


def _encode(
    encoder: Encoder, edits: Sequence[Edit], shape: Shape, *, flips: bool, area: int
) -> dict[str, Tensor]:
    """What the arrays hold of edits whose crops have one shape."""
    pictures = [edit.pictures() for edit in edits]
    crops = [Crop(flip=bool(flip)) for flip in range(1 + flips)]
    moments = torch.stack([_moments(encoder, pictures, shape, crop) for crop in crops], dim=1)
    text = encoder.text([edit.instruction for edit in edits])
    found = {"latents": F.pad(moments, (0, area - moments.shape[-1])), "tokens": text.tokens}
    return found if text.pooled is None else found | {"pooled": text.pooled}


def _moments(encoder: Encoder, pictures: Sequence[_Pair], shape: Shape, crop: Crop) -> Tensor:
    """(B, K, C, A)."""
    pixels = torch.stack([crop(before, after, shape) for before, after in pictures])
    return encoder.moments(pixels.to(encoder.model.device)).flatten(3)


def _of_one_shape(shapes: Sequence[Shape]) -> Iterator[list[int]]:
    """Places in batches."""
    places = sorted(range(len(shapes)), key=lambda place: shapes[place])
    for _, group in groupby(places, key=lambda place: shapes[place]):
        members = list(group)
        yield from (members[i : i + _BATCH] for i in range(0, len(members), _BATCH))


class _Writer:
    """Rows of float16 arrays, whose further axes are those of the first rows that come.

    Attributes:
        done: Of the rows, how many are on the disk.
    """

    def __init__(self, folder: Path, count: int) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.count, self.marker = folder, count, folder / "done"
        self.done = int(self.marker.read_bytes()) if self.marker.exists() else 0
        self.mode: Any = "r+" if self.done else "w+"
        self.arrays: dict[str, Any] = {}

    def __call__(self, rows: list[int], values: dict[str, Tensor]) -> None:
        for name, part in values.items():
            if name not in self.arrays:
                path, shape = self.folder / f"{name}.npy", (self.count, *part.shape[1:])
                self.arrays[name] = open_memmap(path, self.mode, np.float16, shape)
            self.arrays[name][rows] = part.cpu().numpy()

    def finish(self, done: int) -> None:
        """Keep the rows so far."""
        for array in self.arrays.values():
            array.flush()
        with atomic_file(self.marker, overwrite=True) as file:
            file.write(str(done).encode())
