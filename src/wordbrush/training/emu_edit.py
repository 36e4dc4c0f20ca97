"""Emu Edit: an editor of many tasks, each with a learned embedding (2311.10089).

InstructPix2Pix's recipe with a task in every sample. Its `--init-from` may be any checkpoint that the latter
takes, or an editor of this kind, whose embeddings then go on being learned.
"""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.utils.data import Dataset

from wordbrush.data.blocks import edit_tasks
from wordbrush.diffusion.task_embedding import ANY, PART, TaskEmbedding, take_task
from wordbrush.editors.settings import parse_numbers
from wordbrush.models import own_settings
from wordbrush.tasks import TASKS
from wordbrush.training import instruct_pix2pix
from wordbrush.training.base import save_pipeline, task_embedding_of
from wordbrush.training.denoising import fast_on_cpu
from wordbrush.training.instruct_pix2pix import InstructPix2PixRecipe
from wordbrush.training.loop import TrainingError
from wordbrush.training.order import Rows, Weights
from wordbrush.training.resuming import made_once

_ANY_STREAM = 41  # of the draws of samples that are told no task


class Config(instruct_pix2pix.Config):
    """Defaults of the storybook's multi-task editor."""

    zero_terminal_snr: bool = Field(
        True, description="noise the last step wholly (2305.08891), which needs v-prediction and --min-snr 0"
    )
    prediction_type: Any = Field("v_prediction", description="what the U-Net predicts")
    new_task: list[str] = Field([], description="a task that the editor is to know besides; may be repeated")
    any_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description=f'share of the samples that are told the task "{ANY}" in place of theirs, '
        "so that the editor also follows instructions alone, by the method instruct-pix2pix",
    )
    task_weights: str = Field(
        "", description='how often a row of a task is drawn, against those of others: "text=2, detect=0.5"'
    )

    @model_validator(mode="after")
    def _has_tasks(self) -> Self:
        if self.lora_rank is not None:
            raise ValueError("--lora-rank: an editor of many tasks is trained whole")
        if self.validation is not None:
            raise ValueError("--validation looks at editors without tasks only: use `wordbrush evaluate`")
        if self.task_weights and self.buckets:
            raise ValueError("--task-weights does not go together with --buckets")
        return self

    @field_validator("task_weights")
    @classmethod
    def _weights_are_numbers(cls, given: str) -> str:
        weights = parse_numbers("--task-weights", given)
        if any(weight < 0 for weight in weights.values()):
            raise ValueError("--task-weights: weights are numbers from 0 up")
        return given


class TaskedUNet(nn.Module):
    """A U-Net and its task embedding; takes the numbers of tasks (B,) as `class_labels`."""

    def __init__(self, unet: UNet2DConditionModel, tasks: TaskEmbedding) -> None:
        super().__init__()
        self.unet, self.tasks = unet, tasks

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **options: Any) -> Any:
        """The U-Net's own output."""
        time, token = self.tasks(self.tasks.vectors(options.pop("class_labels")))
        text = torch.cat([encoder_hidden_states, token.to(encoder_hidden_states)], dim=1)
        return self.unet(sample, timestep, text, class_labels=time, **options)


class WithTasks(Dataset[dict[str, Any]]):
    """Samples of edits, with the number of each one's task as "task"; of a share of them that of `ANY`."""

    def __init__(
        self, edits: Dataset[dict[str, Any]], numbers: Rows, any_number: int | None, any_share: float
    ) -> None:
        self.edits, self.numbers, self.any_number, self.any_share = edits, numbers, any_number, any_share

    def __getitem__(self, sample: int) -> dict[str, Any]:
        found = self.edits[sample]
        if self.any_number is not None and self._told_none(sample):
            return found | {"task": self.any_number}
        return found | {"task": int(self.numbers[found["row"]])}

    def _told_none(self, sample: int) -> bool:
        return np.random.default_rng((_ANY_STREAM, sample)).random() < self.any_share


class EmuEditRecipe(InstructPix2PixRecipe):
    """InstructPix2Pix's, of a U-Net that is told the task."""

    config: Config
    method: ClassVar[str] = "emu-edit"

    def _settings_of(self, checkpoint: str) -> dict[str, Any]:
        """Of an editor without tasks those that it was used with: what is learned begins from it."""
        return super()._settings_of(checkpoint) or own_settings(checkpoint, InstructPix2PixRecipe.method)

    def _kept_settings(self) -> dict[str, dict[str, Any]]:
        """Those of the method without tasks, too, where the model follows it."""
        found = super()._kept_settings()
        if ANY in self.tasks and self.own_settings:
            found[InstructPix2PixRecipe.method] = self.own_settings
        return found

    def build(self, unet: UNet2DConditionModel) -> nn.Module:
        """The U-Net with its task embedding: that of the checkpoint, or a new one of the data's tasks.

        Raises:
            TrainingError: A new task has the name of a known one, or no row of the data has a task.
        """
        begun = task_embedding_of(self.config.init_from)
        if begun is not None:
            known: Any = TaskEmbedding.from_pretrained(begun)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.seed)
                known = TaskEmbedding.for_unet(unet, self._tasks_of_data())
        new = list(self.config.new_task)
        if twice := sorted(name for name in new if name in known.names or new.count(name) > 1):
            raise TrainingError(f"--new-task {twice[0]}: the model has a task of that name")
        if self.config.any_share and ANY not in known.names:
            new.append(ANY)
        tasks = known.grown(new)
        self.tasks: list[str] = tasks.names
        fast_on_cpu(take_task(unet))
        return TaskedUNet(unet, tasks.to(unet.device))

    def _tasks_of_data(self) -> list[str]:
        found = set(self._row_tasks.tolist())
        if not (known := [name for name in TASKS if name in found]):
            raise TrainingError(f"the data has rows of no task; known are {', '.join(TASKS)}")
        return known

    def samples(self) -> Dataset[dict[str, Any]]:
        """InstructPix2Pix's, with tasks."""
        share = self.config.any_share
        return WithTasks(super().samples(), self._numbers, self.tasks.index(ANY) if share else None, share)

    def row_weights(self) -> Weights | None:
        """By the tasks of the rows.

        Raises:
            TrainingError: A weight is of no task that the model knows, or no row is left.
        """
        weights = parse_numbers("--task-weights", self.config.task_weights)
        if not weights:
            return None
        if unknown := sorted(set(weights) - set(self.tasks)):
            raise TrainingError(
                f"--task-weights names {unknown[0]!r}; the model knows {', '.join(self.tasks)}"
            )
        found = np.array([weights.get(name, 1.0) for name in self.tasks])[self._numbers]
        if not found.any():
            raise TrainingError("--task-weights leaves no row of the data")
        return found

    @cached_property
    def _numbers(self) -> Rows:
        """The number of each row's task.

        Raises:
            TrainingError: A row has no task, or one that the model does not know.
        """
        names = self._row_tasks.tolist()
        if unknown := sorted(set(names) - set(self.tasks)):
            named = ", ".join(name or "no task" for name in unknown)
            raise TrainingError(f"the data has rows of {named}; the model knows {', '.join(self.tasks)}")
        numbers = {name: number for number, name in enumerate(self.tasks)}
        return np.array([numbers[name] for name in names])

    @cached_property
    def _row_tasks(self) -> Rows:
        """The name of each row's task, "" without one."""
        path = self.config.output / "cache" / f"tasks-{sum(block.count for block in self.blocks)}.npy"
        return np.load(made_once(path, partial(edit_tasks, self.blocks)))

    def use(self) -> str:
        """With the tasks."""
        tasks = ", ".join(f"`{name}`" for name in self.tasks if name != ANY)
        return (
            f"`wordbrush edit PICTURE INSTRUCTION --model FOLDER --method emu-edit --task TASK`, of {tasks}."
        )

    def save_unet(self, model: nn.Module, folder: Path) -> None:
        """The folder of a U-Net, with the task embedding inside."""
        whole: Any = model
        whole.unet.save_pretrained(folder)
        whole.tasks.save_pretrained(folder / PART)

    def save(self, model: nn.Module, folder: Path) -> None:
        """A diffusers folder, with the task embedding beside the U-Net."""
        whole: Any = model
        save_pipeline(self.base, whole.unet, folder)
        whole.tasks.save_pretrained(folder / PART)

    def example(self) -> dict[str, Any]:
        """The model's inputs for one process's batch, on the "meta" device."""
        count = self.config.batch_size
        return super().example() | {"class_labels": torch.zeros(count, dtype=torch.long, device="meta")}


def main(config: Config) -> None:
    """Trains, or goes on training, the editor."""
    instruct_pix2pix.run(config, EmuEditRecipe)
