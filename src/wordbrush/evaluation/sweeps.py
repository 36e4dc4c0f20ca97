"""Which curves are drawn: models, and the values of the setting that each method is swept over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wordbrush.editors import find_method
from wordbrush.errors import UsageError


@dataclass(frozen=True)
class Sweep:
    """A method, and the values of one of its settings that make a curve.

    Attributes:
        method: One of `wordbrush methods`.
        setting: Its name; "one+other" where several take the same value.
        values: In order.
    """

    method: str
    setting: str
    values: tuple[float, ...]

    def at(self, value: float) -> dict[str, float]:
        """The settings at one of the values."""
        return dict.fromkeys(self.setting.split("+"), value)


SWEEPS = {
    sweep.method: sweep
    for sweep in (
        Sweep("instruct-pix2pix", "image_scale", (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)),
        Sweep("sdedit", "strength", (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
        # Both step windows: from plain sampling to all of the picture's attention.
        Sweep("prompt-to-prompt", "cross_steps+self_steps", (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
    )
}
"""The first two are the paper's."""


def words(setting: str) -> str:
    """How a report names what is swept."""
    return setting.replace("_", " ").replace("+", " and ")


def parse_sweep(text: str) -> Sweep:
    """`sdedit`, which is in `SWEEPS`, or `sdedit:strength=0.2,0.4`, or with `one+other=` for two settings.

    Raises:
        UsageError: No such method or setting, or no values.
    """
    name, colon, rest = text.partition(":")
    method = find_method(name)
    if not colon:
        if name not in SWEEPS:
            raise UsageError(f"{name} has no sweep of its own: give one, as in {name}:SETTING=0.2,0.4")
        return SWEEPS[name]
    setting, _, listed = rest.partition("=")
    known = [f.name for f in method.settings_fields()]
    if unknown := [part for part in setting.split("+") if part not in known]:
        raise UsageError(f"{name} has no setting {unknown[0]!r}; one of {', '.join(known)}")
    try:
        return Sweep(name, setting, tuple(float(value) for value in listed.split(",")))
    except ValueError:
        raise UsageError(f"{text!r}: the values must be numbers, as in {name}:{setting}=0.2,0.4") from None


@dataclass(frozen=True)
class Line:
    """One curve: a model under a sweep."""

    label: str
    model: str
    sweep: Sweep


def make_lines(
    models: Sequence[str], sweeps: Sequence[Sweep], own_models: Mapping[str, str] | None = None
) -> list[Line]:
    """Every model under every sweep.

    Args:
        models: Each an embedded name, a path or a hub id, with a label in front where there are several:
            "10 % of the data=runs/small".
        sweeps: Of methods that are all different.
        own_models: Method -> the one model that it is measured with.

    Raises:
        UsageError: Two curves would have one label.
    """
    own = own_models or {}
    named = [_label(model, alone=len(models) == 1) for model in models]
    lines: list[Line] = []
    for sweep in sweeps:
        for label, model in [("", own[sweep.method])] if sweep.method in own else named:
            method = sweep.method if len(sweeps) > 1 or not label else ""
            lines.append(Line(" · ".join(filter(None, (label, method))), model, sweep))
    labels = [line.label for line in lines]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise UsageError(f"two curves are called {twice[0]!r}: give models other labels, as in LABEL=MODEL")
    return lines


def _label(model: str, *, alone: bool) -> tuple[str, str]:
    label, equals, name = model.partition("=")
    if equals and not Path(model).exists():
        return label.strip(), name.strip()
    return ("" if alone else model), model
