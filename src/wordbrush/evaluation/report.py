"""Results as a table to read and a grid to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

_LINE = 12
_GAP = 6
_SYSTEMS = {
    "edited": "the editor",
    "unedited": "unedited input (floor)",
    "round_trip": "exact target through the autoencoder (ceiling)",
    "target": "exact target (the recogniser's own errors)",
}
_GROUPS = {"all": "all", "held_out": "held-out pairs", "seen": "seen pairs"}
_DISTANCES = ("L1", "PSNR, dB", "EfficientNet-Lite0 distance")
APART = frozenset({"move", "swap", "count"})
"""Operations that the summary leaves out; each has its own row."""

_MEMBERS = ("autoencoder", "clip", "text-to-image", "editor", "recogniser")
"""What names of training runs begin with."""
_SPENT = ("steps", "samples", "minutes")


def to_json(found: Mapping[str, Any]) -> str:
    """The results, indented."""
    return json.dumps(found, indent=1) + "\n"


def to_markdown(found: Mapping[str, Any]) -> str:
    """The results of `evaluation.storybook.evaluate` as tables; intervals are bootstrap 95 %."""
    parts = [
        f"# {found['model']}: {found['edits_per_operation']} held-out edits of each operation",
        "Means over all operations but move, swap and count, with 95 % intervals.",
        _edit_table(_SYSTEMS, {name: found["edits"][name]["all"] for name in _SYSTEMS}),
        "The editor, by (object, place) pairs:",
        _edit_table(_GROUPS, {name: found["edits"]["edited"][name] for name in _GROUPS}),
        "The editor, by operation (* apart from the means):",
        _operation_table(found["edits"]["edited"]),
        *_photographs(found.get("photographs")),
        "The recogniser on held-out renders:",
        _mean_table("attribute", found["recogniser"], percent=True),
        *_base_models(found),
        *_training(found.get("training")),
    ]
    return "\n\n".join(parts) + "\n"


def to_table(found: Mapping[str, Any]) -> str:
    """The main table of `to_markdown`, and by which command it was made: for a page that shows no more."""
    edited, model = found["edits"]["edited"], found["model"]
    rows = [
        ("all but those with *", edited["all"]),
        ("of these, pairs of thing and place that training never had", edited["held_out"]),
        *((f"{name} *" if name in APART else name, edited[name]) for name in edited if name not in _GROUPS),
        *((_SYSTEMS[name], found["edits"][name]["all"]) for name in ("unedited", "target")),
    ]
    command = f"wordbrush evaluate storybook --num {found['edits_per_operation']}"
    command += "" if model == "storybook" else f" --model {model}"
    table = markdown_table(("held-out edits", "n", "made", "kept"), [_shares(*row) for row in rows])
    return f"{table}\n\nMeans with bootstrap 95 % intervals, by `{command}`.\n"


def _shares(label: str, means: Mapping[str, Any]) -> list[str]:
    """The columns that a row of every table of edits begins with."""
    count = str(means["made"]["n"]) if means["made"] else "0"
    return [label, count, *(_percent(means[name]) for name in ("made", "kept"))]


def _edit_table(labels: Mapping[str, str], rows: Mapping[str, Mapping[str, Any]]) -> str:
    head = ("", "edits", "made", "kept", *_DISTANCES)
    return markdown_table(head, [_edit_row(label, rows[name]) for name, label in labels.items()])


def _operation_table(groups: Mapping[str, Any]) -> str:
    names = [name for name in groups if name not in _GROUPS]
    return _edit_table({name: f"{name} *" if name in APART else name for name in names}, groups)


def _edit_row(label: str, means: Mapping[str, Any]) -> list[str]:
    return [*_shares(label, means), *_distances(means)]


def _distances(means: Mapping[str, Any]) -> list[str]:
    digits = {"l1": 3, "psnr": 1, "efficientnet_lite0_distance": 3}
    return [_number(means[name], places) for name, places in digits.items()]


def _photographs(systems: Mapping[str, Any] | None) -> list[str]:
    if not systems:
        return []
    rows = [
        [f"{operation}: {_SYSTEMS[system]}", *_distances(systems[system][operation])]
        for operation in systems["edited"]
        for system in systems
    ]
    head = ("", *_DISTANCES)
    return ["Photographs of scikit-image, none of them seen in training:", markdown_table(head, rows)]


def _base_models(found: Mapping[str, Any]) -> list[str]:
    parts = ["The autoencoder, PSNR in dB:", _mean_table("on", found["autoencoder"], percent=False)]
    if found.get("clip_recall_at_1_of_64"):
        parts.append(f"CLIP recall@1 of 64: {_percent(found['clip_recall_at_1_of_64'])}")
    if found.get("text_to_image"):
        parts += ["Text-to-image, as captioned:", _mean_table("what", found["text_to_image"], percent=True)]
    if found.get("instruction_writer"):
        share = _percent(found["instruction_writer"])
        parts.append(f"Instruction writer, captions after given edits right to the word: {share}")
    return parts


def _training(budget: Mapping[str, Mapping[str, Any]] | None) -> list[str]:
    if not budget:
        return []
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for name, run in budget.items():
        runs.setdefault(next(m for m in (*_MEMBERS, name) if name.startswith(m)), []).append(run)
    rows = [
        [
            member,
            str(len(found)),
            *(f"{sum(run.get(key, 0) for run in found):,.0f}" for key in _SPENT),
            "; ".join(sorted({run["hardware"] for run in found if "hardware" in run})),
        ]
        for member, found in runs.items()
    ]
    return [
        "Trained for, all runs of each together:",
        markdown_table(("member", "runs", *_SPENT, "hardware"), rows),
    ]


def _mean_table(label: str, means: Mapping[str, Any], *, percent: bool) -> str:
    def show(mean: Any) -> str:
        return _percent(mean) if percent else _number(mean, 1)

    rows = [[name.replace("_", " "), show(mean), str(mean["n"])] for name, mean in means.items() if mean]
    return markdown_table((label, "mean", "n"), rows)


def _percent(mean: Mapping[str, float] | None) -> str:
    if not mean:
        return "-"
    value, low, high = (100 * mean[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} - {high:.1f})"


def _number(mean: Mapping[str, float] | None, digits: int) -> str:
    return f"{mean['value']:.{digits}f}" if mean else "-"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, in Markdown."""
    lines = [[cell.replace("|", r"\|") for cell in line] for line in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw_grid(rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: int = 3) -> Image.Image:
    """Groups of equally large pictures, each group under its text, `columns` groups beside each other."""
    groups = [_group(text, pictures) for text, pictures in rows]
    width, height = groups[0].size
    lines = -(-len(groups) // columns)
    grid = Image.new("RGB", (columns * (width + 2 * _GAP), lines * (height + _GAP)), "white")
    for number, group in enumerate(groups):
        line, column = divmod(number, columns)
        grid.paste(group, (column * (width + 2 * _GAP), line * (height + _GAP)))
    return grid


def _group(text: str, pictures: Sequence[Image.Image]) -> Image.Image:
    width, height = pictures[0].size
    group = Image.new("RGB", (len(pictures) * (width + 2), height + _LINE), "white")
    ImageDraw.Draw(group).text((0, 0), text, fill="black")
    for number, picture in enumerate(pictures):
        group.paste(picture, (number * (width + 2), _LINE))
    return group
