"""The grid over the two guidance scales."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import wordbrush
from wordbrush import EditRequest
from wordbrush.errors import UsageError
from wordbrush.evaluation.guidance_grid import Grid
from wordbrush.evaluation.judges import ClipJudge
from wordbrush.serving.exploring import explore, rank, scales_around


def test_three_values_about_each_scale_and_none_below_nought():
    assert scales_around(7.5, 1.5) == ([4.5, 7.5, 12.0], [1.2, 1.5, 2.1])
    assert scales_around(0, 0.1) == ([0.0], [0.0, 0.1, 0.7])


def test_the_best_follows_and_keeps(picture: Image.Image):
    scores = [
        {"clip_sim_dir": d, "clip_sim_image": k} for d, k in [(0, 1), (0.3, 0.3), (0.25, 0.9), (-0.1, 1)]
    ]
    found = rank(Grid(EditRequest(picture), [1, 2], [3, 4], [picture] * 4, scores))
    assert (found[0].text_scale, found[0].image_scale) == (2, 3)
    assert found[0].label == "text 2, image 3 · followed 0.25, kept 0.90"


def test_nine_edits_of_one_seed(tiny_checkpoint: Path, picture: Image.Image):
    editor = wordbrush.load(tiny_checkpoint, steps=1, dtype="float32")
    judge = ClipJudge.load("storybook", device=torch.device("cpu"))
    told: list[int] = []
    asked = EditRequest(picture, "make it night", seed=3)
    found = explore(editor, asked, [judge], lambda _, done, total: told.append(total))
    assert len(found) == 9 and told == [9] * 9
    assert len({(cell.text_scale, cell.image_scale) for cell in found}) == 9


def test_a_method_without_the_scales_is_refused(picture: Image.Image):
    editor = wordbrush.load("storybook", "sdedit", steps=1)
    with pytest.raises(UsageError, match="image_scale"):
        explore(editor, EditRequest(picture, target_caption="a dog", seed=0), [])
