"""Crops of both pictures together."""

import numpy as np
import torch
from PIL import Image

from tests.training.edits import picture
from wordbrush.training.crops import Crop, draw_crop


def test_both_pictures_are_treated_alike():
    rng = np.random.default_rng(0)
    for _ in range(20):
        crop = draw_crop(rng, size=24, resize_to=30, flip=0.5)
        before, after = crop(picture(0), picture(0), (24, 24))
        assert torch.equal(before, after)


def test_without_enlarging_a_square_is_kept_to_the_pixel():
    square = picture(0, (32, 32))
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)
    assert torch.equal(Crop()(square, square, (32, 32))[0], pixels)
    assert torch.equal(Crop(flip=True)(square, square, (32, 32))[1], pixels.flip(-1))


def test_the_crop_is_filled_whatever_the_shapes():
    for size in ((40, 36), (9, 100), (100, 9), (333, 77)):
        red, other = Image.new("RGB", size, "red"), Image.new("RGB", (50, 50), "blue")
        before, after = Crop(1.1, (0.999, 0.0))(red, other, (24, 40))
        assert before.shape == (3, 24, 40) and (before == torch.tensor([255, 0, 0])[:, None, None]).all()
        assert (after == torch.tensor([0, 0, 255])[:, None, None]).all()


def test_draws_are_the_papers():
    rng = np.random.default_rng(0)
    crops = [draw_crop(rng, size=256, resize_to=288, flip=0.5) for _ in range(5000)]
    sides = np.array([round(crop.enlarge * 256) for crop in crops])
    assert set(sides) == set(range(256, 289)) and abs(sides.mean() - 272) < 1
    assert abs(np.mean([crop.flip for crop in crops]) - 0.5) < 0.03
    assert np.abs(np.mean([crop.place for crop in crops], 0) - 0.5).max() < 0.03


def test_nothing_is_left_to_chance_unless_asked_for():
    rng = np.random.default_rng(0)
    assert {draw_crop(rng, size=8, resize_to=8, flip=0) for _ in range(9)} == {Crop()}
