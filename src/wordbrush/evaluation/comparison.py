"""Which of two curves keeps more of the picture where their edits go equally far.

What is kept is measured by CLIP, as in the paper, and by a perceptual distance: a CLIP may pass over what
the eye sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import numpy as np

from wordbrush.evaluation.curves import DIRECTION, KEPT, Key, Plan, key_of
from wordbrush.evaluation.journal import Journal
from wordbrush.evaluation.metrics import Mean, resamples
from wordbrush.evaluation.sweeps import Line

DISTANCES = ("lpips", "efficientnet_lite0_distance")
"""Perceptual distances from the picture before, the first that there is: less of one is more that is kept."""
_GRID = 41
"""Places along the common range at which two curves are compared."""

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Comparison:
    """Which of two curves keeps more of the picture at equal directional similarity.

    Attributes:
        one: The label of a curve.
        other: That of the other.
        scale: The working size of both.
        measure: Of what is kept: `KEPT`, or one of `DISTANCES`, which is then taken as 1 - distance.
        direction: (G,) the directional similarities that both curves reach; empty if there are none.
        gain: (G, 3) the kept similarity of `one` over that of `other`: mean, low, high (bootstrap 95 %).
        bands: (2, G, 3) the kept similarity of each, likewise.
    """

    one: str
    other: str
    scale: int
    measure: str
    direction: Array
    gain: Array
    bands: Array

    @property
    def above(self) -> float:
        """Share of the common range where `one` is higher and the two intervals do not overlap."""
        return self._share(self.bands[0, :, 1] > self.bands[1, :, 2])

    @property
    def below(self) -> float:
        """Likewise where it is lower."""
        return self._share(self.bands[0, :, 2] < self.bands[1, :, 1])

    def _share(self, where: np.ndarray[Any, np.dtype[np.bool_]]) -> float:
        return float(where.mean()) if len(where) else 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain values, and the two shares."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays = {k: np.round(v, 5).tolist() for k, v in plain.items() if isinstance(v, np.ndarray)}
        return plain | arrays | {"one_above": self.above, "one_below": self.below}


def compare(
    plan: Plan, journal: Journal, one: Line, other: Line, scale: int, measure: str = KEPT
) -> Comparison:
    """Compare two curves, point by point of their common range.

    Curves are straight between their points. Both are resampled over the same examples, so what makes an
    example hard for both does not widen the interval of the gain.
    """
    table = {key_of(row): row for row in journal.rows}
    draws = resamples(len(plan.examples))
    (x1, y1), (x2, y2) = (_resampled(plan, table, line, scale, measure, draws) for line in (one, other))
    low, high = max(x1[0].min(), x2[0].min()), min(x1[0].max(), x2[0].max())
    grid = np.linspace(low, high, _GRID) if low < high else np.empty(0)
    curves = np.stack([_interpolate(x, y, grid) for x, y in ((x1, y1), (x2, y2))])
    return Comparison(one.label, other.label, scale, measure, grid, _band(curves[0] - curves[1]),
                      np.stack([_band(curve) for curve in curves]))  # fmt: skip


def _resampled(
    plan: Plan,
    table: Mapping[Key, Mapping[str, float]],
    line: Line,
    scale: int,
    measure: str,
    draws: np.ndarray[Any, np.dtype[np.intp]],
) -> tuple[Array, Array]:
    """Means of the two axes, (1 + resamples, values): of all examples first, then of each resample.

    The second grows with what is kept.
    """
    found: list[Array] = []
    for name in (DIRECTION, measure):
        rows = [
            [table[(line.label, scale, value, k)][name] for k in range(len(plan.examples))]
            for value in line.sweep.values
        ]
        values = np.array(rows, dtype=np.float64)
        values = 1 - values if name in DISTANCES else values
        resampled = np.stack([row[draws].mean(1) for row in values], axis=1)
        found.append(np.concatenate([values.mean(1)[None], resampled]))
    return found[0], found[1]


def _interpolate(x: Array, y: Array, grid: Array) -> Array:
    """(R, V) curves at the places of the grid: (R, G); level beyond their ends."""
    order = np.argsort(x, axis=1)
    sorted_x, sorted_y = np.take_along_axis(x, order, 1), np.take_along_axis(y, order, 1)
    return np.stack([np.interp(grid, *curve) for curve in zip(sorted_x, sorted_y, strict=True)])


def _band(curves: Array) -> Array:
    """(1 + resamples, G) -> (G, 3): the value, and the interval of the resamples."""
    low, high = np.percentile(curves[1:], (2.5, 97.5), axis=0)
    return np.stack([curves[0], low, high], axis=1)


@dataclass(frozen=True)
class Difference:
    """The first curve less another one at the same setting, edit by edit.

    Attributes:
        other: The label of the other curve.
        scale: The working size of both.
        value: Of the setting that both sweep.
        means: Measure -> the mean difference (bootstrap 95 %).
    """

    other: str
    scale: int
    value: float
    means: Mapping[str, Mean]


def differences(plan: Plan, journal: Journal) -> list[Difference]:
    """Of the first curve from every other one that has the same sweep."""
    table = {key_of(row): row for row in journal.rows}
    first, *others = plan.lines
    found: list[Difference] = []
    for scale, other in product(plan.scales, others):
        for value in first.sweep.values if other.sweep == first.sweep else ():
            pairs = [
                (table[(first.label, scale, value, k)], table[(other.label, scale, value, k)])
                for k in range(len(plan.examples))
            ]
            names = [name for name in (DIRECTION, KEPT, *DISTANCES) if name in pairs[0][0]]
            means = {name: Mean.of([one[name] - two[name] for one, two in pairs]) for name in names}
            found.append(Difference(other.label, scale, value, {n: m for n, m in means.items() if m}))
    return found


def compare_all(plan: Plan, journal: Journal) -> list[Comparison]:
    """The first curve with each other one, at each size, by CLIP and by a perceptual distance."""
    first, *others = plan.lines
    distance = next((name for name in DISTANCES if name in journal.rows[0]), None)
    return [
        compare(plan, journal, first, other, scale, measure)
        for scale, other, measure in product(plan.scales, others, filter(None, (KEPT, distance)))
    ]
