from pathlib import Path

import pytest
import torch

from tests.evaluation import models
from tests.world import render, sprites  # noqa: F401
from wordbrush.storybook.recogniser import Recogniser


@pytest.fixture(scope="session")
def recogniser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny one that has learned nothing."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("recogniser")
    Recogniser((4, 4, 4, 4), (4, 4, 4, 4)).save(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def tiny_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="session")
def tiny_editor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An editor of native size 32 px, with a text-to-image model for SDEdit."""
    return models.save_editor(tmp_path_factory.mktemp("editor"))
