"""Latents of rendered edits, encoded once; and the samples that the text-to-image recipe draws from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.utils.data import Dataset
from transformers import CLIPTokenizer

from wordbrush.storybook.dataset import RenderedEdits, row_of

Latents = np.ndarray[Any, np.dtype[np.float16]]


@dataclass(frozen=True)
class EncodedEdits:
    """Rows with the unscaled latents of both pictures: (n, 2, C, h, w) float16 memory maps."""

    latents: list[Latents]
    rows: list[dict[str, str]]

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
    return EncodedEdits(latents, RenderedEdits.open(*folders).rows)


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
    """Index -> latents of a picture and the tokens of its caption."""

    def __init__(self, edits: EncodedEdits, tokenizer: CLIPTokenizer) -> None:
        self.edits, self.tokenizer = edits, tokenizer

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((3, index))
        number, side = int(rng.integers(len(self.edits))), int(rng.integers(2))
        row = self.edits.rows[number]
        caption = row["source_caption" if side == 0 else "target_caption"]
        return {"latents": self.edits.pair(number)[side], "tokens": tokenise(self.tokenizer, caption)}


def tokenise(tokenizer: CLIPTokenizer, text: str) -> Tensor:
    """(L,) ids, padded to the tokenizer's window."""
    encoded = tokenizer(text, padding="max_length", truncation=True, return_tensors="pt")
    return cast("Tensor", encoded.input_ids)[0]
