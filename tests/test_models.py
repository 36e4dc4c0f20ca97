import shutil
from pathlib import Path

import pytest

import wordbrush
from wordbrush import models
from wordbrush.errors import ModelError


def test_folders_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    assert models.resolve(tmp_path) == tmp_path
    assert models.resolve(str(file)) == file
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.resolve("~/model.safetensors") == file


@pytest.mark.parametrize("name", ["", "nosuch", "/no/such/path", "no/such/path", Path("no/such")])
def test_an_unknown_model(name: str | Path) -> None:
    with pytest.raises(ModelError, match="not an embedded one .storybook.*, a folder, a file or a hub id"):
        models.resolve(name)


def test_a_hub_id_without_network_or_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="'no/such'.* not in the hub's cache, and not downloaded") as caught:
        models.resolve("no/such")
    assert "\n" not in str(caught.value)


def test_a_checkpoints_own_settings_stand_behind_those_given(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "wordbrush.json").write_text('{"instruct-pix2pix": {"text_scale": 3, "steps": 2}}')
    editor = wordbrush.load(folder, steps=4)
    assert vars(editor.settings)["text_scale"] == 3 and vars(editor.settings)["steps"] == 4
    assert vars(editor.settings)["image_scale"] == 1.5
    assert models.own_settings(folder, "sdedit") == {} == models.own_settings(tiny_checkpoint, "sdedit")
    (folder / "wordbrush.json").write_text("[1]")
    with pytest.raises(ModelError, match="damaged"):
        models.own_settings(folder, "instruct-pix2pix")
