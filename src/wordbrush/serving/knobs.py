"""The knobs of a method, made from its settings class, and back from what they show to settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from wordbrush import controls
from wordbrush.controls import Control
from wordbrush.editors import Method
from wordbrush.errors import UsageError

_FIRST = ("text_scale", "image_scale", "strength", "eta", "steps")
"""What is worth moving first; the rest is folded away."""
_WORDS = {"automatic": None, "on": True, "off": False}


def offered(method: Method) -> list[Control]:
    """The settings that a visitor may choose, the first ones in front."""
    found = controls.offered(method.settings)
    return sorted(found, key=lambda c: _FIRST.index(c.name) if c.name in _FIRST else len(_FIRST))


def knob_name(method: str, setting: str) -> str:
    """What the page calls the knob of a setting."""
    return f"{method}__{setting}".replace("-", "_")


def make_knobs(method: Method, settings: Any) -> dict[str, Any]:
    """The knobs of a method, by `knob_name`, placed where this is called.

    Args:
        method: Whose settings they are.
        settings: What they show to begin with.
    """
    found = offered(method)
    first = [control for control in found if control.name in _FIRST]
    made = {control.name: _knob(control, getattr(settings, control.name)) for control in first}
    with gr.Accordion("More", open=False):
        rest = [control for control in found if control not in first]
        made |= {control.name: _knob(control, getattr(settings, control.name)) for control in rest}
    return {knob_name(method.name, name): knob for name, knob in made.items()}


def shown(method: Method, settings: Any) -> dict[str, Any]:
    """What the knobs of a method show for its settings."""
    return {
        knob_name(method.name, control.name): _shown(control, getattr(settings, control.name))
        for control in offered(method)
    }


def read_knobs(method: Method, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the knobs of a method ask for."""
    return {control.name: _meant(values[knob_name(method.name, control.name)]) for control in offered(method)}


def whole(text: str | None, what: str) -> int | None:
    """The number in a line of text; None for an empty one, which gradio gives as None until it is touched.

    Raises:
        UsageError: It is no whole number.
    """
    try:
        return int(text) if text and text.strip() else None
    except ValueError:
        raise UsageError(f"the {what} is {text!r}: it must be a whole number") from None


def _knob(control: Control, value: Any) -> Any:
    """A slider, a number, a choice, a tick box or a line of text, whichever fits the setting."""
    info = control.description[:1].upper() + control.description[1:]
    common: dict[str, Any] = {"label": control.name.replace("_", " ").capitalize(), "info": info}
    value = _shown(control, value)
    if control.type is bool and not control.optional:
        return gr.Checkbox(value=value, **common)
    if control.type is bool or control.choices:
        choices = [*(control.choices or ("on", "off"))]
        return gr.Dropdown(["automatic", *choices] if control.optional else choices, value=value, **common)
    # Not a gr.Number: it shows 0 where nothing is given.
    if control.type is str or control.optional:
        return gr.Textbox(value=value, placeholder="automatic", **common)
    low, high = control.low, control.high
    is_whole = control.type is int
    if low is None or high is None:
        return gr.Number(value=value, minimum=low, maximum=high, precision=0 if is_whole else None, **common)
    # A slider over all that is allowed would leave the sensible values in its first tenth.
    high = min(high, max(4 * (control.default or high), value))
    return gr.Slider(low, high, value=value, step=1 if is_whole else 0.05, **common)


def _shown(control: Control, value: Any) -> Any:
    if control.choices or (control.type is bool and control.optional):
        return next((word for word, meaning in _WORDS.items() if meaning is value), str(value))
    if control.type is str or control.optional:
        return "" if value is None else str(value)
    return value


def _meant(value: Any) -> Any:
    """A knob's word as a setting; an emptied line of text asks for nothing."""
    words = {**_WORDS, "": None}
    return words.get(value, value) if isinstance(value, str) else value
