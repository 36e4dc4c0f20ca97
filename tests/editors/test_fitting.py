"""Which methods a checkpoint can run."""

from pathlib import Path

import pytest

from tests import tiny
from wordbrush.editors.fitting import fitting_methods
from wordbrush.errors import ModelError


def names(model: str | Path) -> list[str]:
    return [method.name for method in fitting_methods(model)]


def test_the_embedded_model_runs_them_all():
    assert names("storybook") == [
        "instruct-pix2pix",
        "emu-edit",
        "sdedit",
        "prompt-to-prompt",
        "diffedit",
        "imagic",
        "text2live",
    ]


def test_an_editor_has_no_use_for_captions(tiny_checkpoint: Path):
    assert names(tiny_checkpoint) == ["instruct-pix2pix"]


def test_a_text_to_image_model_follows_no_instructions(tmp_path: Path):
    tiny.pipeline(in_channels=4).save_pretrained(tmp_path)
    assert names(tmp_path) == ["sdedit", "prompt-to-prompt", "diffedit", "imagic"]


def test_a_damaged_checkpoint_runs_nothing(tmp_path: Path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("[")
    assert names(tmp_path) == []
    with pytest.raises(ModelError):
        names("nothing-of-this-name")
