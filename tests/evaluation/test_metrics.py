import json
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from wordbrush.evaluation.metrics import MAX_PSNR, Mean, l1, l2, psnr, resamples, ssim


def test_l1_and_psnr_by_hand():
    one, other = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.2)
    assert l1(one, other) == pytest.approx([0.1, 0.1])
    assert psnr(one, other) == pytest.approx([20.0, 20.0], abs=1e-3)
    assert psnr(one, one) == [MAX_PSNR] * 2 and l1(one, one) == [0.0, 0.0]


def test_psnr_is_that_of_torchmetrics():
    one, other = torch.rand(2, 4, 3, 12, 10, generator=torch.Generator().manual_seed(0)) * 2 - 1
    options: Any = {"data_range": 2.0, "reduction": "none", "dim": (1, 2, 3)}
    assert psnr(one, other) == pytest.approx(
        peak_signal_noise_ratio(one, other, **options).tolist(), abs=1e-4
    )


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


def test_l2_and_ssim_by_hand():
    one, other = torch.zeros(2, 3, 16, 16), torch.full((2, 3, 16, 16), 0.2)
    assert l2(one, other) == pytest.approx([0.01, 0.01])
    assert ssim(one, one) == pytest.approx([1.0, 1.0])
    # Of constant pictures only the means differ: (2 a b + c) / (a^2 + b^2 + c), of values with range 2.
    c = (0.01 * 2) ** 2
    assert ssim(one, other) == pytest.approx([c / (0.2**2 + c)] * 2, rel=1e-3)


def test_ssim_does_not_depend_on_the_rest_of_the_batch():
    pictures = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    other = pictures.flip(0)
    assert ssim(pictures, other) == pytest.approx(
        [ssim(pictures[k : k + 1], other[k : k + 1])[0] for k in range(3)]
    )


def test_resamples_are_seeded_draws_of_all():
    draws = resamples(50)
    assert draws.shape == (1000, 50) and (draws == resamples(50)).all()
    assert draws.min() == 0 and draws.max() == 49
    assert np.bincount(draws.ravel()).std() < 100
