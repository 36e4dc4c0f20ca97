import json
import math
from pathlib import Path

import pytest
import torch

from tests.data.edits import bare, row, rows
from tests.world import render, sprites  # noqa: F401
from wordbrush.data.rows import DataError, Row, encode_png
from wordbrush.datagen.filters import PREDICATES, Thresholds
from wordbrush.datagen.statistics import Distribution, gather, measure, score
from wordbrush.perception.clip import Clip
from wordbrush.storybook.edits import sample_edit
from wordbrush.storybook.render import Renderer


def test_a_distribution_describes_its_numbers():
    found = Distribution.of([float(i % 5) for i in range(100)])
    assert found is not None
    assert (found.count, found.mean, found.low, found.median, found.high) == (100, 2.0, 0.0, 2.0, 4.0)
    assert found.histogram == [20] * 5 and len(found.edges) == 6
    assert found.bars == "█████"
    assert Distribution.of([]) is Distribution.of([math.nan]) is None
    single = Distribution.of([3.0, math.inf])
    assert single is not None and (single.count, single.median) == (1, 3.0)


def test_rows_units_tasks_and_words_are_counted():
    found = gather([*rows(8), bare(8), bare(9)], Thresholds())
    assert (found.rows, found.units) == (10, 6)
    assert found.tasks == {"local": 2, "add": 2, "remove": 2, "style": 2, "none given": 2}
    assert {name: d.count for name, d in found.words.items()} == {
        "edit_prompt": 10, "source_caption": 8, "target_caption": 5
    }  # fmt: skip
    assert found.words["edit_prompt"].median == 3.0
    assert found.scores["clip_sim_dir"].count == 8


def test_the_funnel_is_of_units():
    data = [row(n, unit="u", clip_sim_1=0.3, clip_sim_dir=0.9 - n / 10) for n in range(8)]
    found = gather([*data, row(8, unit="v", clip_sim_1=0.3, clip_sim_dir=0.3)], Thresholds(clip_sim_dir=0.25))
    assert (found.funnel.drawn, found.funnel.failed["clip_sim_dir"]) == (9, 1)
    assert (found.funnel.surplus, found.funnel.kept) == (3, 5)


def test_json_and_text_hold_the_same_numbers():
    found = gather(rows(20), Thresholds())
    values = json.loads(found.as_json())
    assert values["rows"] == 20 and values["funnel"]["kept"] == found.funnel.kept
    assert values["scores"]["clip_sim_1"]["mean"] == found.scores["clip_sim_1"].mean
    text = found.as_text()
    for name in (*PREDICATES, "local", "edit_prompt", f"{found.funnel.kept:>8}  kept"):
        assert name in text
    assert "filter" not in gather([bare(0)], Thresholds()).as_text()


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip.load("storybook", device=torch.device("cpu"))


def rendered(render: Renderer, count: int) -> list[Row]:  # noqa: F811
    samples = [sample_edit(render, "test", number, operation="replace") for number in range(count)]
    return [
        Row(
            input_image=encode_png(s.before),
            edit_prompt=s.edit.instruction,
            edited_image=encode_png(s.after),
            source_caption=s.edit.source_caption,
            target_caption=s.edit.target_caption,
        )
        for s in samples
    ]


def test_a_clip_is_calibrated_on_pairs_that_are_right(render: Renderer, clip: Clip):  # noqa: F811
    data = rendered(render, 24)
    found = measure([*data, bare(0)], clip, share=0.8, keep=4)
    assert (found.rows, found.funnel.drawn) == (25, 24)
    assert 0.8 * 24 <= found.funnel.kept < 24
    assert found.mismatched_share is not None and found.mismatched_share < 0.4
    assert "mismatched" in found.as_text()
    true, mismatched = score(data, clip)
    assert len(true) == 24 and len(mismatched) == 48
    means = [sum(s.clip_sim_0 for s in scores) / len(scores) for scores in (true, mismatched[:24])]
    assert means[0] > means[1] + 0.1


def test_without_captions_there_is_nothing_to_calibrate(clip: Clip):
    same = row(1, source_caption="a", target_caption="a")
    with pytest.raises(DataError, match="caption"):
        measure([bare(0), same], clip, share=0.9, keep=4)
    with pytest.raises(DataError, match="validate"):
        measure([row(1, input_image=b"junk")], clip, share=0.9, keep=4)


def test_scores_do_not_depend_on_the_order(clip: Clip, tmp_path: Path):
    data = [row(n, target_caption="a cat") for n in range(5)]
    forward, backward = score(data, clip)[0], score(data[::-1], clip)[0][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert one.clip_sim_dir == pytest.approx(other.clip_sim_dir, abs=1e-5)
