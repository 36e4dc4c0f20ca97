"""Tiny random editors that take a task."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from wordbrush.diffusion.task_embedding import TaskEmbedding
from wordbrush.tasks import TASKS
from wordbrush.training.task_predictor import Config, TaskPredictorRecipe


def teach(folder: Path) -> Path:
    """Make an editor's folder one with task embeddings that matter, and an untrained predictor."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    tasks = TaskEmbedding.for_unet(unet, list(TASKS))
    torch.nn.init.normal_(tasks.to_time.weight)
    tasks.save_pretrained(folder / "task_embedding")
    recipe = TaskPredictorRecipe(Config(output=folder, width=32, layers=1, vocabulary=320))
    recipe.export(recipe.model, folder / "task_predictor")
    return folder
