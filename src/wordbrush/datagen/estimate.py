"""What a run will take, measured on a few of its units before it starts."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import psutil
import torch

from wordbrush.datagen.config import Config, WrittenTriplets
from wordbrush.datagen.filters import Funnel
from wordbrush.datagen.ledger import Ledger
from wordbrush.datagen.pipeline import list_units
from wordbrush.datagen.progress import Display
from wordbrush.datagen.runners import Build, Workers, asks_endpoint, begin
from wordbrush.datagen.stages import MakeUnit, Record, Stage
from wordbrush.errors import UsageError

T = TypeVar("T")
_CAPTIONS = 8
_UNITS = 8
_SECONDS = 60.0  # until no further unit is begun


@dataclass(frozen=True)
class Estimate:
    """Of one run; each figure but the two counts is from a short measurement.

    Attributes:
        units: How many the run will have, about.
        workers: At a time.
        writing_hours: Until all instructions are written.
        writing_cost: Of the tokens of an endpoint.
        unit_seconds: Of one worker for one unit.
        measured: Units that this is from.
        funnel: Of them.
        row_bytes: Of one row; 0 if none was kept.
        worker_bytes: Of memory, of one worker.
        gpu_bytes: Of its GPU's memory; 0 without one.
        price_per_hour: Of one worker.
    """

    units: int
    workers: int
    writing_hours: float
    writing_cost: float
    unit_seconds: float
    measured: int
    funnel: Funnel
    row_bytes: float
    worker_bytes: int
    gpu_bytes: int
    price_per_hour: float

    @property
    def hours(self) -> float:
        """Of the whole run."""
        return self.writing_hours + self.units * self.unit_seconds / self.workers / 3600

    @property
    def rows(self) -> float:
        """That will be kept, if all units are as the measured ones."""
        return self.units * self.funnel.kept / self.measured

    @property
    def disk_bytes(self) -> float:
        """While the shards are assembled: the rows lie on the disk twice."""
        return 2 * self.rows * self.row_bytes

    @property
    def cost(self) -> float:
        """Of the workers and of the endpoint."""
        return self.hours * self.workers * self.price_per_hour + self.writing_cost

    def as_text(self, free: int) -> str:
        """A line for each figure; `free` are the bytes left on the disk."""
        gpu = f", {_size(self.gpu_bytes)} of each GPU" if self.gpu_bytes else ""
        return "\n".join(
            [
                f"units   {self.units:,}, of {self.funnel.drawn // self.measured:,} pairs each",
                f"rows    about {self.rows:,.0f}, if all units are as the measured one "
                f"({self.funnel.kept} of {self.funnel.drawn} kept)",
                f"time    {self.hours:.2f} hours, {self.writing_hours:.2f} of them for instructions "
                f"({self.workers} workers, {self.unit_seconds:.1f} s a unit)",
                f"memory  {_size(self.workers * self.worker_bytes)} for all workers{gpu}",
                f"disk    {_size(self.disk_bytes)}, half of it only until the shards are whole; "
                f"{_size(free)} are free",
                f"cost    {self.cost:.2f}, of which {self.writing_cost:.2f} for the endpoint's tokens",
                f"Measured: {self.measured} units from all over the list, in one worker on this machine, of "
                f"whose {self.funnel.drawn:,} pairs {self.funnel.kept:,} were kept; and the writer on "
                f"{_CAPTIONS} captions. Several workers slow each other down.",
            ]
        )


def estimate(config: Config) -> Estimate:
    """Measure a few units in a temporary folder.

    Raises:
        UsageError: There are fewer than two.
    """
    workers = Workers.of(config)
    with TemporaryDirectory() as temporary:
        work = Path(temporary)
        probe, scale = _shortened(config)
        writer = _Watched(workers)
        units = list_units(probe, work, writer, Display(every=float("inf")))
        records = [unit.model_dump() for unit in _spread(units.units)]
        if len(records) < 2:
            raise UsageError("a dry run measures at least two units, and there are fewer")
        stage = begin(workers, partial(MakeUnit, config, work / "units"))
        stage(records[0])  # the first one is slow
        timed = list(_in_time(stage, records[1:]))
        rows = list(Ledger(work / "units").rows(record["unit"] for _, record in timed))
    count = workers.here
    return Estimate(
        units=round(scale * len(units.units)),
        workers=count,
        writing_hours=scale * writer.seconds / 3600 / (1 if asks_endpoint(config) else count),
        writing_cost=scale * writer.cost,
        unit_seconds=sum(seconds for seconds, _ in timed) / len(timed),
        measured=len(timed),
        funnel=sum((Funnel.from_json(record["funnel"]) for _, record in timed), Funnel()),
        row_bytes=sum(row.size for row in rows) / max(1, len(rows)),
        worker_bytes=psutil.Process().memory_info().rss,
        gpu_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        price_per_hour=config.engine.price_per_hour,
    )


class _Watched:
    """A runner in this process that keeps the time and the cost of the writer, without loading it."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.seconds = self.cost = 0.0

    def __call__(self, build: Build, records: Sequence[Record]) -> Iterator[Record]:
        stage = begin(self.workers, build)
        for record in records:
            seconds, result = _timed(stage, record)
            self.seconds += seconds
            self.cost += result["cost"]
            yield result


def _spread(units: Sequence[T]) -> list[T]:
    """At most one more than are measured, evenly from the list."""
    count = min(len(units), _UNITS + 1)
    return [units[i * len(units) // count] for i in range(count)]


def _in_time(stage: Stage, records: Sequence[Record]) -> Iterator[tuple[float, Record]]:
    """Seconds and result of one record, and of as many more as there is time for."""
    end = time.perf_counter() + _SECONDS
    for number, record in enumerate(records):
        if number and time.perf_counter() > end:
            return
        yield _timed(stage, record)


def _timed(stage: Stage, record: Record) -> tuple[float, Record]:
    start = time.perf_counter()
    result = stage(record)
    return time.perf_counter() - start, result


def _shortened(config: Config) -> tuple[Config, float]:
    """The configuration with few captions for a writer, and how many times fewer they are."""
    triplets = config.triplets
    if not isinstance(triplets, WrittenTriplets) or triplets.count <= _CAPTIONS:
        return config, 1.0
    few = triplets.model_copy(update={"count": _CAPTIONS})
    return config.model_copy(update={"triplets": few}), triplets.count / _CAPTIONS


def free_bytes(folder: Path) -> int:
    """Left on the disk where a folder will be."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
