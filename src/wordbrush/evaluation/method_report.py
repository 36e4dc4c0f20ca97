"""The report of `wordbrush evaluate methods`: results.json, table.md, report.html with its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from wordbrush.evaluation.comparison import DISTANCES
from wordbrush.evaluation.curves import DIRECTION, KEPT
from wordbrush.evaluation.journal import Journal
from wordbrush.evaluation.kept_pictures import open_jpeg, shown_path
from wordbrush.evaluation.method_edits import REFERENCES, Line, Plan, label_of
from wordbrush.evaluation.metrics import Mean
from wordbrush.evaluation.page import figure, page, paragraph, picture_grid, section, table
from wordbrush.evaluation.plots import LABELS, Place, editability
from wordbrush.evaluation.report import markdown_table, to_json
from wordbrush.evaluation.storybook import Case
from wordbrush.outputs import write_texts

SCORE = "clip_sim_1"
_PERCENT = ("made", "kept")
_ABOUT = (
    "Held-out edits of the storybook, asked for as instructions and as captions. Made and kept are the "
    "recogniser's: whether the edit was made, and the share of the rest that is as before. All else compares "
    "with the picture before, by CLIP and by a perceptual distance. Intervals are bootstrap ones, of 95 %."
)
Means = Mapping[str, Mean]


def write_report(plan: Plan, cases: Sequence[Case], journal: Journal, about: Mapping[str, Any]) -> list[str]:
    """Write the files.

    Returns:
        What each curve says, in a sentence.

    Raises:
        OutputError: The folder cannot be written.
    """
    scores = {(row["arm"], row["edit"]): row["scores"] for row in journal.rows}
    labels = [arm.label for arm in plan.arms]
    whole = {label: _means(scores, label, range(len(cases))) for label in (*labels, *REFERENCES)}
    groups = {
        name: [k for k, case in enumerate(cases) if case.edit.operation == name] for name in plan.operations
    }
    parts = {
        name: {label: _means(scores, label, group) for label in labels} for name, group in groups.items()
    }
    names = names_of(plan.lines)
    told = zip(plan.lines, names, strict=True)
    sentences = [sentence for line, name in told if (sentence := conclude(line, name, whole))]
    plain = {label: {name: mean.as_json() for name, mean in means.items()} for label, means in whole.items()}
    curves = [_curve(line, name, whole) for line, name in zip(plan.lines, names, strict=True)]
    drawn = editability(curves, _references(whole), _kept_label(whole))
    files = {
        "results.json": to_json({**about, "means": plain}),
        "table.md": to_table(whole, sentences),
        "editability.svg": drawn,
        "report.html": _page(plan, cases, journal.folder, whole, parts, sentences, drawn),
    }
    write_texts(journal.folder, files)
    return sentences


def _means(
    scores: Mapping[tuple[str, int], Mapping[str, float]], label: str, numbers: Sequence[int]
) -> Means:
    """Measure -> mean; `fidelity` is 1 minus the perceptual distance to the picture before."""
    rows = [scores[label, number] for number in numbers]
    far = next(name for name in DISTANCES if name in rows[0])
    rows = [{**row, "fidelity": 1 - row[far], far: row[far]} for row in rows]
    found = {name: Mean.of([row[name] for row in rows if name in row]) for name in rows[0]}
    return {name: mean for name, mean in found.items() if mean}


def names_of(lines: Sequence[Line]) -> list[str]:
    """Each line's method with those of its settings that tell it from the others of that method."""
    found: list[str] = []
    for line in lines:
        others = [other.arms[0].settings for other in lines if other.method == line.method]
        settings = {
            name: value
            for name, value in line.arms[0].settings.items()
            if name != line.setting and any(other.get(name) != value for other in others)
        }
        found.append(label_of(line.method, settings))
    return found


def conclude(line: Line, name: str, means: Mapping[str, Means]) -> str:
    """Whether the middle of a curve lies between its ends, in both measures; "" where there is no middle."""
    if len(line.arms) < 3:
        return ""
    ends = (line.arms[0], line.arms[len(line.arms) // 2], line.arms[-1])
    words = line.setting.replace("_", " ")
    at = [f"{words} {arm.settings[line.setting]}" for arm in ends]
    parts: list[str] = []
    for measure, what in (
        (SCORE, "the likeness to the caption"),
        ("fidelity", "1 - the distance to the picture"),
    ):
        first, middle, last = (means[arm.label][measure].value for arm in ends)
        lies = "lies" if min(first, last) <= middle <= max(first, last) else "does not lie"
        parts.append(
            f"{what} ({middle:.3f}) {lies} between that at {at[0]} ({first:.3f}) and at {at[2]} ({last:.3f})"
        )
    return f"{name} at {at[1]}: {'; '.join(parts)}."


def to_table(means: Mapping[str, Means], sentences: Sequence[str]) -> str:
    """A row for each arm, and what the curves say."""
    head, rows = _rows(means)
    edits = next(iter(means.values()))["made"].n
    note = f"Means over {edits} held-out edits with bootstrap 95 % intervals."
    return "\n\n".join([markdown_table(head, rows), note, *sentences]) + "\n"


def _rows(means: Mapping[str, Means]) -> tuple[list[str], list[list[str]]]:
    columns = {
        "made": "made", "kept": "kept", SCORE: LABELS[SCORE], "fidelity": _kept_label(means),
        DIRECTION: LABELS[DIRECTION], KEPT: LABELS[KEPT],
    }  # fmt: skip
    rows = [[label, *(_cell(own.get(name), name) for name in columns)] for label, own in means.items()]
    return ["", *columns.values()], rows


def _cell(mean: Mean | None, name: str) -> str:
    if mean is None:
        return "-"
    values = (mean.value, mean.low, mean.high)
    if name in _PERCENT:
        value, low, high = (f"{100 * part:.1f}" for part in values)
        return f"{value} % ({low} - {high})"
    value, low, high = (f"{part:.3f}" for part in values)
    return f"{value} ({low} - {high})"


def _kept_label(means: Mapping[str, Means]) -> str:
    known = next(iter(means.values()))
    return f"1 - {LABELS[next(name for name in DISTANCES if name in known)]}"


def _curve(line: Line, name: str, means: Mapping[str, Means]) -> tuple[str, list[Place]]:
    places = [
        Place(arm.settings.get(line.setting, ""), means[arm.label][SCORE], means[arm.label]["fidelity"])
        for arm in line.arms
    ]
    by = f", by {line.setting.replace('_', ' ')}" if line.setting else ""
    return f"{name}{by}", places


def _references(means: Mapping[str, Means]) -> list[Place]:
    names = ("the picture", "exact target")
    found = [means[label] for label in REFERENCES]
    return [Place(name, own[SCORE], own["fidelity"]) for name, own in zip(names, found, strict=True)]


def _page(
    plan: Plan, cases: Sequence[Case], folder: Path, means: Mapping[str, Means],
    parts: Mapping[str, Mapping[str, Means]], sentences: Sequence[str], drawn: str,
) -> str:  # fmt: skip
    labels = [arm.label for arm in plan.arms]
    by_operation = [
        table(
            ["", *parts],
            [[label, *(_cell(own[label][name], name) for own in parts.values())] for label in labels],
            f"{name.capitalize()}, by operation.",
        )
        for name in _PERCENT
    ]
    caption = (
        "How near the result is to the caption of what was wanted, against how near it stays to the picture; "
        "up and to the right is better. Bars are bootstrap 95 % intervals; stars are the picture itself and "
        "the exact target."
    )
    sections = [
        section("All edits", table(*_rows(means)), *map(paragraph, sentences)),
        section("Figure", figure(drawn, caption)),
        section("By operation", *by_operation),
        section("Pictures", _pictures(plan, cases, folder)),
    ]
    return page("Methods on the same edits", _ABOUT, sections)


def _pictures(plan: Plan, cases: Sequence[Case], folder: Path) -> str:
    rows: list[tuple[str, list[Image.Image | None]]] = []
    for number, case in enumerate(cases):
        paths = [shown_path(folder, arm, number) for arm in range(len(plan.arms))]
        if all(path.exists() for path in paths):
            rows.append((case.edit.instruction, [case.before, *map(open_jpeg, paths), case.target]))
    columns = ["before", *(arm.label for arm in plan.arms), "exact"]
    return picture_grid(columns, rows, 128, "The first edits of each operation.")
