"""What may be asked for over the network: the fields of a request, made from the method's settings."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from wordbrush.controls import Control, offered
from wordbrush.editors.asked import Asked
from wordbrush.errors import UsageError
from wordbrush.serving.replies import describe_validation

MAX_TEXT = 2000
"""Characters of a text."""
MAX_VARIATIONS = 10
"""Of one request over the network."""
ASKED = tuple(Asked.model_fields)
_OTHERS = ("model", "num_variations")


def fields_model(settings_class: type, defaults: Mapping[str, Any]) -> type[BaseModel]:
    """A model of everything in a request but its pictures; the names are those of the flags.

    Args:
        settings_class: of the method.
        defaults: the values of its fields that hold where a request says nothing.
    """
    text: Any = (str, Field("", max_length=MAX_TEXT, examples=["make it night"]))
    maybe_text: Any = (str | None, Field(None, max_length=MAX_TEXT))
    seed = Field(
        None, ge=0, lt=2**63 - MAX_VARIATIONS, description="variation k uses seed + k (default: drawn)"
    )
    variations = Field(1, ge=1, le=MAX_VARIATIONS, description="how many results to make")
    fields: dict[str, Any] = {
        "instruction": text,
        "source_caption": text,
        "target_caption": text,
        "negative_prompt": maybe_text,
        "task": maybe_text,
        "seed": (int | None, seed),
        "num_variations": (int, variations),
        "model": (str | None, Field(None, max_length=MAX_TEXT, description="as /v1/models names it")),
    }
    fields |= {control.name: _field(control, defaults[control.name]) for control in offered(settings_class)}
    config = ConfigDict(extra="forbid", protected_namespaces=())
    return create_model("EditFields", __config__=config, **fields)


def _field(control: Control, default: Any) -> tuple[Any, Any]:
    limits = {"ge": control.low, "le": control.high}
    if control.type is str:
        limits = {"max_length": MAX_TEXT}
    given: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
    if control.type is float:
        given["allow_inf_nan"] = False
    hint: Any = control.type | None if control.optional else control.type
    return hint, Field(default, description=control.description, **given)


def parse_fields(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those fields that were given, checked.

    Raises:
        UsageError: an unknown field, or a bad value.
    """
    if unknown := sorted(set(values) - set(model.model_fields)):
        raise UsageError(
            f"unknown field {unknown[0][:100]!r}; the fields are {', '.join(model.model_fields)}"
        )
    try:
        return model.model_validate(values).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise UsageError(describe_validation(error.errors())) from None


def split_settings(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Given fields as what is asked, and the method's settings."""
    asked = {name: values[name] for name in ASKED if name in values}
    settings = {name: value for name, value in values.items() if name not in (*ASKED, *_OTHERS)}
    return asked, settings
