"""How well pictures come back, measured once for each inversion, with the autoencoder as the ceiling."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wordbrush
from wordbrush import EditRequest
from wordbrush.cli import main
from wordbrush.data.rows import Row, encode_png
from wordbrush.data.shards import write_shards

SCALES = ("1", "7.5")


def test_every_inversion_of_every_picture_is_measured_and_a_stopped_run_goes_on(
    tiny_editor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WORDBRUSH_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    noises = [Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)) for _ in range(2)]
    pictures = [noise.resize((32, 32), Image.Resampling.BICUBIC) for noise in noises]
    rows = [
        Row(input_image=encode_png(picture), edit_prompt="x", edited_image=encode_png(picture),
            source_caption=f"a dog {number}", target_caption="a <cat>")
        for number, picture in enumerate(pictures)
    ]  # fmt: skip
    write_shards(tmp_path / "data", "test", rows)
    out = tmp_path / "out"

    def run(*more: str) -> tuple[int, dict[str, Any]]:
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", "inversions", "--model", str(tiny_editor), "--data", str(tmp_path / "data"),
                  "--num", "2", "--text-scales", ",".join(SCALES), "--steps", "3", "--null-text-steps", "5",
                  "--device", "cpu", "--dtype", "float32", "-o", str(out), *more])  # fmt: skip
        assert isinstance(ended.value.code, int)
        return ended.value.code, json.loads((out / "results.json").read_text())

    code, found = run()
    assert code == 0 and list(found["psnr"]) == [
        "DDIM, guidance 1", "DDIM, guidance 7.5", "null texts, guidance 7.5",
        "the autoencoder's round trip (ceiling)",
    ]  # fmt: skip
    settings = {"steps": 3, "text_scale": 7.5, "detail": False, "keep_inversion": False}
    editor = wordbrush.load(tiny_editor, "prompt-to-prompt", device="cpu", dtype="float32", **settings)
    for label, inner in (("DDIM, guidance 7.5", 0), ("null texts, guidance 7.5", 5)):
        wanted: list[float] = []
        for number, picture in enumerate(pictures):
            request = EditRequest(picture, "", f"a dog {number}", f"a dog {number}", seed=0)
            result = editor.with_settings(null_text_steps=inner).edit(request)
            wanted.append(result.intermediates["reconstruction_psnr"][0])
        assert found["psnr"][label]["value"] == pytest.approx(sum(wanted) / 2, abs=0.05)
    assert all(mean["n"] == 2 for mean in found["psnr"].values())
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out and table.count("| null texts, guidance 7.5 | ") == 1
    assert (out / "report.html").read_text().count("<img") == 2 * 5

    whole = (out / "rows.jsonl").read_text().splitlines()
    assert len(whole) == 8
    (out / "rows.jsonl").write_text("".join(f"{line}\n" for line in whole[:5]))
    assert run() == (0, found)
    assert (out / "rows.jsonl").read_text().splitlines() == whole
    monkeypatch.setattr(wordbrush, "load", None)  # a finished one needs no model
    assert run() == (0, found)
    assert run("--null-text-steps", "6")[0] == 2
