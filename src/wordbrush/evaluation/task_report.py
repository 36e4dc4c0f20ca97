"""The report of `wordbrush evaluate tasks`: results.json, results.md, table.md and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from wordbrush.evaluation.journal import Journal
from wordbrush.evaluation.kept_pictures import open_jpeg, shown_path
from wordbrush.evaluation.metrics import Mean
from wordbrush.evaluation.page import page, paragraph, picture_grid, section, table
from wordbrush.evaluation.report import markdown_table, to_json
from wordbrush.evaluation.task_edits import Drawn, Plan
from wordbrush.outputs import write_texts
from wordbrush.tasks import TASKS

COLUMNS = {
    "clip_sim_dir": "CLIPdir",
    "clip_sim_image": "CLIPim",
    "clip_sim_1": "CLIPout",
    "l1": "L1",
    "dino_sim": "DINO",
    "efficientnet_lite0_distance": "EfficientNet",
    "target_l1": "L1 to the exact result",
    "target_psnr": "PSNR to the exact result, dB",
    "made": "edit made",
    "kept": "rest kept",
    "overlap": "overlap",
    "seen": "scene seen",
    "task_right": "task found",
}
"""Measure -> its name in tables."""
_SHORT = ("clip_sim_dir", "clip_sim_image", "l1", "target_l1", "target_psnr", "made", "kept", "overlap",
          "task_right")  # fmt: skip
"""Those of table.md."""
_GROUPS = ("region", "free-form", "vision")
_ABOUT = (
    "Held-out edits of the storybook, in phrasings that training never uses. CLIPdir, CLIPim, CLIPout, L1, "
    "DINO and EfficientNet compare with the picture before, as Emu Edit does. Edit made, rest kept and scene "
    "seen are the recogniser's; overlap is that of what was marked with what was to be marked. Intervals are "
    "bootstrap ones, of 95 %."
)
Scored = Mapping[str, Any]


def summarise(plan: Plan, journal: Journal) -> dict[str, Any]:
    """Group of edits -> arm -> measure -> mean; and of each arm but the first, how it differs from that.

    Differences are taken edit by edit.
    """
    rows = {(row["arm"], row["edit"]): row for row in journal.rows}
    first, *others = (arm.label for arm in plan.arms)
    found: dict[str, Any] = {}
    for name, numbers in _groups([row for row in journal.rows if row["arm"] == first]).items():
        scores = {
            arm: [rows[arm, number]["scores"] for number in numbers if (arm, number) in rows]
            for arm in (first, *others)
        }
        found[name] = {
            "means": {arm: _means(listed) for arm, listed in scores.items()},
            "differences": {arm: _differences(scores[first], scores[arm]) for arm in others},
        }
    return found


def _groups(rows: Sequence[Scored]) -> dict[str, list[int]]:
    """All, then the groups of tasks, then the tasks -> the numbers of their edits; none that is empty."""
    tasks = dict.fromkeys(row["task"] for row in rows)
    parts = {"all": set(tasks)}
    parts |= {
        group: {task for task in tasks if task in TASKS and TASKS[task].group == group} for group in _GROUPS
    }
    parts |= {task: {task} for task in tasks}
    return {
        name: [row["edit"] for row in rows if row["task"] in part] for name, part in parts.items() if part
    }


def _means(scores: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    means = {name: Mean.of([row[name] for row in scores if name in row]) for name in COLUMNS}
    return {name: mean.as_json() for name, mean in means.items() if mean}


def _differences(
    first: Sequence[Mapping[str, float]], other: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    pairs = zip(first, other, strict=True)
    return _means([{name: b[name] - a[name] for name in a if name in b} for a, b in pairs])


def to_markdown(found: Mapping[str, Any]) -> str:
    """A table of each group."""
    blocks = ["# Edits by task", _ABOUT]
    for name, group in found.items():
        blocks += [f"## {name}", markdown_table(*_table(group))]
    return "\n\n".join(blocks) + "\n"


def to_table(found: Mapping[str, Any]) -> str:
    """What every editor reaches, in all, by groups of tasks and for tasks of no group: for a page.

    Under an editor is how it differs from the first one, edit by edit.
    """
    tasks = [name for name in found if name not in ("all", *_GROUPS)]
    names = [name for name in found if name not in TASKS] if len(tasks) > 1 else tasks
    columns = [
        name for name in _SHORT if any(name in row for g in found.values() for row in g["means"].values())
    ]
    rows: list[list[str]] = []
    for name in names:
        for arm, row in found[name]["means"].items():
            rows.append([name, arm, *(_short(row.get(column)) for column in columns)])
            if differing := found[name]["differences"].get(arm):
                cells = (_short(differing.get(column), signed=True) for column in columns)
                rows.append(["", "against the first", *cells])
    head = ["edits", "editor", *(COLUMNS[column] for column in columns)]
    counts = ", ".join(f"{_count(found[name])} of {name}" for name in names)
    note = f"Means ± half of the bootstrap 95 % interval; edits: {counts}."
    return f"{markdown_table(head, rows)}\n\n{note}\n"


def _count(group: Mapping[str, Any]) -> int:
    return max((mean["n"] for row in group["means"].values() for mean in row.values()), default=0)


def _short(mean: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    return Mean(**mean).shown(signed=signed) if mean else ""


def write_report(plan: Plan, cases: Sequence[Drawn], journal: Journal, about: Mapping[str, Any]) -> None:
    """Write the four files.

    Raises:
        OutputError: The folder cannot be written.
    """
    found = summarise(plan, journal)
    files = {
        "results.json": to_json({**about, "groups": found}),
        "results.md": to_markdown(found),
        "table.md": to_table(found),
        "report.html": _page(plan, cases, found, journal.folder),
    }
    write_texts(journal.folder, files)


def _page(plan: Plan, cases: Sequence[Drawn], found: Mapping[str, Any], folder: Path) -> str:
    sections: list[str] = []
    for name, group in found.items():
        head, rows = _table(group)
        parts = [table(head, rows)]
        if name in TASKS:
            parts = [paragraph(TASKS[name].description.capitalize() + "."), *parts]
        if name in plan.operations.values():
            parts.append(_pictures(plan, cases, name, folder))
        sections.append(section(name, *parts))
    return page("Edits by task", _ABOUT, sections)


def _pictures(plan: Plan, cases: Sequence[Drawn], task: str, folder: Path) -> str:
    columns = ["before", *(arm.label for arm in plan.arms), "exact"]
    rows: list[tuple[str, list[Image.Image | None]]] = []
    for number, drawn in enumerate(cases):
        paths = [shown_path(folder, arm, number) for arm in range(len(plan.arms))]
        if drawn.edit.task == task and all(path.exists() for path in paths):
            made = [open_jpeg(path) for path in paths]
            rows.append((drawn.edit.instruction, [drawn.before, *made, drawn.target]))
    return picture_grid(columns, rows, 128, "The first edits of each operation.")


def _table(group: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    means: Mapping[str, Mapping[str, Any]] = group["means"]
    names = [name for name in COLUMNS if any(name in row for row in means.values())]
    rows = [[arm, *(_cell(row.get(name)) for name in names)] for arm, row in means.items()]
    for arm, row in group["differences"].items():
        rows.append([f"{arm} against the first", *(_cell(row.get(name), signed=True) for name in names)])
    return [f"{_count(group)} edits", *(COLUMNS[name] for name in names)], rows


def _cell(mean: Mapping[str, float] | None, *, signed: bool = False) -> str:
    if mean is None:
        return ""
    value, low, high = (f"{mean[key]:{'+' if signed else ''}.3f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
