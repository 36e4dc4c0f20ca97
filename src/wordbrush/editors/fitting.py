"""Which methods a checkpoint can run, by its configurations alone: nothing is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from wordbrush.editors import METHODS, Method
from wordbrush.errors import ModelError
from wordbrush.models import resolve

_CLIP = "clip"
"""`model_type` of a whole CLIP; a text tower alone has another."""


@dataclass(frozen=True)
class _Shape:
    """The part of a `LatentDiffusion` that a method's `check` looks at."""

    unet: Any
    latent_channels: int


def fitting_methods(model: str | Path) -> list[Method]:
    """The methods that a model can run, in the order of `METHODS`.

    Args:
        model: As for `wordbrush.load`. A single file tells nothing without being read whole, and is said to
            run them all.

    Raises:
        ModelError: There is no such model.
    """
    folder = resolve(model)
    return [method for method in METHODS.values() if folder.is_file() or _fits(folder, method)]


def _fits(folder: Path, method: Method) -> bool:
    kind: Any = getattr(method.load_factory(), "__self__")  # noqa: B009 - a bound classmethod's class
    if not hasattr(kind, "check"):  # no diffusion model takes part
        return _config(folder / "text_encoder").get("model_type") == _CLIP
    own = folder / (kind.unet or "unet")
    unet = _config(own if own.is_dir() else folder / "unet")
    shape = _Shape(
        SimpleNamespace(config=SimpleNamespace(**unet)),
        _config(folder / "vae").get("latent_channels", 4),
    )
    try:
        kind.check_parts(folder)
        kind.check(shape)
    except (ModelError, AttributeError):  # or a configuration that says too little
        return False
    return True


def _config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
