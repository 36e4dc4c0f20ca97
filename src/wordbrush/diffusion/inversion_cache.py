"""Inversions kept on the disk: the costly part of editing a picture, which all its edits share."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from wordbrush.diffusion.inversion import Inversion
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.errors import OutputError
from wordbrush.provenance import atomic_file

_VERSION = 1
"""To be raised when the same key would come to stand for other numbers."""
_SAMPLES = 256
"""Values taken of each weight: any training or LoRA changes nearly all of them."""
_LIMIT = 1 << 30


class InversionCache:
    """A folder of inversions, one safetensors file each, by key.

    A file appears whole or not at all, whenever the process ends; one that is damaged counts as missing.
    Those that were not used for longest are deleted once all of them exceed the limit.

    Args:
        folder: made when the first inversion is kept.
        limit: bytes.
    """

    def __init__(self, folder: Path, *, limit: int = _LIMIT) -> None:
        self.folder, self.limit = folder, limit

    def get(self, key: str) -> Inversion | None:
        """The inversion of a key on the CPU, or None."""
        path = self._path(key)
        try:
            tensors = load_file(path)
            os.utime(path)
            return Inversion(tensors["trajectory"], tensors.get("null_texts"))
        except (OSError, SafetensorError, KeyError):
            return None

    def put(self, key: str, inversion: Inversion) -> None:
        """Keep an inversion.

        Raises:
            OutputError: the folder cannot be written.
        """
        tensors = {"trajectory": inversion.trajectory, "null_texts": inversion.null_texts}
        data = save({name: part.contiguous().cpu() for name, part in tensors.items() if part is not None})
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise OutputError(f"cannot make the folder {self.folder}: {error.strerror}") from error
        with atomic_file(self._path(key), overwrite=True) as file:
            file.write(data)
        self._prune()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _prune(self) -> None:
        """Delete the oldest files, among them what a killed process left half written."""
        with suppress(OSError):  # another process may be at it too
            files = [(path, path.stat()) for path in self.folder.iterdir()]
            total = 0
            for path, status in sorted(files, key=lambda file: file[1].st_mtime, reverse=True):
                total += status.st_size
                if total > self.limit:
                    path.unlink(missing_ok=True)


def default_folder() -> Path:
    """`inversions` in `WORDBRUSH_CACHE`, else in the user's cache folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wordbrush"
    return Path(os.environ.get("WORDBRUSH_CACHE") or user) / "inversions"


def model_digest(model: LatentDiffusion) -> str:
    """What distinguishes a model's U-Net, autoencoder and noise schedule from others, in 64 digits."""
    digest = sha256(json.dumps(dict(model.scheduler.config), sort_keys=True, default=str).encode())
    for network in (model.unet, model.vae):
        weights: dict[str, Tensor] = network.state_dict()
        for name, weight in weights.items():
            flat = weight.flatten()
            digest.update(name.encode() + _bytes(flat[:: max(1, len(flat) // _SAMPLES)]))
    return digest.hexdigest()


def inversion_key(model: str, inputs: Sequence[Tensor], options: Mapping[str, Any]) -> str:
    """All that an inversion depends on, in 64 digits.

    Args:
        model: of `model_digest`.
        inputs: the picture and the encoded texts.
        options: JSON values.
    """
    digest = sha256(json.dumps([_VERSION, model, options], sort_keys=True).encode())
    for tensor in inputs:
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    """Shape, precision and values."""
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return f"{tuple(tensor.shape)}{tensor.dtype}".encode() + values.numpy().tobytes()
