"""The stages of the data engine: callable classes, a record in and a record out.

A worker makes one of `WriteInstructions` and `MakeUnit` and calls it with record after record; whether the
worker is this process, another one or an actor of Ray Data makes no difference to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from functools import reduce
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from pydantic import BaseModel

from wordbrush.data.rows import SCORES, Row, Similarities, encode_png
from wordbrush.datagen.checks import ImageDuplicates
from wordbrush.datagen.config import Config, WrittenTriplets
from wordbrush.datagen.draws import KEPT, SURPLUS
from wordbrush.datagen.endpoint import EndpointWriter, Usage
from wordbrush.datagen.filters import Funnel, Thresholds, find_failures, select
from wordbrush.datagen.grounded import GroundedGenerator, GroundedSettings, plan
from wordbrush.datagen.instructions import InstructionWriter, Rejected
from wordbrush.datagen.ledger import Ledger
from wordbrush.datagen.local_writer import LocalWriter
from wordbrush.datagen.painting import Draw, Painter, PairSettings, Pixels, draw_samples
from wordbrush.datagen.pairs import PairGenerator, score_pairs
from wordbrush.perception.clip import Clip
from wordbrush.provenance import atomic_file
from wordbrush.triplets import Caption, Triplet, read_triplets

Record = dict[str, Any]


class Stage(Protocol):
    """One step of the work on a record."""

    def __call__(self, record: Record) -> Record:
        """The record after this stage."""
        ...


class Written(BaseModel):
    """What a writer made of a block of captions: triplets, how often a reason was against one, and tokens."""

    triplets: list[Triplet]
    rejected: dict[str, int]
    usage: Usage = Usage()


class WriteInstructions:
    """A block of captions -> triplets, in the file FOLDER/BLOCK.json.

    Blocks are of one size, so what is written in one does not hang on how far an earlier run came.

    Args:
        settings: Which writer.
        folder: Exists. An endpoint's journal goes there too, unless it has a place of its own.
    """

    def __init__(self, settings: WrittenTriplets, folder: Path) -> None:
        self.folder, self.writer = folder, _writer(settings, folder)

    def __call__(self, record: Record) -> Record:
        """`block`, `captions` -> `block`, `usage` as JSON, and its `cost`."""
        if isinstance(self.writer, EndpointWriter):
            (stored,) = self.together([record])
            return stored
        return self._store(record["block"], self.writer.write(_captions(record)), Usage())

    def together(self, records: Sequence[Record]) -> Iterator[Record]:
        """What becomes of each record, in any order: an endpoint is asked for several blocks at a time."""
        if isinstance(self.writer, EndpointWriter):
            for block in self.writer.write_blocks([_captions(record) for record in records]):
                yield self._store(records[block.number]["block"], block.outcomes, block.usage)
        else:
            yield from map(self, records)

    def _store(self, block: int, outcomes: Sequence[Triplet | Rejected], usage: Usage) -> Record:
        reasons = Counter(outcome.reason for outcome in outcomes if isinstance(outcome, Rejected))
        triplets = [outcome for outcome in outcomes if isinstance(outcome, Triplet)]
        written = Written(triplets=triplets, rejected=reasons, usage=usage)
        with atomic_file(self.folder / f"{block:06d}.json", overwrite=True) as file:
            file.write(written.model_dump_json().encode())
        return {"block": block, "usage": asdict(usage), "cost": usage.cost}


def _captions(record: Record) -> list[Caption]:
    return [Caption(**caption) for caption in record["captions"]]


def _writer(settings: WrittenTriplets, folder: Path) -> InstructionWriter:
    if settings.endpoint is not None:
        examples = [] if settings.examples is None else read_triplets(settings.examples)
        journal = settings.endpoint.journal or folder / "journal.jsonl"
        return EndpointWriter(settings.endpoint, examples, journal)
    assert settings.local is not None  # checked by the settings
    return LocalWriter.load(settings.local.model, device=settings.local.device, sampling=settings.local)


class MakePairs:
    """A unit's captions -> all its pairs of pictures, with what was drawn for each and its scores.

    Args:
        settings: How to draw and paint.
        grounded: How pairs are confined to their things; None: they are InstructPix2Pix's.
        seed: The run's.
    """

    def __init__(self, settings: PairSettings, grounded: GroundedSettings | None, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.painter = Painter.load(settings)
        self.generator = PairGenerator(self.painter)
        self.grounded = None if grounded is None else GroundedGenerator(self.painter, grounded)
        self.clip = Clip.load(settings.clip, device=self.painter.model.device)

    def __call__(self, record: Record) -> Record:
        """`unit`, `caption`, `output` -> also `pixels` (N, 2, H, W, 3), draws and scores, lists of N.

        Of grounded pairs, which also need `task`, `original` and `edited`: `masks` (N, H, W), `mask_kind` and
        `flaws`, lists of N, and `not_found`, the draws of pairs that were not painted, as columns.
        """
        caption, output = record["caption"], record["output"]
        draws = draw_samples(self.settings, self.seed, record["unit"])
        found: Record = {}
        if self.grounded is None:
            pixels = self.generator(caption, output, draws)
        else:
            made = self.grounded(plan(*(record[name] for name in _OF_A_PLAN)), draws)
            pixels, draws = made.pixels, made.draws
            missing = _columns([draw for draw in made.not_found for _ in range(made.num_masks)])
            found = {"masks": made.masks, "flaws": made.flaws, "mask_kind": made.kinds, "not_found": missing}
        columns = _columns(draws)
        scores = score_pairs(self.clip, pixels, caption, output)
        return record | found | columns | {"pixels": pixels} | {n: x.tolist() for n, x in scores.items()}


_OF_A_PLAN = ("task", "caption", "output", "original", "edited")
_DRAWN = tuple(f.name for f in fields(Draw))
_OF_A_PAIR = (*_DRAWN, "mask_kind", *SCORES)


def _columns(draws: Sequence[Draw]) -> dict[str, list[Any]]:
    return {name: [getattr(draw, name) for draw in draws] for name in _DRAWN}


class FilterPairs:
    """All pairs of a unit -> the best that pass, and of those that look alike only the first.

    Args:
        thresholds: What must be passed, and how many are kept.
    """

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds

    def __call__(self, record: Record) -> Record:
        """The same columns, shorter; `funnel`, whose surplus counts repetitions too; `draws` of all pairs."""
        record = {"mask_kind": [None] * len(record["pixels"])} | record
        scores = Similarities.from_columns({name: record[name] for name in SCORES})
        everyone = self.thresholds.model_copy(update={"keep": max(1, len(scores))})
        order, funnel = select(scores, everyone, record.get("flaws", ()))
        kept = _distinct(record["pixels"], order)[: self.thresholds.keep]
        columns = {name: [record[name][i] for i in kept] for name in _OF_A_PAIR}
        columns |= {name: record[name][kept] for name in ("pixels", "masks") if name in record}
        fates = find_failures(scores, self.thresholds, record.get("flaws", ()))
        fates = [KEPT if i in kept else fate or SURPLUS for i, fate in enumerate(fates)]
        draws = {name: record[name] for name in _OF_A_PAIR} | {"fate": fates}
        funnel = replace(funnel, surplus=len(order) - len(kept))
        if missing := record.get("not_found"):
            draws, funnel = _with_missing(draws, missing), funnel + _missing(len(missing["seed"]))
        return record | columns | {"funnel": funnel.to_json(), "draws": draws}


def _missing(count: int) -> Funnel:
    return Funnel(drawn=count, failed={"not_found": count} if count else {})


def _with_missing(draws: Record, missing: Record) -> Record:
    count = len(missing["seed"])
    blank = dict.fromkeys(draws, [None] * count) | missing | {"fate": ["not_found"] * count}
    return {name: [*draws[name], *blank[name]] for name in draws}


def _distinct(pixels: Pixels, order: Sequence[int]) -> list[int]:
    seen = ImageDuplicates()
    return [i for i in order if seen.add(*map(Image.fromarray, pixels[i])) is None]


class StoreUnit:
    """The rows of a unit -> the ledger.

    Args:
        folder: The ledger's.
    """

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger(folder)

    def __call__(self, record: Record) -> Record:
        """Commits the unit; -> `unit`, `funnel`."""
        rows = [_row(record, i) for i in range(len(record["pixels"]))]
        self.ledger.store(record["unit"], rows, Funnel.from_json(record["funnel"]), record["draws"])
        return {"unit": record["unit"], "funnel": record["funnel"]}


def _row(record: Record, i: int) -> Row:
    before, after = (encode_png(Image.fromarray(picture)) for picture in record["pixels"][i])
    mask = encode_png(Image.fromarray(record["masks"][i])) if "masks" in record else None
    return Row(
        input_image=before,
        edit_prompt=record["edit"],
        edited_image=after,
        source_caption=record["caption"],
        target_caption=record["output"],
        task=record["label"] or record["task"] or None,
        mask=mask,
        unit=record["unit"],
        **{name: record[name][i] for name in _OF_A_PAIR},
    )


class MakeUnit:
    """A unit from its captions to the ledger.

    One worker does all of it: the pictures that the filter drops, nearly all, never leave it. What is in the
    ledger already, by a worker that was killed before it could say so, is not made again.

    Args:
        config: Of the run.
        folder: The ledger's.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.ledger = Ledger(folder)
        self.stages: tuple[Stage, ...] = (
            MakePairs(config.pairs, config.grounded, config.seed),
            FilterPairs(config.filter),
            StoreUnit(folder),
        )

    def __call__(self, record: Record) -> Record:
        """A `pipeline.Unit`'s fields -> `unit`, `funnel`."""
        if funnel := self.ledger.funnel(record["unit"]):
            return {"unit": record["unit"], "funnel": funnel.to_json()}
        return reduce(lambda record, stage: stage(record), self.stages, record)
