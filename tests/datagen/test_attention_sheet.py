"""The sheet that shows what attention control does, on a tiny model."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datagen.engine import save_models
from wordbrush.cli import main
from wordbrush.datagen.attention_sheet import draw_attention
from wordbrush.datagen.painting import Draw, Painter, PairSettings

CELL, GAP, LINE = 256, 8, 16


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


def cell(sheet: Image.Image, row: int, column: int, lines: int = 2) -> np.ndarray:
    left, top = GAP + column * (CELL + GAP), GAP + row * (CELL + lines * LINE + GAP) + lines * LINE
    return np.asarray(sheet.crop((left, top, left + CELL, top + CELL)), np.int16)


def test_rows_of_pairs_and_of_words(models: dict[str, str]):
    painter = Painter.load(PairSettings(**models, scheduler="dpm++", steps=4, device="cpu", dtype="float32"))
    draws = [Draw(0, 0.0, 3.0), Draw(1, 1.0, 3.0)]
    sheet = draw_attention(painter, "a dog", "a dog in the snow", draws)
    assert sheet.width == GAP + 5 * (CELL + GAP)  # the second caption has five words
    assert sheet.height == GAP + 4 * (CELL + 2 * LINE + GAP)
    first, free, shared, controlled = (cell(sheet, 0, column) for column in range(4))
    assert (free == shared).all()  # p is 0
    assert (first != free).any() and (free != controlled).any()
    assert (cell(sheet, 1, 1) != cell(sheet, 1, 2)).any()  # p is 1
    assert (cell(sheet, 2, 0)[..., 0] >= cell(sheet, 2, 0)[..., 2]).all()  # grey, or reddened
    assert (cell(sheet, 2, 0) != cell(sheet, 2, 1)).any()


def test_the_command(models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["data", "attention", "a dog", "a cat", "-o", str(tmp_path / "sheet.png")]
    command += ["--model", models["model"], "--steps", "2", "--num", "1", "--guidance", "2"]
    with pytest.raises(SystemExit) as first:
        main(command)
    assert first.value.code == 0 and capsys.readouterr().out.strip() == str(tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").height == GAP + 3 * (CELL + 2 * LINE + GAP)
    with pytest.raises(SystemExit) as second:
        main(command)
    assert second.value.code == 2 and "--force" in capsys.readouterr().err
