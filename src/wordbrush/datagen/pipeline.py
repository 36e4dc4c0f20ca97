"""The data engine: captions -> instructions -> pairs -> filter -> shards, each unit exactly once.

A run works in DIR.work, and its data set appears under DIR once it is whole. All that is done in between is a
file that is renamed into its place (a block of instructions, the list of units, a unit), so a run that was
killed at any moment goes on by being started again. What a unit becomes depends on the configuration and on
the unit alone: however often it was killed, a run ends in the same rows, in the order of the units, in shards
of the same bytes. (The last bits of a picture belong to the kind of processor that painted it.)

    DIR.work/run.json         what decides the rows
    DIR.work/captions.json    captions that passed the filter of captions (of a run with a writer)
    DIR.work/written/         their triplets, in blocks, and an endpoint's journal, if it has no other place
    DIR.work/units.json       all units, after the checks of triplets
    DIR.work/units/           the ledger

    DIR/data/*.parquet        the rows, see `wordbrush.data.shards`
    DIR/README.md             the card
    DIR/triplets.jsonl        all units, also those of which no pair was kept
    DIR/draws.arrow           what was drawn for every pair, see `wordbrush.datagen.draws`
    DIR/run.json              what decided the rows, where captions, triplets and pairs went, tokens
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from wordbrush.data.rows import DataError
from wordbrush.data.shards import write_card, write_shards
from wordbrush.datagen.captions import CaptionFilter, read_captions, storybook_captions
from wordbrush.datagen.checks import TextDuplicates, row_flaw
from wordbrush.datagen.config import Config, StorybookTriplets, WrittenTriplets, identity
from wordbrush.datagen.draws import FILE, explain, joined, write_draws
from wordbrush.datagen.endpoint import Usage
from wordbrush.datagen.filters import Funnel
from wordbrush.datagen.ledger import Ledger
from wordbrush.datagen.progress import Advance, Display, funnel_text
from wordbrush.datagen.runners import Runner, Runners
from wordbrush.datagen.stages import MakeUnit, WriteInstructions, Written
from wordbrush.editors.task_predictor import load_task_predictor
from wordbrush.errors import OutputError, UsageError, WordbrushError, one_line
from wordbrush.outputs import make_folder
from wordbrush.perception.sentences import SentenceEncoder
from wordbrush.provenance import atomic_file
from wordbrush.storybook.edits import draw_edit
from wordbrush.storybook.scenes import scene_rng
from wordbrush.triplets import Caption, Triplet, read_triplets

BLOCK = 128
"""Captions that a writer is given at once."""
_RUN = "run.json"
_M = TypeVar("_M", bound=BaseModel)
_T = TypeVar("_T")


class Captions(BaseModel):
    """Captions to write for, and where those that were read went."""

    counts: dict[str, int]
    captions: list[Caption]


class Unit(BaseModel):
    """One pair of captions, and what leads from one to the other: a triplet with a number."""

    unit: str
    caption: str
    edit: str
    output: str
    task: str = ""
    original: str = ""
    edited: str = ""
    label: str = ""
    """The task that its rows are given, if that is another one."""


class Units(BaseModel):
    """All units of a run in order, where captions and triplets went before, and what an endpoint took."""

    captions: dict[str, int]
    triplets: dict[str, int]
    usage: Usage | None = None
    units: list[Unit]


class Made(BaseModel):
    """What a finished run says of itself, in its run.json."""

    made_from: dict[str, Any]
    captions: dict[str, int]
    triplets: dict[str, int]
    pairs: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    rows: int
    usage: Usage | None = None
    """Of the endpoint that wrote the triplets; also of answers that a journal had from other runs."""

    def as_text(self) -> str:
        """Where everything went, in a line for each stage."""
        lines = _counted(captions=self.captions, triplets=self.triplets)
        lines += [f"endpoint: {self.usage.as_text()}"] if self.usage else []
        lines += [f"{task}: {funnel_text(Funnel(**counts))}" for task, counts in self.tasks.items()]
        return "\n".join([*lines, f"pairs: {funnel_text(Funnel(**self.pairs))}"])


def _counted(**stages: dict[str, int]) -> list[str]:
    """A line for each stage that has counts."""
    return [
        f"{name}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items())
        for name, counts in stages.items()
        if counts
    ]


def make(config: Config, folder: Path, runners: Runners, display: Display) -> Made:
    """Make a data set, or go on with it.

    Args:
        config: Of the run.
        folder: The data set; must not exist, unless this run made it.
        runners: Where the stages run.
        display: Is shown the progress.

    Raises:
        UsageError: The folder holds something else or a run with other settings, or is in use.
        OutputError: Something cannot be written, such as on a full disk; what was done before stays good.
        WordbrushError: Whatever keeps a stage from working.
    """
    folder, made_from = folder.resolve(), identity(config)
    work = folder.with_name(f"{folder.name}.work")
    if folder.is_file() or any(folder.glob("*")):
        made = _already_made(folder, made_from)
        shutil.rmtree(work, ignore_errors=True)
        return made
    make_folder(work)
    with _alone(work):
        _claim(work, made_from)
        units = list_units(config, work, runners.instructions, display)
        ledger = Ledger(work / "units")
        tasks = _make_pairs(config, units, ledger, runners.pairs, display)
        funnel = sum(tasks.values(), Funnel())
        if not funnel.kept:
            draws = [columns for _, columns in ledger.draws(unit.unit for unit in units.units)]
            raise WordbrushError(
                f"no pair passed the filter: {explain(joined(draws))}; lower its thresholds, and start anew "
                f"without {work}"
            )
        made = Made(
            made_from=made_from,
            captions=units.captions,
            triplets=units.triplets,
            pairs=asdict(funnel),
            tasks={task: asdict(counts) for task, counts in tasks.items() if task},
            rows=funnel.kept,
            usage=units.usage,
        )
        _assemble(config, made, units, ledger, folder, display)
    shutil.rmtree(work, ignore_errors=True)
    return made


def _already_made(folder: Path, made_from: dict[str, Any]) -> Made:
    try:
        made = Made.model_validate_json((folder / _RUN).read_bytes())
    except (OSError, ValidationError) as error:
        raise UsageError(f"{folder} exists, and is not of this command: choose another folder") from error
    _compare(folder, made.made_from, made_from)
    return made


@contextmanager
def _alone(work: Path) -> Generator[None]:
    """Keeps a second process away; the system drops the lock when this one ends, however that is."""
    try:
        with FileLock(work / "lock", timeout=0):
            yield
    except Timeout as error:
        raise UsageError(f"another process is working in {work}: wait for it or stop it") from error


def _claim(work: Path, made_from: dict[str, Any]) -> None:
    """Write down what the run is, or see that it is the same as before."""
    path = work / _RUN
    if not path.exists():
        _write(path, json.dumps(made_from, indent=2))
    try:
        _compare(work, json.loads(path.read_bytes()), made_from)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({one_line(error)}): delete {work} to start anew") from error


def _compare(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = [name for name in _paths(old) | _paths(new) if _at(old, name) != _at(new, name)]
    if changed:
        raise UsageError(
            f"{folder} is of a run with another {'.'.join(sorted(changed)[0])}: choose another folder, or "
            "delete this one"
        )


def _paths(settings: dict[str, Any]) -> set[tuple[str, ...]]:
    """The names of all settings, each with those of the tables around it."""
    found: set[tuple[str, ...]] = set()
    for name, value in settings.items():
        inner: set[tuple[str, ...]] = _paths(value) if isinstance(value, dict) else {()}
        found |= {(name, *path) for path in inner}
    return found


def _at(settings: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings


def list_units(config: Config, work: Path, run: Runner, display: Display) -> Units:
    """All units of a run; made once, and then read from `work`."""

    def listed() -> Units:
        captions, triplets, rejected, usage = _triplets(config, work, run, display)
        units, counts = _checked(triplets, _text_duplicates(config), display)
        if not units:
            where = "; ".join(_counted(captions=captions, triplets={"kept": 0} | rejected | counts))
            raise UsageError(
                f"there are no triplets to make pairs of ({where}): mend [triplets], and name another folder"
            )
        if config.triplets.task_predictor:
            units = _relabelled(units, config.triplets.task_predictor)
            counts["of another task, by the predictor"] = sum(bool(unit.label) for unit in units)
        return Units(
            captions=captions,
            triplets={"kept": len(units)} | rejected | counts,
            usage=usage,
            units=units,
        )

    return _once(work / "units.json", Units, listed)


def _triplets(
    config: Config, work: Path, run: Runner, display: Display
) -> tuple[dict[str, int], Iterable[Triplet], dict[str, int], Usage | None]:
    """Where captions went; triplets; why others were not written; and what an endpoint took for them."""
    settings = config.triplets
    if isinstance(settings, StorybookTriplets):
        return {}, storybook_triplets(settings), {}, None
    if isinstance(settings, WrittenTriplets):
        captions = _once(work / "captions.json", Captions, partial(_read_captions, settings))
        blocks = _written(settings, captions.captions, work / "written", run, display)
        rejected = sum((Counter(block.rejected) for block in blocks), Counter[str]())
        usage = sum((block.usage for block in blocks), Usage()) if settings.endpoint else None
        return captions.counts, (row for block in blocks for row in block.triplets), dict(rejected), usage
    return {}, read_triplets(settings.path)[: settings.count], {}, None


def storybook_triplets(settings: StorybookTriplets) -> Iterator[Triplet]:
    """Edits that the storybook draws."""

    def triplets() -> Iterator[Triplet]:
        number = 0
        while True:
            edit = draw_edit(scene_rng(settings.split, number), settings.split)
            number += 1
            if edit.operation in settings.operations:
                yield edit.triplet

    return islice(triplets(), settings.count)


def _read_captions(settings: WrittenTriplets) -> Captions:
    if settings.captions == "storybook":
        captions = storybook_captions()
    else:
        captions = read_captions(
            settings.captions,
            split=settings.captions_split,
            column=settings.column,
            shuffle_seed=settings.shuffle_seed if settings.shuffle else None,
        )
    keep = CaptionFilter(
        settings.language or None, min_chars=settings.min_chars, max_chars=settings.max_chars
    )
    kept = list(islice(keep(captions), settings.count))
    if settings.tasks:
        kept = [c.model_copy(update={"task": t}) for c, t in zip(kept, cycle(settings.tasks), strict=False)]
    return Captions(counts=dict(keep.counts), captions=kept)


def _written(
    settings: WrittenTriplets, captions: list[Caption], folder: Path, run: Runner, display: Display
) -> list[Written]:
    """What the writer wrote, block by block."""
    make_folder(folder)
    blocks = [captions[start : start + BLOCK] for start in range(0, len(captions), BLOCK)]
    records = [
        {"block": number, "captions": [caption.model_dump() for caption in block]}
        for number, block in enumerate(blocks)
    ]
    paths = [folder / f"{number:06d}.json" for number in range(len(blocks))]
    pending = [record for record, path in zip(records, paths, strict=True) if not path.exists()]
    with display.stage("instructions", len(records), len(records) - len(pending), "blocks") as advance:
        usage = Usage()
        for record in run(partial(WriteInstructions, settings, folder), pending) if pending else ():
            usage += Usage(**record["usage"])
            advance(usage.as_text() if settings.endpoint else "")
    return [_read(path, Written) for path in paths]


def _text_duplicates(config: Config) -> TextDuplicates:
    name, likeness = config.triplets.sentence_encoder, config.triplets.likeness
    if name is None:
        return TextDuplicates(threshold=likeness)
    encode = SentenceEncoder.load(name)
    return TextDuplicates(lambda texts: encode(texts).numpy(), likeness)


def _checked(
    triplets: Iterable[Triplet], duplicates: TextDuplicates, display: Display
) -> tuple[list[Unit], dict[str, int]]:
    """Those that nothing speaks against, numbered; and how often what spoke against the others."""
    rows = list(triplets)
    flaws = [row_flaw(triplet) for triplet in rows]
    sound = [row for row, flaw in zip(rows, flaws, strict=True) if flaw is None]
    with display.stage("repetitions", len(sound), 0, "triplets") as advance:
        repeated = duplicates.add(sound, on_row=partial(advance, ""))
    kept = [row for row, reason in zip(sound, repeated, strict=True) if reason is None]
    units = [Unit(unit=f"{i:07d}", **triplet.model_dump(exclude={"url"})) for i, triplet in enumerate(kept)]
    return units, dict(Counter(reason for reason in (*flaws, *repeated) if reason))


def _relabelled(units: list[Unit], predictor: str) -> list[Unit]:
    """The units with a label where the predictor finds another task; those without a task stay without."""
    predicted = load_task_predictor(predictor).predict([unit.edit for unit in units])
    found = [
        p.task if unit.task and p.task != unit.task else "" for unit, p in zip(units, predicted, strict=True)
    ]
    return [unit.model_copy(update={"label": label}) for unit, label in zip(units, found, strict=True)]


def _make_pairs(
    config: Config, units: Units, ledger: Ledger, run: Runner, display: Display
) -> dict[str, Funnel]:
    """Bring all units into the ledger; where the pairs of each task went ("": of none)."""
    done = ledger.done()
    task = {unit.unit: unit.task for unit in units.units}
    funnels = dict.fromkeys(sorted(set(task.values())), Funnel())
    for unit, funnel in done.items():
        funnels[task[unit]] += funnel
    pending = [unit.model_dump() for unit in units.units if unit.unit not in done]
    with display.stage("pairs", len(units.units), len(done), "units") as advance:
        for record in run(partial(MakeUnit, config, ledger.folder), pending) if pending else ():
            funnels[task[record["unit"]]] += Funnel.from_json(record["funnel"])
            advance(funnel_text(sum(funnels.values(), Funnel())))
    return funnels


def _assemble(
    config: Config, made: Made, units: Units, ledger: Ledger, folder: Path, display: Display
) -> None:
    """The data set from the ledger; it takes its name when it is whole."""
    dataset = ledger.folder.with_name("dataset")
    shutil.rmtree(dataset, ignore_errors=True)
    make_folder(dataset)
    names = [unit.unit for unit in units.units]
    with display.stage("shards", len(names), 0, "units") as advance:
        rows = write_shards(dataset, config.split, ledger.rows(_passing(names, advance)))
    write_draws(dataset / FILE, ledger.draws(names))
    if rows != made.rows:
        raise DataError(
            f"{ledger.folder} holds {rows} rows, not {made.rows}: rows were lost; delete "
            f"{ledger.folder.parent} to start anew"
        )
    write_card(dataset, [config.split], folder.name)
    _write(dataset / "triplets.jsonl", "".join(f"{unit.model_dump_json()}\n" for unit in units.units))
    _write(dataset / _RUN, made.model_dump_json(indent=2))
    try:
        dataset.replace(folder)
    except OSError as error:
        raise OutputError(f"cannot name the data set {folder}: {error.strerror}") from error


def _passing(rows: Sequence[_T], advance: Advance) -> Iterator[_T]:
    for row in rows:
        yield row
        advance("")


def _once(path: Path, kind: type[_M], make: Callable[[], _M]) -> _M:
    """Read what an earlier run wrote, or make and write it."""
    if path.exists():
        return _read(path, kind)
    made = make()
    _write(path, made.model_dump_json())
    return made


def _read(path: Path, kind: type[_M]) -> _M:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(f"{path} is damaged: delete it, and run again") from error


def _write(path: Path, text: str) -> None:
    with atomic_file(path, overwrite=True) as file:
        file.write(text.encode())
