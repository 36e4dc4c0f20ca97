"""The settings that every recipe has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import BaseModel, ConfigDict, Field, field_validator

from wordbrush.diffusion.runtime import fast_precision
from wordbrush.training.optimizers import OptimizerName

# What recipes give defaults of their own, and what stays: range and description.
Steps = Annotated[int, Field(ge=1, description="optimiser steps of the whole run")]
BatchSize = Annotated[int, Field(ge=1, description="samples per process that are computed at once")]
LearningRate = Annotated[float, Field(gt=0, description="greatest step size of the optimiser")]
EmaDecay = Annotated[
    float | None, Field(ge=0, lt=1, description="decay of the exported moving average; 0: no average")
]


class LoopConfig(BaseModel):
    """What every recipe has in common."""

    model_config = ConfigDict(frozen=True)

    output: Annotated[Path, typer.Option("--output", "-o")] = Field(
        description="folder of the trained model; state for resuming goes to OUTPUT/state"
    )
    steps: Steps
    batch_size: BatchSize
    accumulation: int = Field(1, ge=1, description="batches whose gradients make one step")
    learning_rate: LearningRate
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="of the learning rate after the warm-up: cosine (to 0) or constant"
    )
    optimizer: OptimizerName = "adamw"
    warmup_steps: int = Field(50, ge=0, description="over which the learning rate rises")
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, ge=0, description="largest norm of the gradient; 0: any")
    ema_decay: EmaDecay = None
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = Field(
        "no", description="auto: half precision where this machine computes faster in it"
    )
    workers: int = Field(0, ge=0, description="processes that prepare samples")
    seed: int = Field(0, ge=0, description="of new weights and of all that chance decides")
    checkpoint_minutes: float = Field(5.0, gt=0, description="between two states to go on from")
    max_minutes: float | None = Field(
        None, description="stop (and keep the state) after so long; run again to go on"
    )
    log_steps: int = Field(20, ge=1, description="between two lines of the log")

    @field_validator("mixed_precision")
    @classmethod
    def _resolved(cls, given: str) -> str:
        """That of this machine, so that the record of a run says which it was."""
        return fast_precision() if given == "auto" else given
