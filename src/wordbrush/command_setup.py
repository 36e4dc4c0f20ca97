"""What the commands that edit have in common: their options, and how these load an editor.

Whatever is heavy is imported inside a function, so that `--help` is instant.
"""

import inspect
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand
from typer.main import get_command

import wordbrush

if TYPE_CHECKING:
    from wordbrush.controls import Control
    from wordbrush.recipe import Recipe
    from wordbrush.safety import Safety
    from wordbrush.types import Editor


def say(message: str) -> None:
    """One line on standard error."""
    print("wordbrush:", " ".join(message.split()), file=sys.stderr)


def debugging() -> bool:
    """Whether WORDBRUSH_DEBUG asks for all that the libraries say."""
    return os.environ.get("WORDBRUSH_DEBUG") == "1"


@dataclass(frozen=True)
class Setup:
    """The options of every command that edits, and the flags of the method's settings that were given."""

    model: Annotated[
        str | None,
        typer.Option(help="An embedded name, a folder, a single file, or a hub id. (default: storybook)"),
    ] = None
    method: Annotated[
        str | None,
        typer.Option(help="See `wordbrush methods`. (default: instruct-pix2pix; in `compare`, all)"),
    ] = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto"
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16. (default: auto)")] = (
        None
    )
    lora: Annotated[list[Path] | None, typer.Option(help="A LoRA file; may be given more than once.")] = None
    concept: Annotated[
        list[Path] | None,
        typer.Option(help="A file of a learned word, for use in prompts; may be given more than once."),
    ] = None
    config: Annotated[
        str | None,
        typer.Option(help="For a single file: a folder or hub id with the configuration of such models."),
    ] = None
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep on the GPU only the network that is running.")
    ] = False
    translator: Annotated[
        str,
        typer.Option(
            help="What turns an instruction into English: tables (part of Wordbrush), off, or a folder or "
            "hub id of NLLB, M2M100 or Opus-MT."
        ),
    ] = "tables"
    nsfw_check: Annotated[
        str,
        typer.Option(
            help="Withhold results that are not safe for work: off, open-nsfw, or a folder or hub id of an "
            "image classifier or of diffusers' safety checker."
        ),
    ] = "off"
    watermark: Annotated[
        bool,
        typer.Option("--watermark", help="Mark results invisibly; `wordbrush watermark` finds the mark."),
    ] = False
    settings: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def safety(self) -> "Safety":
        """What is done to results before anybody gets them."""
        from wordbrush.safety import Safety

        return Safety(self.nsfw_check, self.watermark)

    def over(self, recipe: "Recipe") -> "Recipe":
        """The recipe with what was given in the place of what was recorded."""
        given = {
            name: getattr(self, name) for name in ("model", "method", "dtype", "lora", "concept", "config")
        }
        return recipe.model_copy(update={name: value for name, value in given.items() if value is not None})

    def narrowed(self, method: str) -> "Setup":
        """With those settings alone that a method has, and nothing kept from one run for the next."""
        names = {f.name for f in wordbrush.METHODS[method].settings_fields()}
        settings = self.keeping_nothing(method).settings
        return replace(self, settings={name: value for name, value in settings.items() if name in names})

    def keeping_nothing(self, method: str) -> "Setup":
        """With nothing kept from one run for the next, unless it was asked for."""
        from wordbrush.controls import keep_nothing

        return replace(self, settings=keep_nothing(wordbrush.METHODS[method].settings) | self.settings)

    def load(self, recipe: "Recipe") -> "Editor":
        """The editor of a recipe, on the device that was asked for."""
        if not debugging():
            warnings.simplefilter("ignore")  # the libraries' remarks to their own users
        from wordbrush.languages.editor import load_editor

        editor = load_editor(self.translator, **self.load_arguments(recipe))
        return self.safety.guard(editor, self.device)

    def load_arguments(self, recipe: "Recipe") -> dict[str, Any]:
        """The keywords of `wordbrush.load` for a recipe."""
        return {
            "model": recipe.model,
            "method": recipe.method,
            "device": self.device,
            "dtype": recipe.dtype,
            "offload": self.offload,
            "lora": recipe.lora,
            "concept": recipe.concept,
            "config": recipe.config,
            **recipe.settings,
            **self.settings,
        }


def edits(app: typer.Typer) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function, with the options of `Setup` and a flag for every setting of every method.

    The settings take longer to import than all the rest of `--help`: hence only once the command is used.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        @app.command(function.__name__, cls=later(lambda: _with_options(function)), help=function.__doc__)
        def placeholder() -> None: ...

        return function

    return add


def later(build: Callable[[], Callable[..., None]]) -> type[TyperCommand]:
    """A command whose function, and so its flags, `build` makes only once the command is used."""

    class Command(TyperCommand):
        @cached_property
        def full(self) -> Any:
            alone = typer.Typer(add_completion=False)
            alone.command()(build())
            return get_command(alone)

        def get_params(self, ctx: Any) -> Any:
            return self.full.get_params(ctx)

        def invoke(self, ctx: Any) -> Any:
            return self.full.invoke(ctx)

    return Command


def _with_options(function: Callable[..., None]) -> Callable[..., None]:
    from wordbrush.controls import controls
    from wordbrush.editors import METHODS

    hints = get_type_hints(Setup, include_extras=True)
    options = [_option(f.name, hints[f.name], f.default) for f in fields(Setup) if f.name != "settings"]
    flags: dict[str, inspect.Parameter] = {}
    known = [(method.name, control) for method in METHODS.values() for control in controls(method.settings)]
    for method, control in known:
        # Of a setting that several methods have, the words and values of the first one are shown.
        if control.name not in flags:
            alike = {other.default for _, other in known if other.name == control.name} == {control.default}
            flags[control.name] = _flag(control, method, alike=alike)

    def run(**given: Any) -> None:
        setup = {option.name: given.pop(option.name) for option in options}
        settings = {name: value for name in flags if (value := given.pop(name)) is not None}
        function(Setup(**setup, settings=settings), **given)

    own = [p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(function).parameters.values()][1:]
    run.__signature__ = inspect.Signature([*own, *options, *flags.values()])
    return run


def _option(name: str, hint: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _settings_panel(setting: str) -> str:
    """The heading in `--help`: which methods have the setting."""
    from wordbrush.editors import METHODS

    found = [m.name for m in METHODS.values() if setting in (f.name for f in m.settings_fields())]
    return f"Settings of {'every method' if len(found) == len(METHODS) else ', '.join(found)}"


def _flag(control: "Control", method: str, *, alike: bool) -> inspect.Parameter:
    """An option that is None unless given, so that the model's, the method's or the recorded value stands."""
    words = describe(control, method) + ("" if alike else " (for others see `wordbrush methods`)")
    option = typer.Option(help=words, rich_help_panel=_settings_panel(control.name))
    return _option(control.name, Annotated[control.type | None, option], None)


def describe(control: "Control", method: str) -> str:
    """Description, range and default of a method's setting, and the embedded model's own value."""
    from wordbrush.models import EMBEDDED, own_settings

    default = control.default
    if isinstance(default, bool):
        default = "on" if default else "off"
    notes = [control.range] if control.range else []
    notes += [] if default is None else [f"default {default}"]
    values = {model: own_settings(model, method).get(control.name) for model in EMBEDDED}
    notes += [f"{model} {value}" for model, value in values.items() if value is not None]
    return "; ".join([control.description, ", ".join(notes)] if notes else [control.description])
