"""Latents of rendered edits, encoded once; and the samples that the text-to-image recipe draws from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.utils.data import Dataset

from wordbrush.storybook.dataset import RenderedEdits, redraw, row_of
from wordbrush.storybook.render import centre
from wordbrush.storybook.wording import caption

Latents = np.ndarray[Any, np.dtype[np.float16]]


@dataclass(frozen=True)
class EncodedEdits:
    """Rows with the unscaled latents of both pictures: (n, 2, C, h, w) float16 memory maps."""

    latents: list[Latents]
    rows: list[dict[str, str]]
    grid: int
    """Pixels a latent."""

    def __len__(self) -> int:
        return len(self.rows)

    def pair(self, index: int) -> Tensor:
        """(2, C, h, w) float32."""
        return torch.from_numpy(np.array(row_of(self.latents, index), dtype=np.float32))


def encode_edits(autoencoder: Path, *folders: Path) -> EncodedEdits:
    """The latents of all shards, encoding those that this autoencoder has not encoded yet."""
    weights = next(iter(sorted(autoencoder.glob("*.safetensors"))))
    version = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
    latents: list[Latents] = []
    model: Any = None
    for folder in folders:
        (folder / f"latents-{version}").mkdir(exist_ok=True)
        for shard in sorted(folder.glob("*.npy")):
            path = folder / f"latents-{version}" / shard.name
            if not path.exists():
                model = model or AutoencoderKL.from_pretrained(autoencoder).eval()
                _encode_shard(model, shard, path)
            latents.append(cast("Latents", np.load(path, mmap_mode="r")))
    edits = RenderedEdits.open(*folders)
    return EncodedEdits(latents, edits.rows, edits.pixels[0].shape[2] // latents[0].shape[-1])


@torch.inference_mode()
def _encode_shard(model: AutoencoderKL, shard: Path, path: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)  # pyright: ignore[reportArgumentType]
    pairs = np.load(shard, mmap_mode="r")
    parts: list[np.ndarray[Any, Any]] = []
    for start in range(0, len(pairs), 25):
        batch = torch.from_numpy(np.array(pairs[start : start + 25])).to(device)
        output: Any = model.encode(batch.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1)
        parts.append(output.latent_dist.mean.unflatten(0, (-1, 2)).half().cpu().numpy())
    with path.with_suffix(".partial").open("wb") as file:
        np.save(file, np.concatenate(parts))
    path.with_suffix(".partial").replace(path)


class CaptionedLatents(Dataset[dict[str, Any]]):
    """Index -> latents of a picture and its caption."""

    def __init__(self, edits: EncodedEdits) -> None:
        self.edits = edits

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((3, index))
        number, side = int(rng.integers(len(self.edits))), int(rng.integers(2))
        row = self.edits.rows[number]
        text = row["source_caption" if side == 0 else "target_caption"]
        return {"latents": self.edits.pair(number)[side], "caption": text}


class CaptionedWindows(Dataset[dict[str, Any]]):
    """Index -> latents of a window around one thing of a scene, and a caption of it alone.

    A window costs a part of what the picture does, and is all about the thing.

    Args:
        edits: Of scenes, split `train`, from number 0 on.
        side: Of a window, latents.
    """

    def __init__(self, edits: EncodedEdits, side: int) -> None:
        self.edits, self.side = edits, side
        self._edit = lru_cache(None)(partial(redraw, edits.rows))

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((11, index))
        number, after = int(rng.integers(len(self.edits))), int(rng.integers(2))
        edit, latents = self._edit(number), self.edits.pair(number)[after]
        scene = edit.after if after else edit.before
        where = rng.uniform(0, 1, 2)
        if scene.items:
            item = scene.items[int(rng.integers(len(scene.items)))]
            scene, where = replace(scene, items=(item,)), np.array(centre(item)) + rng.uniform(-0.08, 0.08, 2)
        left, top = (
            _start(place, self.side, size) for place, size in zip(where, latents.shape[:0:-1], strict=True)
        )
        window = latents[:, top : top + self.side, left : left + self.side]
        return {"latents": window, "caption": caption(scene)}


def _start(place: float, side: int, size: int) -> int:
    """Where a window starts whose middle lies at a fraction of the size, as far as it can."""
    return min(max(round(place * size - side / 2), 0), size - side)
