"""Task inversion: a new task for a frozen editor, learned as one vector from few examples (2311.10089)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.data import Dataset

from wordbrush.diffusion.task_embedding import save_vector
from wordbrush.training import emu_edit, instruct_pix2pix
from wordbrush.training.base import task_embedding_of
from wordbrush.training.config import BatchSize, EmaDecay, LearningRate, Steps
from wordbrush.training.emu_edit import EmuEditRecipe, TaskedUNet
from wordbrush.training.instruct_pix2pix import InstructPix2PixRecipe
from wordbrush.training.loop import TrainingError
from wordbrush.training.optimizers import OptimizerName


class Config(emu_edit.Config):
    """Defaults of the storybook's; the paper states neither steps nor learning rate."""

    name: str = Field(
        pattern=r"^[\w-]+$", description="of the task, by which `wordbrush edit --task` calls it"
    )
    steps: Steps = 500
    batch_size: BatchSize = 16
    learning_rate: LearningRate = 1e-2
    optimizer: OptimizerName = "adamw"
    weight_decay: float = Field(0.0, ge=0)
    ema_decay: EmaDecay = None

    @model_validator(mode="after")
    def _from_an_editor_of_tasks(self) -> Self:
        if task_embedding_of(self.init_from) is None:
            raise ValueError(f"--init-from {self.init_from} holds no task embeddings to begin from")
        if self.task_weights or self.new_task or self.any_share:
            raise ValueError(
                "--task-weights, --new-task, --any-share: all rows are of the one task that is learned"
            )
        return self


class OneTask(nn.Module):
    """A frozen editor under a vector that is learned; only the vector is a parameter, and is saved.

    Args:
        editor: Of many tasks.
    """

    def __init__(self, editor: TaskedUNet) -> None:
        super().__init__()
        self.editor = [editor]  # in a list: its weights are neither trained nor kept in the state
        self.vector = nn.Parameter(editor.tasks.vectors.weight.detach().mean(0))

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **options: Any) -> Any:
        """The U-Net's own output."""
        (editor,) = self.editor
        time, token = editor.tasks(self.vector.expand(len(sample), -1))
        text = torch.cat([encoder_hidden_states, token.to(encoder_hidden_states)], dim=1)
        return editor.unet(sample, timestep, text, class_labels=time, **options)


class TaskInversionRecipe(EmuEditRecipe):
    """Emu Edit's, in which nothing but a vector changes."""

    def build(self, unet: UNet2DConditionModel) -> nn.Module:
        """The vector, which begins as the mean of the known ones."""
        editor: Any = super().build(unet)
        name = self._name
        if name in self.tasks:
            raise TrainingError(f"the model has a task {name!r}: choose another --name")
        return OneTask(editor.requires_grad_(False))

    @property
    def _name(self) -> str:
        return cast("Config", self.config).name

    def samples(self) -> Dataset[dict[str, Any]]:
        """Edits of the new task; whatever task a row names is passed over."""
        return InstructPix2PixRecipe.samples(self)

    def export(self, model: nn.Module, folder: Path) -> None:
        """`NAME.safetensors`, for `wordbrush edit --task-file`."""
        learned: Any = model
        save_vector(learned.vector, self._name, folder / f"{self._name}.safetensors")

    def whole(self) -> nn.Module:
        """The vector, and the editor that is frozen."""
        (editor,) = cast("OneTask", self.model).editor
        found = OneTask(editor)
        found.add_module("frozen", editor)
        return found

    def example(self) -> dict[str, Any]:
        """The model's inputs for one process's batch, on the "meta" device."""
        return InstructPix2PixRecipe.example(self)


def main(config: Config) -> None:
    """Learns, or goes on learning, the task."""
    instruct_pix2pix.run(config, TaskInversionRecipe)
