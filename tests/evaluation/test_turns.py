"""Many turns: the regions are exact, and what a lock keeps is kept to the byte."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wordbrush
from wordbrush.cli import main
from wordbrush.evaluation.metrics import MAX_PSNR
from wordbrush.evaluation.turns import OPERATIONS, Plot, Way, changes, draw_plot, play
from wordbrush.storybook.render import Renderer

TURNS = 4


@pytest.fixture(scope="module")
def plot(render: Renderer) -> Plot:
    return draw_plot(render, 0, TURNS)


def test_exact_turns_leave_what_is_outside_of_their_regions(render: Renderer):
    for number in range(3):
        plot = draw_plot(render, number, TURNS)
        assert {step.edit.operation for step in plot.steps} <= set(OPERATIONS)
        for turn, step in enumerate(plot.steps, 1):
            outside = plot.outside(turn)
            assert 0.2 <= outside.mean() < 1
            assert changes(plot.picture, step.target, outside)["greatest"] <= 2 * turn
            inside = np.asarray(step.region) > 0
            assert (
                changes(plot.steps[turn - 2].target if turn > 1 else plot.picture, step.target, inside)[
                    "greatest"
                ]
                > 2
            )
            if turn > 1:
                assert step.edit.before == plot.steps[turn - 2].edit.after


def test_a_session_is_the_same_whatever_others_are_drawn(render: Renderer, plot: Plot):
    again = draw_plot(render, 0, TURNS)
    assert [step.edit for step in again.steps] == [step.edit for step in plot.steps]
    assert draw_plot(render, 1, TURNS).steps[0].edit != plot.steps[0].edit


def test_changes_are_those_of_the_part():
    before = Image.new("RGB", (8, 8), (100, 100, 100))
    after = before.copy()
    after.putpixel((0, 0), (100, 100, 151))
    left = np.zeros((8, 8), dtype=bool)
    left[:, :4] = True
    found = changes(before, after, left)
    assert found["greatest"] == 51 and found["held"] == 0
    assert found["l1"] == pytest.approx(0.2 / (32 * 3))
    assert found["psnr"] == pytest.approx(-10 * np.log10(0.04 / (32 * 3)))
    assert changes(before, after, ~left) == {"l1": 0, "psnr": MAX_PSNR, "greatest": 0, "held": 1}


def test_a_locked_region_keeps_the_rest_to_the_byte(plot: Plot, tiny_editor: Path):
    editor = wordbrush.load(tiny_editor, device="cpu", dtype="float32", steps=1)
    outside = plot.outside(TURNS)
    free, locked = (play(plot, Way("", locked=lock), editor, seed=0)[-1] for lock in (False, True))
    assert changes(plot.picture, locked, outside)["greatest"] == 0
    assert changes(plot.picture, free, outside)["greatest"] > 1


def test_the_command_measures_and_goes_on(tiny_editor: Path, recogniser: Path, tmp_path: Path):
    out = tmp_path / "out"
    command = ["evaluate", "turns", "--model", str(tiny_editor), "--num", "2", "--turns", "2", "--steps", "1",
               "-o", str(out), "--recogniser", str(recogniser), "--device", "cpu"]  # fmt: skip

    def run() -> Any:
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0
        return json.loads((out / "results.json").read_text())

    found = run()
    lines = (out / "rows.jsonl").read_text().splitlines()
    assert len(lines) == 3 * 2
    assert all(len(turns) == 2 for turns in found["ways"].values())
    locked = found["ways"]["region locked"][1]
    assert locked["greatest"]["value"] == 0 and locked["held"]["value"] == 1
    assert (out / "table.md").read_text().count("| region locked |") == 2
    assert (out / "report.html").read_text().count("<img") == 2 * 5
    (out / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines[:2]))
    assert run() == found
