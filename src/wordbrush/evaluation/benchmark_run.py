"""Runs a benchmark: makes the pictures that are not there yet, scores all, and writes the results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wordbrush
from wordbrush.editors import find_method
from wordbrush.errors import UsageError
from wordbrush.evaluation.benchmark_data import BenchmarkEdit
from wordbrush.evaluation.benchmarks import Benchmark
from wordbrush.evaluation.identity import DATA, fingerprint, identity
from wordbrush.evaluation.journal import Journal
from wordbrush.evaluation.judges import Judge, Sample, judge_all
from wordbrush.evaluation.kept_pictures import save_png
from wordbrush.evaluation.metrics import Mean
from wordbrush.evaluation.report import markdown_table, to_json
from wordbrush.images import open_image
from wordbrush.outputs import write_texts
from wordbrush.progress import Show, silent
from wordbrush.types import Editor, EditRequest

_BATCH = 8


@dataclass(frozen=True)
class Entry:
    """An editor that is measured.

    Attributes:
        model: An embedded name, a path or a hub id.
        method: One of `wordbrush methods`.
        settings: Over those of the benchmark.
        seed: Of the first edit; edit k has seed + k.
        device: Where it runs.
        dtype: Its precision.
    """

    model: str = "storybook"
    method: str = "instruct-pix2pix"
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def settings_for(self, benchmark: Benchmark) -> dict[str, Any]:
        """What the benchmark's protocol asks for, unless it was given; no detail is carried over."""
        method = find_method(self.method)
        return method.known({"detail": False} | dict(benchmark.settings)) | dict(self.settings)


def run(
    benchmark: Benchmark,
    data: Path,
    edits: Sequence[BenchmarkEdit],
    entry: Entry,
    judges: Sequence[Judge],
    folder: Path,
    show: Show = silent,
) -> dict[str, Any]:
    """Measure an editor; run again, it goes on where it was.

    Returns:
        What results.json holds: the card, what was measured by what, and the means of each group.

    Raises:
        UsageError: The method needs what the benchmark lacks, or the folder holds another editor's results.
        DataError: The data is damaged.
        ModelError: The model is missing or does not fit the method.
        OutputError: The folder cannot be written.
    """
    settings = entry.settings_for(benchmark)
    _check(benchmark, entry, edits)
    about = {
        "benchmark": benchmark.name,
        "data": {"edits": len(edits), "sha256": fingerprint(data, DATA)},
        "model": identity(entry.model),
        "method": entry.method,
        "settings": settings,
        "seed": entry.seed,
        "dtype": entry.dtype,
    }
    Journal(folder, about)
    pictures = folder / "pictures"

    def load() -> Editor:
        return wordbrush.load(entry.model, entry.method, device=entry.device, dtype=entry.dtype, **settings)

    make_pictures(edits, pictures, load, entry.seed, show)
    rows = score(benchmark, edits, pictures, judges, show)
    found = about | {
        "card": benchmark.card(),
        "judges": [judge.identity for judge in judges],
        "known_bad": sum(bool(edit.problem) for edit in edits),
        "groups": summarise(benchmark, edits, rows),
    }
    write_texts(folder, {"results.json": to_json(found), "results.md": to_markdown(benchmark, found)})
    return found


def _check(benchmark: Benchmark, entry: Entry, edits: Sequence[BenchmarkEdit]) -> None:
    needs = find_method(entry.method).needs
    lacking = [name for name in needs if not any(getattr(edit, name, "") for edit in edits)]
    if lacking:
        raise UsageError(
            f"{benchmark.name} has no {lacking[0].replace('_', ' ')}, which {entry.method} needs: "
            "choose another --method"
        )


def make_pictures(
    edits: Sequence[BenchmarkEdit],
    folder: Path,
    load: Callable[[], Editor],
    seed: int,
    show: Show = silent,
) -> None:
    """Make what is missing, PNG files by their keys: first those from given pictures, then what follows them.

    An edit's seed depends on its place among all, not on which are missing.
    """
    todo = [pair for pair in enumerate(edits) if not _path(folder, pair[1].key).exists()]
    editor = load() if todo else None
    while todo and editor:
        ready = [(k, e) for k, e in todo if e.follows is None or _path(folder, e.follows).exists()][:_BATCH]
        show("Editing", len(edits) - len(todo), len(edits))
        requests = [_request(edit, folder, seed + number) for number, edit in ready]
        for (_, edit), result in zip(ready, editor.edit_batch(requests), strict=True):
            save_png(result.images[0], _path(folder, edit.key))
        made = {number for number, _ in ready}
        todo = [(k, e) for k, e in todo if k not in made]


def _request(edit: BenchmarkEdit, folder: Path, seed: int) -> EditRequest:
    before = edit.before() if edit.before else open_image(_path(folder, edit.follows or "")).image
    return EditRequest(before, edit.instruction, edit.source_caption, edit.target_caption, seed=seed)


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.png"


def score(
    benchmark: Benchmark,
    edits: Sequence[BenchmarkEdit],
    folder: Path,
    judges: Sequence[Judge],
    show: Show = silent,
) -> dict[str, dict[str, float]]:
    """Key -> scores, of the edits that count in some group."""
    counted = [edit for edit in edits if edit.groups]
    found: dict[str, dict[str, float]] = {}
    for start in range(0, len(counted), _BATCH):
        show("Judging", start, len(counted))
        part = counted[start : start + _BATCH]
        samples = [_sample(benchmark, edit, folder) for edit in part]
        found |= {e.key: row for e, row in zip(part, judge_all(judges, samples), strict=True)}
    return found


def _sample(benchmark: Benchmark, edit: BenchmarkEdit, folder: Path) -> Sample:
    opener = edit.target if benchmark.against_target else edit.before
    assert opener is not None  # whatever counts has what it is compared with
    edited = open_image(_path(folder, edit.key)).image
    return Sample(edited, opener(), edit.source_caption, edit.target_caption)


def summarise(
    benchmark: Benchmark, edits: Sequence[BenchmarkEdit], rows: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, Any]]:
    """Group -> measure -> mean and interval; groups with rows known to be bad also without those."""
    found: dict[str, dict[str, Any]] = {}
    for group in dict.fromkeys(group for edit in edits for group in edit.groups):
        own = [edit for edit in edits if group in edit.groups]
        good = [edit for edit in own if not edit.problem]
        found[group] = _means(benchmark, own, rows)
        if 0 < len(good) < len(own):
            found[f"{group}, without the bad rows"] = _means(benchmark, good, rows)
    return found


def _means(
    benchmark: Benchmark, edits: Sequence[BenchmarkEdit], rows: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    means = {
        name: Mean.of([rows[edit.key][name] for edit in edits if name in rows[edit.key]])
        for name in benchmark.columns
    }
    return {name: mean.as_json() for name, mean in means.items() if mean}


def to_markdown(benchmark: Benchmark, found: Mapping[str, Any]) -> str:
    """The results as a table under the papers' names, and the card; intervals are bootstrap 95 %."""
    names = [name for name in benchmark.columns if any(name in means for means in found["groups"].values())]
    head = ["", "n", *(benchmark.columns[name] for name in names)]
    lines: list[list[str]] = []
    for group, means in found["groups"].items():
        count = str(max((int(mean["n"]) for mean in means.values()), default=0))
        lines.append([group, count, *(_number(means.get(name)) for name in names)])
    judges = "; ".join(json.dumps(judge) for judge in found["judges"])
    parts = [
        f"# {benchmark.title}: {found['model']['name']}, {found['method']}",
        markdown_table(head, lines),
        f"Protocol. {benchmark.protocol}.",
        f"Known bad rows: {found['known_bad']}. {benchmark.known_bad}",
        f"Licence of the data: {benchmark.licence}. SHA-256 of the data: {found['data']['sha256']}.",
        f"Judges: {judges}",
    ]
    return "\n\n".join(parts) + "\n"


def _number(mean: Mapping[str, float] | None) -> str:
    return f"{mean['value']:.4f} ({mean['low']:.4f} - {mean['high']:.4f})" if mean else "-"
