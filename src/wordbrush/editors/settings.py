"""The settings of each method: the source of `load`'s keywords, the CLI's flags and the page's controls.

Imports no torch, so that the command line can build its flags at once.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from wordbrush.diffusion.schedulers import SCHEDULERS
from wordbrush.errors import UsageError

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """What every method that samples from a latent diffusion model has."""

    steps: int = Field(20, ge=1, le=1000, description="denoising steps")
    size: int | None = Field(
        None, ge=8, le=8192, description="working size of the short side in pixels (default: the model's own)"
    )
    scheduler: str | None = Field(
        None,
        examples=list(SCHEDULERS),
        description=f"one of {', '.join(SCHEDULERS)} (default: the checkpoint's own)",
    )
    detail: bool | None = Field(
        None,
        description="carry the original's detail over (default: where the picture exceeds the working size)",
    )
    tiled_vae: bool = Field(False, description="decode in tiles: less memory for a large size, faint seams")

    @model_validator(mode="after")
    def _known_scheduler(self) -> Self:
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise ValueError(f"unknown scheduler {self.scheduler!r}; one of {', '.join(SCHEDULERS)}")
        return self


@dataclass(frozen=True, kw_only=True)
class InstructPix2PixSettings(SamplingSettings):
    """Settings of InstructPix2Pix (Brooks et al., 2211.09800)."""

    text_scale: float = Field(
        7.5, ge=0, le=50, allow_inf_nan=False, description="how strongly to follow the instruction"
    )
    image_scale: float = Field(
        1.5, ge=0, le=50, allow_inf_nan=False, description="how strongly to stay with the picture"
    )
    guidance_rescale: float = Field(
        0.0, ge=0, le=1, description="pull the guided noise back to the contrast of the unguided (0: no)"
    )
    guidance_start: float = Field(0.0, ge=0, le=1, description="fraction of the steps before guidance begins")
    guidance_end: float = Field(1.0, ge=0, le=1, description="fraction of the steps where guidance ends")

    @model_validator(mode="after")
    def _interval(self) -> Self:
        if self.guidance_start > self.guidance_end:
            raise ValueError("guidance_start lies after guidance_end")
        return self


@dataclass(frozen=True, kw_only=True)
class SDEditSettings(SamplingSettings):
    """Settings of SDEdit (Meng et al., 2108.01073), at the defaults of diffusers' image-to-image pipeline."""

    strength: float = Field(
        0.8, ge=0, le=1, description="how far to noise the picture: 0 keeps it, 1 forgets it"
    )
    text_scale: float = Field(
        7.5, ge=0, le=50, allow_inf_nan=False, description="how strongly to follow the caption"
    )


def make_settings(kind: type[S], values: Mapping[str, Any]) -> S:
    """Build a settings dataclass; an unknown name or a bad value is one `UsageError`."""
    names = [f.name for f in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
    if unknown := sorted(set(values) - set(names)):
        raise UsageError(f"unknown setting {unknown[0]!r}; one of {', '.join(names)}")
    try:
        return kind(**values)
    except ValidationError as error:
        raise UsageError("; ".join(_explain(e) for e in error.errors())) from None


def _explain(error: ErrorDetails) -> str:
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    where = ".".join(map(str, error["loc"]))
    return f"{where} is {error['input']!r}: {error['msg'][:1].lower()}{error['msg'][1:]}"
