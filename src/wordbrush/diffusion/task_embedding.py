"""A learned vector for each task, as Emu Edit conditions its U-Net (2311.10089)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wordbrush.errors import ModelError, UsageError, one_line
from wordbrush.models import quiet

PART = "task_embedding"
"""Its folder in a checkpoint."""
ANY = "any"
"""What stands for no task, where an editor of many tasks also learned to follow instructions alone."""


class TaskEmbedding(ModelMixin, ConfigMixin):
    """One vector a task; one projection of it joins the timestep's embedding, another the text's tokens.

    The paper states both ways and no sizes. The first projection starts at zero, so that at first only the
    further token tells a model with it from one without.

    Args:
        task_names: In the order of the vectors.
        width: Of a vector.
        time_width: Of the timestep's embedding.
        text_width: Of a token.
    """

    @register_to_config
    def __init__(self, task_names: Sequence[str], width: int, time_width: int, text_width: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(len(task_names), width)
        self.to_time = nn.Linear(width, time_width)
        self.to_token = nn.Linear(width, text_width)
        nn.init.zeros_(self.to_time.weight)
        nn.init.zeros_(self.to_time.bias)

    @classmethod
    def for_unet(cls, unet: UNet2DConditionModel, task_names: Sequence[str]) -> TaskEmbedding:
        """A new one that fits a U-Net; its vectors are as wide as the text's tokens."""
        width: Any = unet.config["cross_attention_dim"]
        return cls(list(task_names), width, _time_width(unet), width)

    @property
    def names(self) -> list[str]:
        """The tasks."""
        return list(self.config["task_names"])

    def grown(self, names: Sequence[str]) -> TaskEmbedding:
        """With further tasks, whose vectors begin as the mean of the known ones."""
        config = self.config
        larger = TaskEmbedding(
            [*self.names, *names], config["width"], config["time_width"], config["text_width"]
        )
        mean = self.vectors.weight.detach().mean(0, keepdim=True).expand(len(names), -1)
        weights = self.state_dict()
        weights["vectors.weight"] = torch.cat([self.vectors.weight.detach(), mean])
        larger.load_state_dict(weights)
        return larger

    def vector(self, name: str) -> Tensor:
        """(width,): the vector of a task.

        Raises:
            UsageError: There is no such task.
        """
        if name not in self.names:
            raise UsageError(f"this model knows no task {name!r}; one of {', '.join(self.names)}")
        return self.vectors.weight[self.names.index(name)]

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(B, width) -> (B, time_width), added to the timestep's, and a token (B, 1, text_width)."""
        return self.to_time(vectors), self.to_token(vectors)[:, None]


def known_tasks(folder: Path) -> list[str]:
    """The tasks of a checkpoint's folder; none where it holds no task embeddings, or damaged ones."""
    try:
        return list(json.loads((folder / PART / "config.json").read_text(encoding="utf-8"))["task_names"])
    except (OSError, ValueError, TypeError, KeyError):
        return []


def load_task_embedding(folder: Path, unet: UNet2DConditionModel, device: torch.device) -> TaskEmbedding:
    """That of a checkpoint's folder, for use only; its U-Net takes tasks from then on.

    Args:
        folder: The checkpoint's.
        unet: The checkpoint's.
        device: Where the embedding goes.

    Raises:
        ModelError: It is damaged.
    """
    try:
        with quiet():
            found: Any = TaskEmbedding.from_pretrained(folder / PART)
    except Exception as error:  # a stranger's file can raise anything
        raise ModelError(f"{folder / PART} cannot be loaded: {one_line(error)}") from error
    take_task(unet)
    return found.to(device).eval().requires_grad_(False)


def take_task(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Let a stock U-Net add a given vector, its `class_labels`, to the timestep's embedding; in place.

    Its configuration does not say so: a folder of it opens in diffusers' pipelines, which tell it no task.
    """
    width = _time_width(unet)
    unet.class_embedding = nn.Identity(width, width)
    return unet


def _time_width(unet: UNet2DConditionModel) -> int:
    layer: Any = unet.time_embedding
    return int(layer.linear_2.out_features)


def save_vector(vector: Tensor, name: str, path: Path) -> None:
    """Write the vector (width,) of a task that was learned on its own, as a small safetensors file."""
    save_file({name: vector.detach().float().cpu().contiguous()}, path)


def load_vector(path: Path, embedding: TaskEmbedding) -> tuple[str, Tensor]:
    """Name and vector (width,) of such a file.

    Raises:
        ModelError: The file is missing, damaged, or its vector does not fit.
    """
    try:
        found = load_file(path)
    except Exception as error:  # a stranger's file can raise anything
        raise ModelError(f"{path} holds no task ({one_line(error)})") from error
    width = embedding.config["width"]
    if len(found) != 1 or next(iter(found.values())).shape != (width,):
        raise ModelError(f"{path} holds no task of this model: wanted is one vector of {width} numbers")
    return next(iter(found.items()))
