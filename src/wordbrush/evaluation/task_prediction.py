"""How well a task predictor does: on phrasings that it never saw, on labelled instructions, on I2EBench's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wordbrush.data.labelled import Labelled, of_split, read_labelled, storybook_instruction
from wordbrush.editors.task_predictor import Prediction, TaskPredictor
from wordbrush.errors import WordbrushError, one_line
from wordbrush.evaluation.metrics import Mean
from wordbrush.tasks import TASKS

I2EBENCH: dict[str, frozenset[str]] = {
    "BGReplacement": frozenset({"background"}),
    "ColorAlteration": frozenset({"texture", "local"}),
    "Counting": frozenset({"add", "local"}),
    "Deblurring": frozenset({"color"}),
    "DirectionPerception": frozenset({"add", "local"}),
    "HazeRemoval": frozenset({"global", "color"}),
    "Lowlight": frozenset({"color", "global"}),
    "NoiseRemoval": frozenset({"color"}),
    "ObjectRemoval": frozenset({"remove"}),
    "RainRemoval": frozenset({"global", "remove"}),
    "RegionAccuracy": frozenset({"texture", "local", "remove", "background"}),
    "Replacement": frozenset({"local"}),
    "ShadowRemoval": frozenset({"remove", "color"}),
    "SnowRemoval": frozenset({"global", "remove"}),
    "StyleAlteration": frozenset({"style"}),
    "WatermarkRemoval": frozenset({"text", "remove"}),
}
"""I2EBench's dimensions (2408.14180) -> Emu Edit's tasks that fit; some fit several."""


@dataclass(frozen=True)
class Question:
    """An instruction, the tasks that count as right, and the group that it is reported in."""

    instruction: str
    right: frozenset[str]
    group: str


def read_i2ebench(folder: Path) -> list[Question]:
    """The instructions of I2EBench, original and rephrased, each once.

    Args:
        folder: Its `EditData`: one folder a dimension, of JSON files.

    Raises:
        WordbrushError: The folder does not have this layout.
    """
    found: dict[str, Question] = {}
    for file in sorted(folder.glob("*/*.json")):
        if file.parent.name not in I2EBENCH:
            continue
        try:
            rows: Any = json.loads(file.read_text())
            texts = [row[key] for row in rows.values() for key in ("ori_exp", "div_exp") if row.get(key)]
        except (ValueError, AttributeError, OSError) as error:
            raise WordbrushError(f"{file} is no file of I2EBench ({one_line(error)})") from error
        group = file.parent.name
        found |= {f"{group} {text}": Question(text, I2EBENCH[group], group) for text in texts}
    if not found:
        raise WordbrushError(f"{folder} has no dimension of I2EBench: give its folder EditData")
    return list(found.values())


def collect(files: Sequence[Path], i2ebench: Path | None, num: int) -> Iterator[tuple[str, list[Question]]]:
    """What to ask, under its title: the storybook's held-out phrasings, held-out rows of files, I2EBench."""
    own = [storybook_instruction(index, "test") for index in range(num)]
    yield "The storybook's instructions, in phrasings that training never uses", _labelled(own)
    for file in files:
        yield f"Held-out instructions of {file.name}", _labelled(of_split(read_labelled(file), "test"))
    if i2ebench is not None:
        yield "I2EBench, by its dimensions", read_i2ebench(i2ebench)


def _labelled(rows: Sequence[Labelled]) -> list[Question]:
    return [Question(row.instruction, frozenset({row.task}), row.task) for row in rows]


def ask(predictor: TaskPredictor, questions: Sequence[Question]) -> dict[str, Any]:
    """The shares of questions whose first guess, or one of the first two, is right; what was taken for what.

    Returns:
        "groups": group, or "all" -> "top_1" and "top_2", each a mean with its interval; "confusion": group ->
        task -> how many questions.
    """
    predictions = predictor.predict([question.instruction for question in questions])
    pairs = list(zip(questions, predictions, strict=True))
    names = sorted({question.group for question in questions})
    groups = {"all": pairs} | {name: [pair for pair in pairs if pair[0].group == name] for name in names}
    return {
        "groups": {name: {"top_1": _hits(mine, 1), "top_2": _hits(mine, 2)} for name, mine in groups.items()},
        "confusion": {name: dict(Counter(p.task for _, p in groups[name]).most_common()) for name in names},
    }


def _hits(pairs: Sequence[tuple[Question, Prediction]], count: int) -> dict[str, float] | None:
    mean = Mean.of([float(any(task in q.right for task, _ in p.ranked[:count])) for q, p in pairs])
    return mean and mean.as_json()


def to_markdown(title: str, found: Mapping[str, Any]) -> str:
    """The shares and the confusion table, under a heading of the third level, as it goes into a page."""
    tasks = [name for name in TASKS if any(name in row for row in found["confusion"].values())]
    head = ("", "n", "right", "right in two", *tasks)
    lines = [f"### {title}", "", _line(head), _line(["---"] * len(head))]
    for group, shares in found["groups"].items():
        one, two = shares["top_1"], shares["top_2"]
        row = found["confusion"].get(group, {})
        counts = [str(row[task]) if task in row else "" for task in tasks]
        lines.append(_line([group, str(one["n"]), _percent(one), _percent(two), *counts]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(mean: Mapping[str, float]) -> str:
    return f"{100 * mean['value']:.1f} %"
