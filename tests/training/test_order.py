"""The order of samples: passes, windows, buckets."""

from itertools import pairwise

import numpy as np
import pytest

from wordbrush.training.order import WINDOW, Order, bucket_shapes, nearest_bucket

COUNTS = [3, 5, 1, 4, 2] * 6


def test_each_pass_has_every_row_once_and_an_order_of_its_own():
    order = Order(COUNTS, seed=0)
    n = len(order)
    passes = [[order.row(sample) for sample in range(k * n, (k + 1) * n)] for k in range(3)]
    assert all(sorted(rows) == list(range(n)) for rows in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]
    assert passes[0] != [Order(COUNTS, seed=1).row(sample) for sample in range(n)]


def test_a_sample_does_not_depend_on_those_before_it():
    n = sum(COUNTS)
    order = Order(COUNTS, seed=0)
    assert [order.row(i) for i in range(2 * n)] == [Order(COUNTS, seed=0).row(i) for i in range(2 * n)]


def test_a_reader_needs_few_blocks_at_a_time():
    order = Order(COUNTS, seed=0)
    blocks = [order.place(order.row(sample))[0] for sample in range(len(order))]
    last = {block: sample for sample, block in enumerate(blocks)}
    first = {block: sample for sample, block in reversed(list(enumerate(blocks)))}
    most = max(sum(first[b] <= sample <= last[b] for b in last) for sample in range(len(order)))
    assert most <= WINDOW and any(a != b for a, b in pairwise(blocks))


def test_a_place_is_a_row():
    order = Order(COUNTS, seed=0)
    places = [order.place(row) for row in range(len(order))]
    assert places == [(b, i) for b, count in enumerate(COUNTS) for i in range(count)]


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_batches_hold_one_group_and_no_row_is_left_out(batch_size: int):
    groups = np.random.default_rng(0).choice(3, sum(COUNTS), p=[0.7, 0.25, 0.05])
    order = Order(COUNTS, 0, groups=groups, batch_size=batch_size)
    for start in (0, order.samples_per_pass):
        rows = [order.row(start + i) for i in range(order.samples_per_pass)]
        batches = np.array(rows).reshape(-1, batch_size)
        assert all(len(set(groups[batch])) == 1 for batch in batches)
        assert set(rows) == set(range(len(order)))
    assert order.samples_per_pass < len(order) + 3 * batch_size


@pytest.mark.parametrize("seed", range(5))
def test_rows_come_as_often_as_their_weights_say_and_a_pass_stays_as_long(seed: int):
    weights = np.random.default_rng(seed).choice([0.0, 0.3, 1.0, 2.5], sum(COUNTS))
    order = Order(COUNTS, seed, weights=weights)
    n = len(order)
    wanted = weights / weights.sum() * n
    total = np.zeros(n)
    for number in range(40):
        rows = [order.row(sample) for sample in range(number * n, (number + 1) * n)]
        times = np.bincount(rows, minlength=n)
        assert (np.abs(times - wanted) < 1 + 1e-9).all() and times.sum() == n
        total += times
    assert np.abs(total / 40 - wanted).max() < 0.3


def test_equal_weights_leave_every_row_once():
    order = Order(COUNTS, 0, weights=np.full(sum(COUNTS), 0.1))
    assert sorted(order.row(sample) for sample in range(len(order))) == list(range(len(order)))


def test_buckets_have_about_as_many_pixels_as_the_square():
    shapes = bucket_shapes(256, 64)
    assert shapes[0] == (256, 256) and len(set(shapes)) == len(shapes) > 4
    assert all(h % 64 == 0 and w % 64 == 0 and 0.6 < h * w / 256**2 < 1.5 for h, w in shapes)


def test_a_picture_goes_where_least_is_cut_off():
    shapes = [(256, 256), (192, 320), (320, 192)]
    assert [nearest_bucket(*size, shapes) for size in ((500, 500), (1000, 500), (500, 1000))] == [0, 1, 2]
