"""One picture edited by every method: the results side by side, with time, memory and scores."""

from __future__ import annotations

import ctypes
import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

import psutil
import torch
from PIL import Image

from wordbrush.diffusion.runtime import resolve_device
from wordbrush.editors import METHODS, find_method
from wordbrush.errors import UsageError, WordbrushError
from wordbrush.evaluation.curves import DIRECTION, KEPT
from wordbrush.evaluation.judges import ClipJudge, EfficientNetJudge, Judge, Sample, judge_all
from wordbrush.evaluation.page import page, paragraph, picture_grid, section, table
from wordbrush.evaluation.report import markdown_table
from wordbrush.images import Picture
from wordbrush.outputs import RESULTS, make_folder, write_texts
from wordbrush.progress import Show, silent
from wordbrush.provenance import atomic_file, save_image
from wordbrush.sheet import Cell, draw_sheet
from wordbrush.types import Editor, EditRequest, EditResult, StepInfo

_SCORES = {
    DIRECTION: "CLIP direction",
    KEPT: "CLIP likeness to the picture",
    "clip_sim_1": "CLIP likeness to the target",
    "efficientnet_lite0_distance": "EfficientNet distance",
}
_COLUMNS = 4
_SIDE = 256
_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Run:
    """A method to be compared."""

    method: str
    model: str
    load: Callable[[], Editor]


@dataclass(frozen=True, eq=False)
class Entry:
    """What became of it."""

    method: str
    model: str
    result: EditResult | None = None
    """None if there is none."""
    note: str = ""
    """Why there is none, or what the editor remarked."""
    seconds: float = 0.0
    """Of the edit with its tuning or inversion; the model was loaded before."""
    peak_bytes: int = 0
    """Of the whole process; on a GPU, of PyTorch's tensors."""
    scores: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def reconstruction(self) -> float | None:
        """How well the picture comes back from its inversion, in dB; None where nothing was inverted."""
        found = self.result and self.result.intermediates.get("reconstruction_psnr")
        return found[0] if found else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """All methods on one request."""

    request: EditRequest
    entries: Sequence[Entry]
    judges: Sequence[Mapping[str, Any]]
    """Who gave the scores."""


def parse_methods(text: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Method -> its own model, or "", of a list such as "sdedit,instruct-pix2pix=MODEL".

    Raises:
        UsageError: a method is unknown, or a setting belongs to none of them.
    """
    pairs = [part.strip().partition("=") for part in text.split(",")]
    chosen = {find_method(name).name: model for name, _, model in pairs}
    known = {item.name for name in chosen for item in METHODS[name].settings_fields()}
    if unknown := sorted(set(settings) - known):
        raise UsageError(f"none of the compared methods has the setting {unknown[0]!r}")
    return chosen


def compare_methods(
    request: EditRequest,
    runs: Sequence[Run],
    clip: str,
    device: str,
    show: Show = silent,
) -> Comparison:
    """Edit by one method after the other; one that cannot is noted, and the others go on.

    Args:
        request: With all texts that are known; one picture is made.
        runs: The methods.
        clip: The judge, as for `Clip.load`.
        device: Where the judge runs, and whose memory counts.
        show: Is told how far it is.

    Raises:
        ModelError: The judge cannot be loaded.
        WordbrushError: The extra `evaluate` is not installed.
    """
    place = resolve_device(device)
    judges: list[Judge] = [ClipJudge.load(clip, device=place), EfficientNetJudge()]
    entries = [_edit(run, request, place, show) for run in runs]
    return Comparison(
        request, [_judged(entry, request, judges) for entry in entries], [judge.identity for judge in judges]
    )


def _edit(run: Run, request: EditRequest, device: torch.device, show: Show) -> Entry:
    def on_step(info: StepInfo) -> None:
        show(run.method, info.step + 1, info.num_steps)

    try:
        METHODS[run.method].check(request)
        editor = run.load()
        with _Peak(device) as peak:
            started = time.monotonic()
            result = editor.edit(request, on_step=on_step)
            seconds = time.monotonic() - started
    except WordbrushError as error:
        return Entry(run.method, run.model, note=str(error))
    return Entry(run.method, run.model, result, "; ".join(result.warnings), seconds, peak.bytes)


def _judged(entry: Entry, request: EditRequest, judges: Sequence[Judge]) -> Entry:
    if entry.result is None:
        return entry
    sample = Sample(entry.result.images[0], request.image, request.source_caption, request.target_caption)
    (scores,) = judge_all(judges, [sample])
    return replace(entry, scores=scores)


class _Peak:
    """Measures the most memory that is used inside."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0
        self._done = Event()
        self._watch = Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _give_back()
            self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
            return
        self._done.set()
        self._watch.join()

    def _sample(self) -> None:
        process, done = psutil.Process(), False
        while not done:  # the last sample comes after the end: what is held then always counts
            done = self._done.wait(_SAMPLE_SECONDS)
            self.bytes = max(self.bytes, process.memory_info().rss)


def _give_back() -> None:
    """What glibc holds of freed memory, so that it does not count for the next method."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def write_report(comparison: Comparison, folder: Path, source: Picture) -> None:
    """Write METHOD.png of every result, sheet.png, report.html, table.md, and last results.json.

    Raises:
        OutputError: The folder cannot be written.
    """
    make_folder(folder)
    for entry in comparison.entries:
        if entry.result is not None:
            path = folder / f"{entry.method}.png"
            settings = entry.result.settings
            save_image(entry.result.images[0], path, settings=settings, source=source, overwrite=True)
    with atomic_file(folder / "sheet.png", overwrite=True) as file:
        _sheet(comparison).save(file, "PNG")
    written = {
        "report.html": _report(comparison),
        "table.md": f"{markdown_table(*_rows(comparison))}\n\n{_about(comparison)}\n",
        RESULTS: json.dumps(_plain(comparison), indent=1) + "\n",
    }
    write_texts(folder, written)


def _plain(comparison: Comparison) -> dict[str, Any]:
    rows = [
        {"method": entry.method, "model": entry.model, "note": entry.note}
        | ({} if entry.result is None else {
            "seconds": round(entry.seconds, 2), "peak_bytes": entry.peak_bytes, **entry.scores,
            "reconstruction_psnr": entry.reconstruction,
            "settings": entry.result.settings,
        })
        for entry in comparison.entries
    ]  # fmt: skip
    return {"judges": list(comparison.judges), "methods": rows}


def _sheet(comparison: Comparison) -> Image.Image:
    cells = [Cell(comparison.request.image, "the picture"), *map(_cell, comparison.entries)]
    return draw_sheet([cells[i : i + _COLUMNS] for i in range(0, len(cells), _COLUMNS)])


def _cell(entry: Entry) -> Cell:
    if entry.result is None:
        return Cell(None, f"{entry.method}\nnot run: report.html says why")
    about = f"direction {_number(entry, DIRECTION)}, likeness {_number(entry, KEPT)}"
    spent = f"{entry.seconds:.0f} s, {entry.peak_bytes / 2**20:.0f} MiB"
    return Cell(entry.result.images[0], f"{entry.method}, {spent}\n{about}")


def _number(entry: Entry, name: str) -> str:
    return f"{entry.scores[name]:.2f}" if name in entry.scores else "-"


def _report(comparison: Comparison) -> str:
    request, entries = comparison.request, comparison.entries
    made = [entry for entry in entries if entry.result is not None]
    pictures = [request.image, *(entry.result.images[0] for entry in made if entry.result is not None)]
    names = ["the picture", *(entry.method for entry in made)]
    notes = [f"{entry.method} ({entry.model}): {entry.note}" for entry in entries if entry.note]
    sections = [
        section("Results", _grid(names, pictures)),
        section("Time, memory, scores", table(*_rows(comparison), _about(comparison))),
        *([section("Notes", *map(paragraph, notes))] if notes else []),
    ]
    wish = f"“{request.source_caption}” to “{request.target_caption}”"
    asked = f" Instruction: “{request.instruction}”." if request.instruction else ""
    return page(wish, f"Every method once, seed {request.seed}.{asked}", sections)


def _rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    rows = [
        [entry.method, f"{entry.seconds:.1f}", f"{entry.peak_bytes / 2**20:.0f}",
         *(_number(entry, name) for name in _SCORES),
         "" if entry.reconstruction is None else f"{entry.reconstruction:.1f}"]
        for entry in comparison.entries if entry.result is not None
    ]  # fmt: skip
    return ["method", "seconds", "peak, MiB", *_SCORES.values(), "inversion, dB"], rows


def _about(comparison: Comparison) -> str:
    clip = comparison.judges[0]["name"]
    return (
        "Seconds of the edit with its tuning or inversion, without loading. Memory is the whole process's; "
        f"on a GPU, that of PyTorch's tensors. The CLIP is {clip}: text2live is trained on the CLIP that it "
        "is given, so where that is the same one, its scores flatter it."
    )


def _grid(names: Sequence[str], pictures: Sequence[Image.Image]) -> str:
    """Rows of a few, under the names."""
    parts = [
        picture_grid(names[i : i + _COLUMNS], [("", pictures[i : i + _COLUMNS])], _SIDE, "")
        for i in range(0, len(names), _COLUMNS)
    ]
    return "".join(parts)
