"""A settings class, field by field: what the command line's flags and the page's controls are made from."""

from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, cast, get_args, get_type_hints

from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Control:
    """One setting of an editing method."""

    name: str
    """The field's name; the flag is the same with dashes."""
    type: type
    """bool, int, float or str."""
    default: Any
    optional: bool
    """Whether None is a value: the method or the checkpoint decides."""
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    """The words that are allowed; empty for a setting that is not one of a few words."""
    description: str
    local: bool
    """Whether it concerns the files of this computer: nothing for a stranger to choose over the network."""

    @property
    def flag(self) -> str:
        """`text_scale` -> `--text-scale`."""
        return "--" + self.name.replace("_", "-")

    @property
    def range(self) -> str:
        """The allowed numbers in words; empty where there is no limit."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return f"at least {self.low:g}" if self.low is not None else ""


def controls(settings_class: type) -> list[Control]:
    """The controls of a pydantic dataclass of settings, in the order of its fields."""
    hints = get_type_hints(settings_class)
    described = cast("dict[str, FieldInfo]", vars(settings_class)["__pydantic_fields__"])
    return [
        _control(field.name, hints[field.name], described[field.name]) for field in fields(settings_class)
    ]


def offered(settings_class: type) -> list[Control]:
    """The settings that a stranger may choose: all but those that concern this computer's files."""
    return [control for control in controls(settings_class) if not control.local]


def keep_nothing(settings_class: type) -> dict[str, bool]:
    """The settings that keep files of this computer from one edit to the next, switched off."""
    return {c.name: False for c in controls(settings_class) if c.local and c.type is bool}


def _control(name: str, hint: Any, field: FieldInfo) -> Control:
    types = get_args(hint) or (hint,)
    bounds = {
        bound: getattr(rule, bound)
        for rule in field.metadata
        for bound in ("ge", "le")
        if hasattr(rule, bound)
    }
    return Control(
        name=name,
        type=next(kind for kind in types if kind is not NoneType),
        default=field.default,
        optional=NoneType in types,
        low=bounds.get("ge"),
        high=bounds.get("le"),
        choices=tuple(map(str, field.examples or ())),
        description=field.description or "",
        local=isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("local")),
    )
