"""The paper's curves: how far an edit goes, against how much of the picture it keeps (2211.09800, figure 8).

Each curve is one editor under one setting's values: InstructPix2Pix under its image scale, SDEdit under its
strength, Prompt-to-Prompt under its step windows. All points are means over the same examples with the same
seeds, so curves are compared in pairs.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import wordbrush
from wordbrush.editors import METHODS, settings_for
from wordbrush.editors.latent_editor import LatentEditor
from wordbrush.editors.settings import record_of
from wordbrush.evaluation.examples import Example, digest_of
from wordbrush.evaluation.identity import identity
from wordbrush.evaluation.journal import Journal
from wordbrush.evaluation.judges import Judge, Sample, judge_all
from wordbrush.evaluation.kept_pictures import save_jpeg
from wordbrush.evaluation.metrics import Mean
from wordbrush.evaluation.sweeps import Line
from wordbrush.progress import Show, silent
from wordbrush.types import EditRequest

DIRECTION, KEPT = "clip_sim_dir", "clip_sim_image"
"""The measures of the two axes."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        lines: The curves.
        examples: The edits.
        scales: Working sizes, as multiples of a model's native one.
        settings: Of every editor that has them, besides the swept one.
        seed: Example k is edited with seed + k in every setting.
        num_pictures: How many examples the report shows.
        batch_size: Edits at once.
        device: Where the editors run.
        dtype: Their precision.
    """

    lines: Sequence[Line]
    examples: Sequence[Example]
    scales: Sequence[int] = (1,)
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seed: int = 0
    num_pictures: int = 6
    batch_size: int = 16
    device: str = "auto"
    dtype: str = "auto"

    def settings_of(self, line: Line) -> dict[str, Any]:
        """Those that the line's method has; the size is exact, so no detail is carried over."""
        return METHODS[line.sweep.method].known({"detail": False} | dict(self.settings))

    def _all_settings(self, line: Line) -> dict[str, Any]:
        return record_of(settings_for(line.model, METHODS[line.sweep.method], self.settings_of(line)))

    def about(self, judges: Sequence[Judge]) -> dict[str, Any]:
        """All that decides the numbers."""
        return {
            "curves": [asdict(line) | {"model": identity(line.model)} for line in self.lines],
            "examples": {"num": len(self.examples), "sha256": digest_of(self.examples)},
            "settings": {line.label: self._all_settings(line) for line in self.lines},
            "seed": self.seed,
            "dtype": self.dtype,
            "judges": [judge.identity for judge in judges],
            "pictures": self.num_pictures,
        }


@dataclass(frozen=True)
class Point:
    """A place on a curve: the means over the examples, with bootstrap 95 % intervals."""

    curve: str
    method: str
    setting: str
    value: float
    scale: int
    size: int
    means: dict[str, Mean]


def measure(plan: Plan, judges: Sequence[Judge], folder: Path, show: Show = silent) -> Journal:
    """Edit and judge whatever the folder does not hold yet.

    Raises:
        UsageError: The folder holds other curves.
        ModelError: A model is missing or does not fit its method.
        OutputError: The folder cannot be written.
    """
    journal = Journal(folder, plan.about(judges))
    done = {key_of(row) for row in journal.rows}
    total = sum(len(line.sweep.values) for line in plan.lines) * len(plan.scales) * len(plan.examples)
    for line in plan.lines:
        todo = [key for key in _keys(plan, line) if key not in done]
        if not todo:
            continue
        editor = wordbrush.load(
            line.model, line.sweep.method, device=plan.device, dtype=plan.dtype, **plan.settings_of(line)
        )
        assert isinstance(editor, LatentEditor)
        for (scale, value), numbers in _settings(todo):
            size = scale * editor.model.native_size
            chosen = editor.with_settings(size=size, **line.sweep.at(value))
            for start in range(0, len(numbers), plan.batch_size):
                part = numbers[start : start + plan.batch_size]
                show(f"{line.label}, {line.sweep.setting} {value:g}, {size} px", len(journal.rows), total)
                rows = _judge(plan, judges, chosen, size, part, _namer(folder, plan, line, scale, value))
                place = {"curve": line.label, "scale": scale, "value": value, "size": size}
                journal.append([place | row for row in rows])
    return journal


Key = tuple[str, int, float, int]
"""Curve, scale, value and number of the example: what a row is about."""


def key_of(row: Mapping[str, Any]) -> Key:
    """Of a row of the journal."""
    return (row["curve"], row["scale"], row["value"], row["example"])


def _keys(plan: Plan, line: Line) -> Iterator[Key]:
    return product([line.label], plan.scales, line.sweep.values, range(len(plan.examples)))


def _settings(keys: Sequence[Key]) -> list[tuple[tuple[int, float], list[int]]]:
    """(scale, value) -> numbers of examples, in order."""
    found: dict[tuple[int, float], list[int]] = {}
    for _, scale, value, number in keys:
        found.setdefault((scale, value), []).append(number)
    return list(found.items())


def _judge(
    plan: Plan,
    judges: Sequence[Judge],
    editor: LatentEditor[Any],
    size: int,
    numbers: Sequence[int],
    name: Callable[[int], Path],
) -> list[dict[str, Any]]:
    """Edit some examples, keep the pictures that the report shows, and score all."""
    examples = [plan.examples[number] for number in numbers]
    before = [example.open(size) for example in examples]
    requests = [
        EditRequest(picture, e.instruction, e.source_caption, e.target_caption, seed=plan.seed + number)
        for picture, e, number in zip(before, examples, numbers, strict=True)
    ]
    after = [result.images[0] for result in editor.edit_batch(requests)]
    for number, picture in zip(numbers, after, strict=True):
        if number < plan.num_pictures:
            save_jpeg(picture, name(number))
    samples = [
        Sample(edited, picture, e.source_caption, e.target_caption)
        for edited, picture, e in zip(after, before, examples, strict=True)
    ]
    scores = judge_all(judges, samples)
    return [{"example": number} | row for number, row in zip(numbers, scores, strict=True)]


def _namer(folder: Path, plan: Plan, line: Line, scale: int, value: float) -> Callable[[int], Path]:
    return lambda number: picture_path(folder, plan.lines.index(line), scale, value, number)


def picture_path(folder: Path, line: int, scale: int, value: float, number: int) -> Path:
    """Where the picture of an example lies, for the first `num_pictures` of them."""
    return folder / "pictures" / f"{line:02d}-x{scale}-{value:g}-{number:03d}.jpg"


def summarise(plan: Plan, journal: Journal) -> list[Point]:
    """The points of all curves, in order."""
    groups: dict[tuple[str, int, float], list[dict[str, Any]]] = {}
    for row in journal.rows:
        groups.setdefault(key_of(row)[:3], []).append(row)
    found: list[Point] = []
    for line in plan.lines:
        for scale, value in product(plan.scales, line.sweep.values):
            rows = groups[(line.label, scale, value)]
            found.append(_point(line, scale, value, rows))
    return found


def _point(line: Line, scale: int, value: float, rows: Sequence[Mapping[str, Any]]) -> Point:
    places = {"curve", "scale", "value", "size", "example"}
    names = dict.fromkeys(name for row in rows for name in row if name not in places)
    means = {name: Mean.of([row[name] for row in rows if name in row]) for name in names}
    sweep = line.sweep
    return Point(line.label, sweep.method, sweep.setting, value, scale, rows[0]["size"],
                 {name: mean for name, mean in means.items() if mean})  # fmt: skip


def points_as_csv(points: Sequence[Point]) -> str:
    """A line for each point and measure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["curve", "method", "setting", "value", "size", "measure", "mean", "low", "high", "n"])
    for point in points:
        place = [point.curve, point.method, point.setting, point.value, point.size]
        for name, mean in point.means.items():
            writer.writerow([*place, name, mean.value, mean.low, mean.high, mean.n])
    return text.getvalue()


def results_as_json(
    about: Mapping[str, Any], points: Sequence[Point], comparisons: Sequence[Mapping[str, Any]]
) -> str:
    """All of it."""
    whole = {
        "about": about,
        "points": [asdict(point) for point in points],
        "comparisons": list(comparisons),
    }
    return json.dumps(whole, indent=1) + "\n"
