"""Which weights a result was made with, or measured by: a name alone can come to mean others."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from wordbrush.models import PINNED, is_hub_id, resolve

WEIGHTS = frozenset({".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".json", ".txt"})
DATA = frozenset({".parquet", ".json", ".csv", ".png", ".jpg", ".jpeg", ".webp"})


def identity(name: str | Path, part: str = "") -> dict[str, Any]:
    """A model's name, its revision where it comes from the hub, and the SHA-256 of its files.

    Args:
        name: An embedded name, a folder, a single file, or a hub id that is in the cache.
        part: A subfolder, where it is a part that counts.

    Raises:
        ModelError: There is no such model.
    """
    place = _place(str(name))
    revision = place.name if place.parent.name == "snapshots" else None
    return {"name": str(name), "revision": revision, "sha256": fingerprint(place / part if part else place)}


@cache
def fingerprint(place: Path, kinds: frozenset[str] = WEIGHTS) -> str:
    """SHA-256 over a file, or over all files of some kinds in a folder, with their names."""
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.suffix in kinds)
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.relative_to(place.parent if place.is_file() else place)}\0{digest}\n".encode())
    return whole.hexdigest()


def network_hash(network: nn.Module) -> str:
    """SHA-256 over a network's parameters and buffers: for weights that come with a library."""
    whole = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        whole.update(name.encode())
        whole.update(value.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def _place(name: str) -> Path:
    """Transformers fetches parts of a repository into the hub's cache: what is there, is what was loaded."""
    if is_hub_id(name):
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(name, "config.json", revision=PINNED.get(name))
        if isinstance(config, str):
            return Path(config).parent
    return resolve(name)
