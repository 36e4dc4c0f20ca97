"""In which order the rows of a data set are trained on, and at which size: a pure function of the seed.

Each pass shuffles the blocks, and the rows of some blocks together, so that a reader needs few blocks at a
time wherever it starts. Sample i of a run is row i of the passes joined: to go on, nothing is replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from diffusers.training_utils import generate_aspect_ratio_buckets

WINDOW = 8
"""Blocks whose rows are shuffled together."""

Rows = np.ndarray[Any, np.dtype[np.int64]]
Weights = np.ndarray[Any, np.dtype[np.float64]]
Shape = tuple[int, int]
"""Height and width, pixels."""


class Order:
    """Sample -> row.

    Args:
        counts: Rows of each block.
        seed: Of the shuffling.
        groups: (n,) of each row, if batches may hold rows of one group only.
        batch_size: Of these batches.
        weights: (n,) how often each row comes in a pass, up to a factor: a pass has as many samples as there
            are rows, whatever the weights. Not together with groups.
    """

    def __init__(
        self,
        counts: Sequence[int],
        seed: int,
        *,
        groups: Rows | None = None,
        batch_size: int = 1,
        weights: Weights | None = None,
    ) -> None:
        self.starts: Rows = np.cumsum([0, *counts])
        self.seed, self.groups, self.batch_size, self.weights = seed, groups, batch_size, weights
        self._last: tuple[int, Rows] | None = None

    def __len__(self) -> int:
        """Rows of the data set."""
        return int(self.starts[-1])

    @cached_property
    def samples_per_pass(self) -> int:
        """As many as there are rows; with groups, some twice, so that the last batch of each is full."""
        if self.groups is None:
            return len(self)
        sizes = np.unique(self.groups, return_counts=True)[1]
        return int((-(-sizes // self.batch_size) * self.batch_size).sum())

    def row(self, sample: int) -> int:
        """The row of a sample."""
        number, place = divmod(sample, self.samples_per_pass)
        return int(self._pass(number)[place])

    def place(self, row: int) -> tuple[int, int]:
        """The block of a row, and its place there."""
        block = int(np.searchsorted(self.starts, row, side="right")) - 1
        return block, row - int(self.starts[block])

    def _pass(self, number: int) -> Rows:
        if self._last is None or self._last[0] != number:
            rows = self._shuffled(np.random.default_rng((7, self.seed, number)))
            self._last = number, rows if self.groups is None else self._batched(rows, self.groups[rows])
        return self._last[1]

    def _shuffled(self, rng: np.random.Generator) -> Rows:
        blocks = rng.permutation(len(self.starts) - 1)
        windows = [blocks[i : i + WINDOW] for i in range(0, len(blocks), WINDOW)]
        ranges = [
            [np.arange(int(self.starts[b]), int(self.starts[b + 1])) for b in window] for window in windows
        ]
        times = self._times(rng)
        rows = [np.concatenate(window) for window in ranges]
        return np.concatenate([rng.permutation(np.repeat(part, times[part])) for part in rows])

    def _times(self, rng: np.random.Generator) -> Rows:
        """How often each row comes in this pass: its weight's share of them, rounded up or down by chance."""
        count = len(self)
        if self.weights is None:
            return np.ones(count, dtype=np.int64)
        ends = self.weights.cumsum()
        marks = np.floor(ends / ends[-1] * count + rng.random()).clip(max=count)
        return np.diff(marks, prepend=0).astype(np.int64)

    def _batched(self, rows: Rows, groups: Rows) -> Rows:
        """Whole batches of each group, in the order of their first rows; the last are filled up."""
        batches: list[tuple[int, Rows]] = []
        for group in np.unique(groups):
            (places,) = np.nonzero(groups == group)
            full = np.resize(places, (-(-len(places) // self.batch_size), self.batch_size))
            batches += [(int(batch[0]), rows[batch]) for batch in full]
        return np.concatenate([batch for _, batch in sorted(batches, key=lambda item: item[0])])


def bucket_shapes(size: int, multiple: int) -> list[Shape]:
    """Shapes of about size x size pixels, sides multiples of `multiple`; the square comes first."""
    shapes = set(generate_aspect_ratio_buckets(size, divisibility=multiple)) - {(size, size)}
    return [(size, size), *sorted(shapes)]


def nearest_bucket(width: int, height: int, shapes: Sequence[Shape]) -> int:
    """The index of the shape whose aspect is nearest to a picture's."""
    return int(np.argmin([abs(np.log((w / h) / (width / height))) for h, w in shapes]))
