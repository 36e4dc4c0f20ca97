"""Curves as SVG, in the manner of the paper's figures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from wordbrush.errors import MissingExtraError
from wordbrush.evaluation.comparison import Comparison
from wordbrush.evaluation.curves import DIRECTION, KEPT, Point
from wordbrush.evaluation.metrics import Mean
from wordbrush.evaluation.sweeps import words

try:
    import matplotlib
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise MissingExtraError("plots", "evaluate") from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    DIRECTION: "CLIP directional similarity",
    KEPT: "CLIP image similarity",
    "clip_sim_1": "CLIP similarity to the caption after",
    "dino_sim": "DINO similarity",
    "l1": "L1",
    "l2": "L2",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "efficientnet_lite0_distance": "EfficientNet-Lite0 distance",
}
"""What a report calls a measure, before the model's name."""

# Okabe and Ito's: told apart by those who do not see all colours, too.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = "osD^vP*"
_BESIDE = 34
"""Letters of a label, of which two fit beside each other above a figure."""
_LEGEND_LINE = 0.17
"""Inches."""
_STYLE: dict[Any, Any] = {
    "font.family": "serif",
    "font.serif": ["Source Serif 4", "Noto Serif", "DejaVu Serif"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.titlesize": 10,
    "svg.hashsalt": "wordbrush",
    "text.parse_math": False,  # a label is a user's text
}


def trade_off(points: Sequence[Point], comparisons: Sequence[Comparison]) -> str:
    """Image similarity against directional similarity, a panel for each size.

    Every point has its intervals both ways and its setting's value; bands are what the comparisons are by.
    """
    scales = list(dict.fromkeys(point.scale for point in points))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.6 if len(scales) == 1 else 8.6, 4.2), layout="constrained")
        panels = figure.subplots(1, len(scales), sharex=True, sharey=True, squeeze=False)[0]
        for axes, scale in zip(panels, scales, strict=True):
            here = [point for point in points if point.scale == scale]
            for number, (curve, own) in enumerate(_by_curve(here).items()):
                _draw_curve(axes, number, curve, own)
                _draw_band(axes, number, curve, [c for c in comparisons if c.scale == scale])
            axes.set_xlabel(LABELS[DIRECTION])
            axes.locator_params(axis="x", nbins=6)
            if len(scales) > 1:
                axes.set_title(f"{here[0].size} px, {'native' if scale == 1 else f'{scale} × native'}")
        panels[0].set_ylabel(LABELS[KEPT])
        panels[0].legend(frameon=False, loc="best", fontsize=9)
        return _svg(figure)


def _draw_curve(axes: Axes, number: int, curve: str, points: Sequence[Point]) -> None:
    x, y = (np.array([point.means[name].value for point in points]) for name in (DIRECTION, KEPT))
    colour = _COLOURS[number % len(_COLOURS)]
    axes.errorbar(
        x, y, _errors(points, KEPT), _errors(points, DIRECTION), label=curve, color=colour, linewidth=1.5,
        marker=_MARKERS[number % len(_MARKERS)], markersize=4.5, elinewidth=0.7, ecolor=(colour, 0.45),
    )  # fmt: skip
    for place, point in {0: points[0], len(points) - 1: points[-1]}.items():
        axes.annotate(
            f"{point.value:g}", (x[place], y[place]), xytext=(5, 5), textcoords="offset points",
            fontsize=8, color=colour,
        )  # fmt: skip


def _errors(points: Sequence[Point], name: str) -> np.ndarray[Any, Any]:
    return _bars([point.means[name] for point in points])


def _bars(means: Sequence[Mean]) -> np.ndarray[Any, Any]:
    """(2, means): below and above them."""
    return np.array([[m.value - m.low for m in means], [m.high - m.value for m in means]]).clip(0)


def _draw_band(axes: Axes, number: int, curve: str, comparisons: Sequence[Comparison]) -> None:
    """That of the comparison over the widest range, where the curve is in several."""
    own = [c for c in comparisons if curve in (c.one, c.other) and len(c.direction)]
    if own:
        widest = max(own, key=lambda c: float(np.ptp(c.direction)))
        band = widest.bands[0 if curve == widest.one else 1]
        colour = _COLOURS[number % len(_COLOURS)]
        axes.fill_between(widest.direction, band[:, 1], band[:, 2], color=colour, alpha=0.13, lw=0)


def against_settings(points: Sequence[Point], measures: Sequence[str]) -> str:
    """Each measure (a row) against the swept setting (a column for each method), at the first size."""
    first = [point for point in points if point.scale == points[0].scale]
    methods = list(dict.fromkeys((point.method, point.setting) for point in first))
    with matplotlib.rc_context(_STYLE):
        size = (1.2 + 3.7 * len(methods), 0.6 + 1.8 * len(measures))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(measures), len(methods), sharex="col", sharey="row", squeeze=False)
        numbers = {curve: number for number, curve in enumerate(_by_curve(first))}
        for column, (method, setting) in enumerate(methods):
            own = [point for point in first if point.method == method]
            for row, measure in enumerate(measures):
                for curve, line in _by_curve(own).items():
                    _draw_measure(grid[row][column], numbers[curve], line, measure)
            grid[-1][column].set_xlabel(words(setting))
            grid[0][column].set_title(method)
        for row, measure in enumerate(measures):
            grid[row][0].set_ylabel(fill(LABELS.get(measure, measure), 18))
        return _svg(figure)


def _draw_measure(axes: Axes, number: int, points: Sequence[Point], measure: str) -> None:
    x = [point.value for point in points]
    colour = _COLOURS[number % len(_COLOURS)]
    axes.errorbar(
        x, [point.means[measure].value for point in points], _errors(points, measure), color=colour,
        marker=_MARKERS[number % len(_MARKERS)], markersize=3.5, linewidth=1.2, elinewidth=0.8,
    )  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A point of `editability`: its label, and what it is measured to be."""

    label: str
    score: Mean
    fidelity: Mean


def editability(curves: Sequence[tuple[str, Sequence[Place]]], references: Sequence[Place], kept: str) -> str:
    """Imagic's plane (2210.09276): closeness to the caption after, against closeness to the picture before.

    Args:
        curves: Labels, and the places that a line joins.
        references: Drawn as stars.
        kept: The label of the second axis.
    """
    with matplotlib.rc_context(_STYLE):
        columns = 2 if max(len(label) for label, _ in curves) <= _BESIDE else 1
        height = 4.3 + _LEGEND_LINE * -(-len(curves) // columns)
        figure = Figure(figsize=(6.4, height), layout="constrained")
        axes = figure.subplots()
        for number, (label, places) in enumerate(curves):
            colour = _COLOURS[number % len(_COLOURS)]
            axes.errorbar(
                [p.score.value for p in places], [p.fidelity.value for p in places],
                _bars([p.fidelity for p in places]), _bars([p.score for p in places]), label=label,
                color=colour, marker=_MARKERS[number % len(_MARKERS)], markersize=4.5, linewidth=1.5,
                elinewidth=0.7, ecolor=(colour, 0.45),
            )  # fmt: skip
            _name(axes, places, colour)
        for place in references:
            axes.plot(place.score.value, place.fidelity.value, "*", color="black", markersize=9)
        _name(axes, references, "black")
        axes.set_xlabel(LABELS["clip_sim_1"])
        axes.set_ylabel(kept)
        figure.legend(frameon=False, loc="outside upper left", fontsize=8, ncols=columns)
        return _svg(figure)


def _name(axes: Axes, places: Sequence[Place], colour: str) -> None:
    for place in places:
        axes.annotate(
            place.label, (place.score.value, place.fidelity.value), xytext=(5, 5),
            textcoords="offset points", fontsize=8, color=colour,
        )  # fmt: skip


def _by_curve(points: Sequence[Point]) -> Mapping[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.curve, []).append(point)
    return found


def _svg(figure: Figure) -> str:
    """Without the XML head, which has no place inside HTML; the same figure gives the same bytes."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
