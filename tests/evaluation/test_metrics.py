import json

import pytest
import torch

from wordbrush.evaluation.metrics import MAX_PSNR, Mean, l1, psnr


def test_l1_and_psnr_by_hand():
    one, other = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.2)
    assert l1(one, other) == pytest.approx([0.1, 0.1])
    assert psnr(one, other) == pytest.approx([20.0, 20.0], abs=1e-3)
    assert psnr(one, one) == [MAX_PSNR] * 2 and l1(one, one) == [0.0, 0.0]


def test_psnr_inside_a_mask_sees_nothing_else():
    one, other = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    other[..., :2] = 0.2
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[..., 0] = True
    assert psnr(one, other, mask) == pytest.approx([20.0], abs=1e-3)
    assert psnr(one, other, ~mask)[0] > 20
    mask[:] = False
    mask[..., 3] = True
    assert psnr(one, other, mask) == [MAX_PSNR]


def test_an_interval_covers_its_mean_and_narrows_with_samples():
    few, many = Mean.of([0.0, 1.0] * 10), Mean.of([0.0, 1.0] * 1000)
    assert few and many and few.value == many.value == 0.5
    assert few.low < 0.5 < few.high and many.high - many.low < few.high - few.low
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.5 / 2000**0.5, rel=0.15)
    assert Mean.of([0.0, 1.0] * 10) == few and few.n == 20
    assert json.dumps(few.as_json())


def test_equal_samples_have_no_spread_and_none_have_no_mean():
    assert Mean.of([0.25] * 5) == Mean(0.25, 0.25, 0.25, 5)
    assert Mean.of([]) is None
