"""`wordbrush train imagic`, and the edit that starts from its folder."""

from pathlib import Path

import pytest
from PIL import Image

from tests import tiny
from wordbrush.cli import main


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    return int(exit_.value.code or 0)


def test_a_picture_is_tuned_and_edited(
    tmp_path: Path, picture: Image.Image, capsys: pytest.CaptureFixture[str]
):
    model = tiny.save("sd1", tmp_path / "model", in_channels=4, vae="tiny")
    photo, tuned, out = tmp_path / "photo.png", tmp_path / "tuned", tmp_path / "out.png"
    picture.save(photo)
    common = ["--model", str(model), "--device", "cpu", "--dtype", "float32", "--size", "32"]
    command = ["train", "imagic", str(photo), "--target", "a sitting dog", "-o", str(tuned), *common,
               "--lora-rank", "2", "--embedding-steps", "2", "--model-steps", "3"]  # fmt: skip
    assert run(*command) == 0
    assert "model: loss" in capsys.readouterr().out
    assert {file.name for file in tuned.iterdir()} == {"tuned.json", "tuned.safetensors"}
    written = (tuned / "tuned.json").stat().st_mtime_ns
    assert run(*command) == 0  # done already
    assert (tuned / "tuned.json").stat().st_mtime_ns == written
    assert run(*command, "--preset", "sd-paper") == 2
    assert "holds another tuning run" in capsys.readouterr().err
    edit = ["edit", str(photo), "--method", "imagic", "--tuned", str(tuned), "--eta", "0.7", "--steps", "2"]
    assert run(*edit, *common, "-o", str(out)) == 0
    assert Image.open(out).size == picture.size
