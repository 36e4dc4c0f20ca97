from pathlib import Path

import pytest
import torch
from torch.utils.data import default_collate

from tests.world import make_small_shards
from wordbrush.errors import WordbrushError
from wordbrush.storybook.dataset import make
from wordbrush.storybook.recogniser import ITEM_LABELS, PICTURE_LABELS, Recogniser
from wordbrush.storybook.sprites import SpriteLibrary
from wordbrush.training.recogniser import Config, RecogniserRecipe, main

TINY = [16, 16, 32, 32]  # a few channels fewer, and torch 2.13 on a CPU corrupts memory going backward


@pytest.fixture(scope="module")
def data(sprites: SpriteLibrary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edits")
    with pytest.MonkeyPatch.context() as patch:
        make_small_shards(patch, sprites, 8)
        make(folder, 8)
    return folder


def settings(data: Path, output: Path, **changes: object) -> Config:
    options = {"data": data, "output": output, "steps": 2, "batch_size": 4, "item_widths": TINY}
    return Config(**(options | {"picture_widths": TINY} | changes))  # pyright: ignore


def test_samples_repeat_and_carry_labels_of_the_catalogue(data: Path, tmp_path: Path):
    samples = RecogniserRecipe(settings(data, tmp_path)).samples()
    for index in range(40):
        one, again = samples[index], samples[index]
        assert one["pixels"].shape == (3, 128, 128) and (one["pixels"] == again["pixels"]).all()
        for name, values in (ITEM_LABELS | PICTURE_LABELS).items():
            labels = torch.as_tensor(one[name]).flatten()
            assert ((labels == -100) | ((labels >= 0) & (labels < len(values)))).all(), name
        assert set(one["slots"].tolist()) <= set(range(4)) and len(set(one["slots"].tolist())) == 2


def test_the_loss_is_finite_and_every_weight_learns(data: Path, tmp_path: Path):
    recipe = RecogniserRecipe(settings(data, tmp_path))
    batch = default_collate([recipe.samples()[i] for i in range(24)])
    losses = recipe.losses(recipe.model, batch)
    losses["loss"].backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in recipe.model.parameters())


def test_training_writes_a_recogniser_that_loads(data: Path, tmp_path: Path):
    main(settings(data, tmp_path))
    Recogniser.load(tmp_path / "model")


def test_renders_of_another_world_are_refused(data: Path, tmp_path: Path):
    for path in data.iterdir():
        text = path.read_bytes()
        (tmp_path / path.name).write_bytes(
            text if path.suffix == ".npy" else text.replace(b'instruction": "', b'instruction": "x')
        )
    with pytest.raises(WordbrushError, match="render anew"):
        RecogniserRecipe(settings(tmp_path, tmp_path / "out")).samples()[0]
    with pytest.raises(WordbrushError, match="no folder|no rendered edits"):
        RecogniserRecipe(settings(tmp_path / "none", tmp_path / "out"))
