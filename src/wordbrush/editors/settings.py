"""The settings of each method: the source of `load`'s keywords, the CLI's flags and the page's controls.

Imports no torch, so that the command line can build its flags at once.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from wordbrush.diffusion.schedulers import SCHEDULERS
from wordbrush.editors.imagic_presets import LORA_RATE, PRESETS, Tuning
from wordbrush.errors import UsageError

S = TypeVar("S")

LOCAL: Any = {"local": True}
"""Marks a setting that concerns the files of this computer; see `Control.local`."""
TEMPLATE_SETS = ("photo", "plain")
"""Of Text2LIVE."""


def _scale(default: float, description: str) -> Any:
    """A setting of guidance: 0 to 50."""
    return Field(default, ge=0, le=50, allow_inf_nan=False, description=description)


def _weight(default: float, description: str) -> Any:
    """A setting of any finite size from 0 on."""
    return Field(default, ge=0, allow_inf_nan=False, description=description)


@dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """What every method over a latent diffusion model has."""

    steps: int = Field(20, ge=1, le=1000, description="denoising steps")
    size: int | None = Field(
        None, ge=8, le=8192, description="working size of the short side in pixels (default: the model's own)"
    )
    detail: bool | None = Field(
        None,
        description="carry the original's detail over (default: where the picture exceeds the working size)",
    )
    tiled_vae: bool = Field(False, description="decode in tiles: less memory for a large size, faint seams")


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(LatentSettings):
    """What every method has that starts from noise of its own and so works with any sampler."""

    scheduler: str | None = Field(
        None,
        examples=list(SCHEDULERS),
        description=f"one of {', '.join(SCHEDULERS)} (default: the checkpoint's own)",
    )

    @model_validator(mode="after")
    def _known_scheduler(self) -> Self:
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise ValueError(f"unknown scheduler {self.scheduler!r}; one of {', '.join(SCHEDULERS)}")
        return self


@dataclass(frozen=True, kw_only=True)
class InstructPix2PixSettings(SamplingSettings):
    """Settings of InstructPix2Pix (Brooks et al., 2211.09800)."""

    text_scale: float = _scale(7.5, "how strongly to follow the instruction")
    image_scale: float = _scale(1.5, "how strongly to stay with the picture")
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
class EmuEditSettings(InstructPix2PixSettings):
    """Settings of Emu Edit (Sheynin et al., 2311.10089)."""

    text_scale: float = Field(
        5.0, ge=0, le=50, allow_inf_nan=False, description="how strongly to follow the instruction"
    )
    task_predictor: str | None = Field(
        None,
        description="folder or hub id of the model that finds the task (default: the checkpoint's own)",
        json_schema_extra=LOCAL,
    )
    task_file: str | None = Field(
        None,
        description="a task that was learned on its own, by `wordbrush train task-inversion`",
        json_schema_extra=LOCAL,
    )


@dataclass(frozen=True, kw_only=True)
class SDEditSettings(SamplingSettings):
    """Settings of SDEdit (Meng et al., 2108.01073), at the defaults of diffusers' image-to-image pipeline."""

    strength: float = Field(
        0.8, ge=0, le=1, description="how far to noise the picture: 0 keeps it, 1 forgets it"
    )
    text_scale: float = _scale(7.5, "how strongly to follow the caption")


@dataclass(frozen=True, kw_only=True)
class InversionSettings(LatentSettings):
    """What every method has that finds the noise a picture comes from, by DDIM and its inverse."""

    steps: int = Field(50, ge=1, le=500, description="denoising steps; the inversion has as many")
    text_scale: float = _scale(7.5, "how strongly to follow the caption")
    keep_inversion: bool = Field(
        True,
        description="keep the picture's inversion in the cache, so that further edits of it are quick",
        json_schema_extra=LOCAL,
    )


@dataclass(frozen=True, kw_only=True)
class PromptToPromptSettings(InversionSettings):
    """Settings of Prompt-to-Prompt (Hertz et al., 2208.01626) behind null-text inversion (2211.09794).

    The defaults are those of the latter's code. Its paper has a constant learning rate and tolerance.
    """

    attention_edit: str = Field(
        "refine",
        examples=["refine", "replace"],
        description="refine: words came, went or changed; replace: words were swapped for as many others",
    )
    cross_steps: float = Field(
        0.8, ge=0, le=1, description="fraction of the steps with the source's attention to words"
    )
    word_steps: str | None = Field(
        None, description="the same for single words of the target, such as 'lion=0.4, red=0.2'"
    )
    self_steps: float = Field(
        0.5, ge=0, le=1, description="fraction of the steps with the source's attention within the picture"
    )
    max_self_queries: int = Field(
        32**2, ge=0, description="larger layers keep their own self-attention (first paper's code: 256)"
    )
    word_weights: str | None = Field(
        None, description="factors of the attention to words of the target, such as 'snowy=3, dog=-1'"
    )
    blend_words: str | None = Field(
        None, description="edit only where these words are seen, in either picture, such as 'cat, tiger'"
    )
    keep_words: str | None = Field(
        None, description="with blend_words: never edit where these words are seen, such as 'snow'"
    )
    blend_threshold: float = Field(
        0.3, ge=0, le=1, description="a word is seen where its attention exceeds this part of its maximum"
    )
    blend_start: float = Field(0.2, ge=0, le=1, description="fraction of the steps before blending begins")
    null_text_steps: int = Field(
        10,
        ge=0,
        le=1000,
        description="most optimiser steps of the null text, per step (0: none, plain DDIM)",
    )
    null_text_rate: float = Field(
        1e-2, ge=0, allow_inf_nan=False, description="learning rate of the null text"
    )
    null_text_decay: float = Field(
        0.5, ge=0, le=1, description="part of the learning rate that is lost on the way (paper: 0)"
    )
    null_text_tolerance: float = Field(
        1e-5, ge=0, allow_inf_nan=False, description="squared error at which the optimisation stops"
    )
    null_text_growth: float = Field(
        1e-3, ge=0, allow_inf_nan=False, description="what the tolerance gains on the way (paper: 0)"
    )

    @model_validator(mode="after")
    def _words(self) -> Self:
        if self.attention_edit not in ("refine", "replace"):
            raise ValueError(f"attention_edit is {self.attention_edit!r}: refine or replace")
        if self.keep_words and not self.blend_words:
            raise ValueError("keep_words takes from the place of blend_words: give these, too")
        parse_numbers("word_steps", self.word_steps)
        parse_numbers("word_weights", self.word_weights)
        return self


@dataclass(frozen=True, kw_only=True)
class DiffEditSettings(InversionSettings):
    """Settings of DiffEdit (Couairon et al., 2210.11427)."""

    strength: float = Field(
        0.8, ge=0, le=1, description="how far back into noise the picture is traced: 0 leaves it as it is"
    )
    inversion_scale: float = _scale(
        0.0, "guidance of the inversion by the source caption (paper: 0; diffusers: 7.5)"
    )
    mask_strength: float = Field(
        0.5, ge=0, le=1, description="how far to noise the picture to see where the captions differ"
    )
    mask_samples: int = Field(10, ge=1, le=1000, description="noises over which that difference is averaged")
    mask_threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description="the mask is where they differ by more than this part of the most",
    )
    mask_dilate: int = Field(0, ge=0, le=64, description="grow the found mask by so many of its blocks")
    mask_clamp: float = Field(
        3.0, ge=1, allow_inf_nan=False, description="the most is this multiple of the mean difference"
    )
    mask_extremes: float = Field(
        0.0, ge=0, le=0.49, description="instead, as in the paper: drop this part at both ends, and rescale"
    )


@dataclass(frozen=True, kw_only=True)
class TuningSettings:
    """How Imagic tunes a model to a picture; what is not given is as the preset says."""

    preset: str = Field(
        "diffusers",
        examples=list(PRESETS),
        description=f"one of {', '.join(PRESETS)}; the checkpoint's own, where it names one",
    )
    embedding_steps: int | None = Field(
        None, ge=0, le=100_000, description="steps that optimise the caption's embedding"
    )
    embedding_rate: float | None = Field(None, gt=0, le=1, description="learning rate of the embedding")
    model_steps: int | None = Field(None, ge=0, le=100_000, description="steps that fine-tune the U-Net")
    model_rate: float | None = Field(
        None, gt=0, le=1, description=f"learning rate of the U-Net (of adapters by default: {LORA_RATE:g})"
    )
    lora_rank: int | None = Field(
        None, ge=0, le=1024, description="fine-tune adapters of this rank: small; 0: the whole U-Net"
    )
    tuning_batch: int | None = Field(
        None, ge=1, le=1024, description="noised copies of the picture in a tuning step"
    )
    plateau: float | None = Field(
        None, ge=0, le=1, description="stop a stage where 100 steps gain less than this part; 0: never"
    )
    save_memory: bool = Field(
        False, description="tune with less memory and a third more computing (gradient checkpointing)"
    )

    @model_validator(mode="after")
    def _known_preset(self) -> Self:
        if self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r}; one of {', '.join(PRESETS)}")
        return self

    @property
    def tuning(self) -> Tuning:
        """The preset with what was given in its place."""
        given = {
            "embedding_steps": self.embedding_steps,
            "embedding_rate": self.embedding_rate,
            "model_steps": self.model_steps,
            "model_rate": LORA_RATE if self.lora_rank and self.model_rate is None else self.model_rate,
            "lora_rank": self.lora_rank,
            "batch": self.tuning_batch,
            "plateau": self.plateau,
        }
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(PRESETS[self.preset], **changes)


_OF_THE_TUNING = [
    name for name, field in vars(TuningSettings)["__pydantic_fields__"].items() if field.default is None
]
"""What is given in the place of a preset's numbers."""


@dataclass(frozen=True, kw_only=True)
class ImagicSettings(TuningSettings, SamplingSettings):
    """Settings of Imagic (Kawar et al., 2210.09276)."""

    steps: int = Field(50, ge=1, le=1000, description="denoising steps")
    eta: float = Field(
        0.7,
        ge=0,
        le=2,
        allow_inf_nan=False,
        description="how far towards the caption: 0 reconstructs the picture, 0.6 to 0.8 edits",
    )
    text_scale: float = _scale(7.5, "how strongly to follow the caption")
    tuned: str | None = Field(
        None,
        description="folder of `wordbrush train imagic` for this picture (default: tune first)",
        json_schema_extra=LOCAL,
    )
    keep_tuned: bool = Field(
        True,
        description="keep what was tuned in the cache, so that further edits of the picture are quick",
        json_schema_extra=LOCAL,
    )

    @model_validator(mode="after")
    def _tuned_as_it_is(self) -> Self:
        given = [name for name in _OF_THE_TUNING if getattr(self, name) is not None]
        if self.tuned is not None and given:
            raise ValueError(f"the picture of tuned is tuned already: leave out {', '.join(given)}")
        return self


@dataclass(frozen=True, kw_only=True)
class Text2LiveSettings:
    """Settings of Text2LIVE (Bar-Tal et al., 2204.02491), at the defaults of its code."""

    steps: int = Field(1000, ge=1, le=100_000, description="training steps of the layer's generator")
    size: int | None = Field(
        None, ge=32, le=8192, description="working size of the short side (default: 512 for a CLIP of 224 px)"
    )
    layer_text: str | None = Field(
        None, description="what the layer shows by itself, such as 'golden horse' (default: the target)"
    )
    region_text: str | None = Field(
        None, description="where the layer begins: what the picture shows there, such as 'horse'"
    )
    templates: str = Field(
        "photo",
        examples=list(TEMPLATE_SETS),
        description="how captions are put to CLIP: 'photo of ...' and the like, or plain, as they are",
    )
    region_steps: float = Field(
        1.0, ge=0, le=1, description="fraction of the steps in which the region counts"
    )
    region_weight: float = _weight(10.0, "of opacity being where the region is; falls to 0 on the way")
    composition_weight: float = _weight(1.0, "of the result showing the target's caption")
    screen_weight: float = _weight(1.0, "of the layer alone, over green, showing the layer's text")
    structure_weight: float = _weight(2.0, "of the result keeping the picture's layout and shapes")
    opacity_weight: float = _weight(6.0, "of the layer being transparent wherever it can")
    num_views: int = Field(
        16, ge=1, le=256, description="random views of the picture that CLIP sees in a step"
    )
    width: int = Field(128, ge=4, le=1024, description="channels of the layer's generator")
    generator_rate: float = Field(
        2.5e-3, gt=0, allow_inf_nan=False, description="the generator's first learning rate"
    )

    @model_validator(mode="after")
    def _known_templates(self) -> Self:
        if self.templates not in TEMPLATE_SETS:
            raise ValueError(f"templates is {self.templates!r}: one of {', '.join(TEMPLATE_SETS)}")
        return self


def record_of(settings: Any) -> dict[str, Any]:
    """All settings, and what the preset among them stands for, which may be another in a later version."""
    found = dataclasses.asdict(settings)
    return found | {"tuning": dataclasses.asdict(settings.tuning)} if "preset" in found else found


def parse_words(words: str | None) -> list[str]:
    """The words or phrases of a list like "cat, old dog"."""
    return [word for part in (words or "").split(",") if (word := part.strip())]


def parse_numbers(name: str, numbers: str | None) -> dict[str, float]:
    """The numbers of words in a list like "cat=2, old dog=-1"; a `ValueError` where it is no such list."""
    parsed: dict[str, float] = {}
    for part in parse_words(numbers):
        word, _, number = part.partition("=")
        try:
            parsed[word.strip()] = float(number)
        except ValueError:
            parsed[""] = math.nan
    if not all(word and math.isfinite(number) for word, number in parsed.items()):
        raise ValueError(f"{name} is {numbers!r}: write word=number, word=number")
    return parsed


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
