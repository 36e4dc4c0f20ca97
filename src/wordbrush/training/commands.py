"""The recipes by name, and their settings as command-line parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from typer.models import ParameterInfo

from wordbrush.diffusion.runtime import prepare_process
from wordbrush.errors import UsageError
from wordbrush.training import RECIPES


def command(name: str) -> Callable[..., None]:
    """A function whose signature lists the recipe's settings, for typer to make flags of."""
    recipe: Any = import_module(f"wordbrush.training.{name.replace('-', '_')}")
    fields: dict[str, FieldInfo] = recipe.Config.model_fields

    def run(**given: Any) -> None:
        try:
            config = recipe.Config(**{key: value for key, value in given.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            flag = str(first["loc"][0]).replace("_", "-")
            raise UsageError(f"--{flag}: {first['msg']}") from error
        prepare_process()  # before the first tensor is made
        recipe.main(config)

    run.__signature__ = inspect.Signature([_parameter(*item) for item in fields.items()])
    run.__doc__ = RECIPES[name]
    return run


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """As the field's own typer annotation says; else an option.

    An option is None unless given, so that the recipe's own default stands.
    """
    default = "" if field.is_required() or field.default is None else f"default {field.default}"
    text = "; ".join(part for part in (field.description, default) if part)
    kind: Any = field.annotation
    own = next((note for note in field.metadata if isinstance(note, ParameterInfo)), None)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if field.is_required() else None,
        annotation=Annotated[kind if field.is_required() else kind | None, own or typer.Option(help=text)],
    )
