"""Wordbrush edits pictures by words."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wordbrush.editors import METHODS, Method, load
    from wordbrush.editors.settings import InstructPix2PixSettings
    from wordbrush.errors import DeviceError, ImageError, ModelError, OutputError, UsageError, WordbrushError
    from wordbrush.types import Editor, EditRequest, EditResult, StepInfo

__version__ = "0.1.0"

_HOME = {
    "METHODS": "wordbrush.editors",
    "Method": "wordbrush.editors",
    "load": "wordbrush.editors",
    "InstructPix2PixSettings": "wordbrush.editors.settings",
    "DeviceError": "wordbrush.errors",
    "ImageError": "wordbrush.errors",
    "ModelError": "wordbrush.errors",
    "OutputError": "wordbrush.errors",
    "UsageError": "wordbrush.errors",
    "WordbrushError": "wordbrush.errors",
    "EditRequest": "wordbrush.types",
    "EditResult": "wordbrush.types",
    "Editor": "wordbrush.types",
    "StepInfo": "wordbrush.types",
}

__all__ = [
    "METHODS",
    "DeviceError",
    "EditRequest",
    "EditResult",
    "Editor",
    "ImageError",
    "InstructPix2PixSettings",
    "Method",
    "ModelError",
    "OutputError",
    "StepInfo",
    "UsageError",
    "WordbrushError",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'wordbrush' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
