"""The report of `wordbrush evaluate turns`: results.json, table.md and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from wordbrush.evaluation.journal import Journal
from wordbrush.evaluation.kept_pictures import open_jpeg, shown_path
from wordbrush.evaluation.metrics import Mean
from wordbrush.evaluation.page import page, picture_grid, section, table
from wordbrush.evaluation.report import markdown_table, to_json
from wordbrush.evaluation.turns import MARGIN, Plan, Plot
from wordbrush.outputs import write_texts

COLUMNS = {
    "l1": ("L1", 4),
    "psnr": ("PSNR, dB", 1),
    "greatest": ("greatest difference, of 255", 1),
    "held": ("sessions within 1 of 255", 2),
    "made": ("edit made", 2),
}
"""Measure -> its name in tables, and the digits of its values."""
_ABOUT = (
    "Sessions on held-out scenes of the storybook, a turn after the other on what came out before. All but "
    "the last column are of what no turn so far was to touch, against the picture that the session began "
    f"with: what the exact renders differ in, and 1/{round(1 / MARGIN)} of a side around it, is left out. "
    "Edit made is the recogniser's, of the turn itself. Means ± half of the bootstrap 95 % interval over the "
    "sessions."
)


def summarise(plan: Plan, journal: Journal) -> dict[str, list[dict[str, Any]]]:
    """Way -> for each turn, measure -> its mean over the sessions."""
    found: dict[str, list[dict[str, Any]]] = {}
    for way in plan.ways:
        sessions = [row["turns"] for row in journal.rows if row["way"] == way.label]
        found[way.label] = [_means([turns[turn] for turns in sessions]) for turn in range(plan.turns)]
    return found


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    means = {name: Mean.of([row[name] for row in rows if name in row]) for name in COLUMNS}
    return {name: mean.as_json() for name, mean in means.items() if mean}


def to_table(plan: Plan, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """After the first turn, half of them and the last, each way: for a page."""
    chosen = sorted({1, max(1, plan.turns // 2), plan.turns})
    rows = [[way, *_row(turn, turns[turn - 1])] for way, turns in found.items() for turn in chosen]
    return f"{markdown_table(['', *_HEAD], rows)}\n\n{_about(plan)}\n"


_HEAD = ("after turn", *(name for name, _ in COLUMNS.values()))


def _about(plan: Plan) -> str:
    return f"{plan.num} sessions of {plan.turns} turns. {_ABOUT}"


def _row(turn: int, means: Mapping[str, Any]) -> list[str]:
    return [str(turn), *(_cell(means.get(name), digits) for name, (_, digits) in COLUMNS.items())]


def _cell(mean: Mapping[str, Any] | None, digits: int) -> str:
    return Mean(**mean).shown(digits) if mean else ""


def write_report(plan: Plan, plots: Sequence[Plot], journal: Journal, about: Mapping[str, Any]) -> None:
    """Write the three files.

    Args:
        plan: What was measured.
        plots: The first sessions, which are shown.
        journal: With all sessions.
        about: What decided the numbers.

    Raises:
        OutputError: The folder cannot be written.
    """
    found = summarise(plan, journal)
    files = {
        "results.json": to_json({**about, "ways": found}),
        "table.md": to_table(plan, found),
        "report.html": _page(plan, plots, found, journal),
    }
    write_texts(journal.folder, files)


def _page(plan: Plan, plots: Sequence[Plot], found: Mapping[str, Any], journal: Journal) -> str:
    sections = [
        section(way, table(_HEAD, [_row(turn, means) for turn, means in enumerate(turns, 1)]))
        for way, turns in found.items()
    ]
    columns = ["original", *found, "exact"]
    rows: list[tuple[str, list[Image.Image | None]]] = []
    for number, plot in enumerate(plots):
        made = [open_jpeg(shown_path(journal.folder, place, number)) for place in range(len(plan.ways))]
        words = "; ".join(step.edit.instruction for step in plot.steps)
        rows.append((words, [plot.picture, *made, plot.steps[-1].target]))
    grid = picture_grid(columns, rows, 128, f"The first sessions, after {plan.turns} turns.")
    return page("Many turns on one picture", _about(plan), [*sections, section("Pictures", grid)])
