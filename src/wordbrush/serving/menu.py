"""The models and methods that the page offers, and the editors behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

from wordbrush.editors import Method
from wordbrush.editors.fitting import fitting_methods
from wordbrush.errors import UsageError
from wordbrush.models import public_name
from wordbrush.types import Editor

_MOST_LOADED = 2
"""Editors in memory at once: that in use, and the one before."""


class Menu:
    """What a visitor may choose from; what was chosen is loaded when it is first used.

    Args:
        models: Names, folders or hub ids; the first is chosen to begin with.
        load: (model, method) -> its editor.
        defaults: (model, method) -> its settings, without loading anything.
        first: The method to begin with.

    Raises:
        ModelError: There is no such model.
        UsageError: The first model cannot run the first method.
    """

    def __init__(
        self,
        models: Sequence[str],
        load: Callable[[str, str], Editor],
        defaults: Callable[[str, str], Any],
        *,
        first: str = "instruct-pix2pix",
    ) -> None:
        self._models: Mapping[str, str] = {public_name(model): model for model in models}
        self._methods = {name: fitting_methods(model) for name, model in self._models.items()}
        self._defaults = defaults
        self._lock = Lock()
        self._load = lru_cache(_MOST_LOADED)(load)
        self.first = first
        if first not in (method.name for method in self.methods(self.models[0])):
            raise UsageError(f"{self.models[0]} cannot run {first}")

    @property
    def models(self) -> list[str]:
        """The names as visitors see them: of a path its last part alone."""
        return list(self._models)

    def methods(self, model: str) -> list[Method]:
        """What a model can run.

        Raises:
            UsageError: It is not on the menu.
        """
        self._place(model)
        return self._methods[model]

    def all_methods(self) -> list[Method]:
        """What any of the models can run."""
        return list({method.name: method for found in self._methods.values() for method in found}.values())

    def defaults(self, model: str, method: str) -> Any:
        """The settings that a method begins with on a model."""
        return self._defaults(self._place(model), method)

    def editor(self, model: str, method: str) -> Editor:
        """The editor, loaded at its first use.

        Raises:
            UsageError: It is not on the menu.
            ModelError: It cannot be loaded.
        """
        if method not in (known.name for known in self.methods(model)):
            raise UsageError(f"{model} cannot run {method}")
        with self._lock:  # two visitors at once would load it twice
            return self._load(self._place(model), method)

    def _place(self, model: str) -> str:
        if model not in self._models:
            raise UsageError(f"no model {model!r} here; one of {', '.join(self._models)}")
        return self._models[model]
