"""Imagic's tuning of a model to one picture (2210.09276), into a folder that edits of it start from.

A run goes on by itself where it stopped; a finished one is left as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from wordbrush.editors import load
from wordbrush.editors.imagic import Imagic
from wordbrush.editors.settings import TuningSettings
from wordbrush.images import open_image
from wordbrush.progress import progress

_TUNING = cast("dict[str, FieldInfo]", vars(TuningSettings)["__pydantic_fields__"])


class RunConfig(BaseModel):
    """What a run is about; `Config` has the settings of the tuning, too."""

    picture: Annotated[Path, typer.Argument(help="The picture to tune to.")]
    target: str = Field(description="a caption of the result that is wanted")
    output: Annotated[Path, typer.Option("--output", "-o", help="the folder for the tuned picture")]
    model: str = Field("storybook", description="an embedded name, a folder, a single file, or a hub id")
    size: int | None = Field(
        None, ge=8, le=8192, description="working size of the short side in pixels, as edits will have it"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of the noises")
    lora: list[Path] = Field([], description="LoRA file for the model; may be repeated")
    concept: list[Path] = Field([], description="file of a learned word for the target; may be repeated")
    config: str | None = Field(None, description="of a single-file checkpoint: a diffusers folder or hub id")
    device: str = "auto"
    dtype: str = "auto"


_FIELDS: dict[str, Any] = {name: (field.annotation, field) for name, field in _TUNING.items()}
Config = create_model("Config", __base__=RunConfig, **_FIELDS)


def main(config: RunConfig) -> None:
    """Tunes, or goes on tuning."""
    picture = open_image(config.picture).image
    given = config.model_dump(exclude_unset=True, include={*_TUNING, "size"})
    with progress() as show:
        show("Loading the model")
        editor = load(
            config.model, "imagic", device=config.device, dtype=config.dtype, lora=config.lora,
            concept=config.concept, config=config.config, **given,
        )  # fmt: skip
        assert isinstance(editor, Imagic)
        tuning = editor.settings.tuning
        total = tuning.embedding_steps + tuning.model_steps
        try:
            tuned = editor.tune(
                picture,
                config.target,
                config.output,
                seed=config.seed,
                on_step=lambda done: show("Tuning", done, total),
            )
        except KeyboardInterrupt:
            print("wordbrush: what was tuned is kept: the same command goes on from there", file=sys.stderr)
            raise
    for stage, losses in tuned.record.losses.items():
        if losses:
            print(f"{stage}: loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    print(config.output)
