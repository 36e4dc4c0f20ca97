"""The report of `wordbrush evaluate curves`: what the curves say, the figure, the numbers, the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from textwrap import wrap
from typing import Any

from PIL import Image

from wordbrush.evaluation.comparison import DISTANCES, Comparison, Difference, compare_all, differences
from wordbrush.evaluation.curves import (
    DIRECTION,
    KEPT,
    Plan,
    Point,
    measure,
    picture_path,
    points_as_csv,
    results_as_json,
    summarise,
)
from wordbrush.evaluation.judges import Judge
from wordbrush.evaluation.kept_pictures import open_jpeg, save_jpeg
from wordbrush.evaluation.metrics import Mean
from wordbrush.evaluation.page import figure, page, paragraph, picture_grid, section, table
from wordbrush.evaluation.plots import LABELS, against_settings, trade_off
from wordbrush.evaluation.report import markdown_table
from wordbrush.evaluation.sweeps import Line, words
from wordbrush.outputs import write_texts
from wordbrush.progress import Show, silent
from wordbrush.sheet import Cell, draw_sheet

_SIDE = 160
_ON_SHEET = 3
_LABEL = 19
"""Letters that stand over a picture of 128 pixels."""


def run(plan: Plan, judges: Sequence[Judge], folder: Path, show: Show = silent) -> list[str]:
    """Measure what is missing, and write the report.

    These are report.html, results.json, points.csv, table.md, the figures, and pictures.jpg: the first
    examples by every curve.

    Returns:
        What the curves say, a sentence for each pair.
    """
    journal = measure(plan, judges, folder, show)
    points, comparisons = summarise(plan, journal), compare_all(plan, journal)
    about = plan.about(judges)
    drawings = {"trade-off.svg": trade_off(points, [c for c in comparisons if c.measure == KEPT])}
    drawings["settings.svg"] = against_settings(points, _drawn_measures(points))
    sentences = list(dict.fromkeys(conclude(comparison) for comparison in comparisons))
    written = {
        "results.json": results_as_json(about, points, [comparison.as_json() for comparison in comparisons]),
        "points.csv": points_as_csv(points),
        "table.md": to_table(plan, points, differences(plan, journal), sentences),
        "report.html": _report(plan, about, points, sentences, list(drawings.values()), folder),
        **drawings,
    }
    write_texts(folder, written)
    if plan.num_pictures:
        save_jpeg(draw_sheet(_sheet_rows(plan, points, folder)), folder / "pictures.jpg", quality=75)
    return sentences


def conclude(comparison: Comparison) -> str:
    """What a comparison says, in one sentence, whichever way it came out."""
    c = comparison
    measure = f"{'1 - ' if c.measure in DISTANCES else ''}{LABELS[c.measure]}"
    size = "the native size" if c.scale == 1 else f"{c.scale} × the native size"
    if not len(c.direction):
        return (
            f"At {size}, {c.one} and {c.other} have no directional similarity in common: their curves cannot "
            "be compared at equal edits."
        )
    where = f"the directional similarities that both reach ({c.direction[0]:.3f} to {c.direction[-1]:.3f})"
    shares = [(word, share) for word, share in (("more", c.above), ("less", c.below)) if share]
    clear = " and ".join(f"{word} of the picture than {c.other} on {share:.0%}" for word, share in shares)
    if clear:
        verdict = f"{c.one} keeps {clear} of {where}, elsewhere the 95 % intervals overlap"
    else:
        verdict = f"the 95 % intervals of {c.one} and {c.other} overlap everywhere on {where}"
    return f"By {measure}, at {size}, {verdict}; mean difference {float(c.gain[:, 0].mean()):+.3f}."


def to_table(
    plan: Plan, points: Sequence[Point], paired: Sequence[Difference], sentences: Sequence[str]
) -> str:
    """Every point, and what the curves say: for a page that shows no more."""
    curves: dict[tuple[str, int], list[Point]] = {}
    for point in points:
        curves.setdefault((point.curve, point.size), []).append(point)
    names = [name for name in (DIRECTION, KEPT, *DISTANCES) if name in points[0].means]
    head = ["curve", "size", "setting", *(LABELS[name] for name in names)]
    rows = [
        [curve, f"{size} px", f"{words(p.setting)} {p.value:g}", *(_cell(p, name) for name in names)]
        for (curve, size), own in curves.items()
        for p in own
    ]
    note = f"Means over {points[0].means[KEPT].n:,} edits, ± half of the bootstrap 95 % interval."
    parts = [markdown_table(head, rows), note]
    if paired:
        head = [f"{plan.lines[0].label} less", "setting", *(LABELS[name] for name in names)]
        setting = words(plan.lines[0].sweep.setting)
        rows = [
            [d.other, f"{setting} {d.value:g}", *(_signed(d.means.get(name)) for name in names)]
            for d in paired
            if d.scale == plan.scales[0]
        ]
        parts += [markdown_table(head, rows), "Differences at the same setting, edit by edit, likewise."]
    return "\n\n".join([*parts, *sentences]) + "\n"


def _signed(mean: Mean | None) -> str:
    return mean.shown(signed=True) if mean else "–"


def _drawn_measures(points: Sequence[Point]) -> list[str]:
    distance = next((n for n in (*DISTANCES, "l1") if n in points[0].means), None)
    return [KEPT, DIRECTION, *([distance] if distance else [])]


def _report(
    plan: Plan,
    about: Mapping[str, Any],
    points: Sequence[Point],
    sentences: Sequence[str],
    drawings: Sequence[str],
    folder: Path,
) -> str:
    clip = next(judge["name"] for judge in about["judges"] if "inputs" in judge)
    swept = ", ".join(sorted({f"{p.method} by its {words(p.setting)}" for p in points}))
    abstract = (
        f"{len(plan.examples):,} edits, each made by every editor under every setting with the same seed. "
        f"Swept: {swept}. CLIP: {clip}."
    )
    captions = (
        "How much of the picture is kept against how far the edit goes as its captions do; up and to the "
        "right is better. Bars are bootstrap 95 % intervals, bands those of the curves compared. Small "
        "numbers are the setting's values at both ends.",
        "The same and a distance to the picture before the edit, against each method's setting.",
    )
    figures = [figure(svg, caption) for svg, caption in zip(drawings, captions, strict=True)]
    return page(
        "What is kept, against how far the edit goes",
        abstract,
        [
            section("What the curves say", *(paragraph(text) for text in sentences or ["One curve only."])),
            section("Figure", *figures),
            section("Numbers", *_tables(points)),
            section("Pictures", *_pictures(plan, points, folder)),
            section("Made with", _provenance(about)),
        ],
    )


def _tables(points: Sequence[Point]) -> list[str]:
    names = [name for name in LABELS if name in points[0].means]
    found: list[str] = []
    for key in dict.fromkeys((point.curve, point.size) for point in points):
        own = [point for point in points if (point.curve, point.size) == key]
        head = [words(own[0].setting), *(LABELS[name] for name in names)]
        rows = [[f"{p.value:g}", *(_cell(p, name) for name in names)] for p in own]
        found.append(table(head, rows, f"{key[0]}, {key[1]} px: means over {own[0].means[KEPT].n:,} edits."))
    return found


def _cell(point: Point, name: str) -> str:
    mean = point.means.get(name)
    if mean is None:
        return "–"
    return mean.shown(1 if name == "psnr" else 3)


def _pictures(plan: Plan, points: Sequence[Point], folder: Path) -> list[str]:
    """A grid for each curve and size: an example a row, before and then every setting."""
    found: list[str] = []
    for line, scale in product(plan.lines, plan.scales):
        size = _size(points, line, scale)
        rows: list[tuple[str, list[Image.Image | None]]] = [
            (example.instruction, [example.open(size), *_after(plan, folder, line, scale, k)])
            for k, example in enumerate(plan.examples[: plan.num_pictures])
        ]
        columns = ["before", *(f"{value:g}" for value in line.sweep.values)]
        caption = f"{line.label} at {size} px, by its {words(line.sweep.setting)}."
        found.append(picture_grid(columns, rows, _SIDE, caption))
    return found


def _sheet_rows(plan: Plan, points: Sequence[Point], folder: Path) -> list[list[Cell]]:
    """Of the first examples a row for each curve, at the first size: before and then every setting."""
    rows: list[list[Cell]] = []
    scale = plan.scales[0]
    for (k, example), line in product(
        enumerate(plan.examples[: min(_ON_SHEET, plan.num_pictures)]), plan.lines
    ):
        after = _after(plan, folder, line, scale, k)
        labels = [f"{words(line.sweep.setting)} {value:g}" for value in line.sweep.values]
        labels = ["\n".join(wrap(text, _LABEL)) for text in (f"{line.label}, {labels[0]}", *labels[1:])]
        cells = [Cell(picture, text) for picture, text in zip(after, labels, strict=True)]
        before = example.open(_size(points, line, scale))
        rows.append([Cell(before, "\n".join(wrap(example.instruction, _LABEL))), *cells])
    return rows


def _size(points: Sequence[Point], line: Line, scale: int) -> int:
    return next(p.size for p in points if p.curve == line.label and p.scale == scale)


def _after(plan: Plan, folder: Path, line: Line, scale: int, example: int) -> list[Image.Image]:
    number = plan.lines.index(line)
    return [open_jpeg(picture_path(folder, number, scale, value, example)) for value in line.sweep.values]


def _provenance(about: Mapping[str, Any]) -> str:
    models = {curve["model"]["name"]: curve["model"] for curve in about["curves"]}
    rows = [["model", *_named(model)] for model in models.values()]
    rows += [["judge", *_named(judge)] for judge in about["judges"]]
    rows.append(["examples", str(about["examples"]["num"]), about["examples"]["sha256"][:16]])
    return table(["", "name", "revision or SHA-256"], rows)


def _named(identity: Mapping[str, Any]) -> tuple[str, str]:
    rest = [f"{key} {value}" for key, value in identity.items() if key not in ("name", "revision", "sha256")]
    known = identity.get("revision") or identity.get("sha256", "")[:16]
    return str(identity["name"]), ", ".join(filter(None, [known, *rest]))
