"""Where the stages run: in this process, in several, or as actors of Ray Data.

A runner makes workers of a stage, gives them the records, and yields what comes back, in any order. A worker
that is killed is replaced, and its record is done again.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.queues import SimpleQueue
from typing import Any, cast

import torch

from wordbrush.datagen.config import Config, WrittenTriplets
from wordbrush.datagen.stages import Record, Stage, WriteInstructions
from wordbrush.diffusion.runtime import available_cpus, prepare_process
from wordbrush.errors import DeviceError, MissingExtraError, WordbrushError, one_line

Build = Callable[[], Stage]
"""Makes a stage with its models; can be sent to another process."""
Runner = Callable[[Build, Sequence[Record]], Iterator[Record]]


@dataclass(frozen=True)
class Runners:
    """One for each stage that is more than a moment's work."""

    instructions: Runner
    pairs: Runner


def choose_runners(config: Config, *, ray: bool) -> Runners:
    """For a configuration: processes of this machine, or actors of Ray."""
    workers = Workers.of(config)
    pairs = partial(_run_ray if ray else run_here if workers.here == 1 else _run_processes, workers)
    return Runners(partial(run_here, workers) if asks_endpoint(config) else pairs, pairs)


def asks_endpoint(config: Config) -> bool:
    """Whether an endpoint writes: one process asks it then, for one keeps the journal and the rate limit."""
    return isinstance(config.triplets, WrittenTriplets) and config.triplets.endpoint is not None


@dataclass(frozen=True)
class Workers:
    """How many workers there are, and what each needs.

    Attributes:
        count: At a time; None: as many as there are GPUs, or else CPUs for.
        cpus: Threads of each.
        device: As in `PairSettings`.
    """

    count: int | None
    cpus: int
    device: str

    @classmethod
    def of(cls, config: Config) -> Workers:
        """As a configuration says."""
        return cls(config.engine.workers, config.engine.threads, config.pairs.device)

    def take_gpus(self, gpus: float) -> bool:
        """Whether each has a GPU for itself, where there are so many GPUs."""
        return self.device in ("cuda", "mps") or (self.device == "auto" and gpus > 0)

    def counted(self, gpus: float, cpus: float) -> int:
        """How many, where there are so many GPUs and CPUs."""
        return self.count or max(1, int(gpus if self.take_gpus(gpus) else cpus // self.cpus))

    @property
    def here(self) -> int:
        """How many on this machine."""
        gpus = torch.cuda.device_count() or int(torch.backends.mps.is_available())
        return self.counted(gpus, available_cpus())


def run_here(workers: Workers, build: Build, records: Sequence[Record]) -> Iterator[Record]:
    """One worker, and this process is it."""
    stage = begin(workers, build)
    yield from stage.together(records) if isinstance(stage, WriteInstructions) else map(stage, records)


def begin(workers: Workers, build: Build) -> Stage:
    """The stage, once this process has the threads of a worker."""
    prepare_process()
    torch.set_num_threads(workers.cpus)
    return build()


def _run_processes(workers: Workers, build: Build, records: Sequence[Record]) -> Iterator[Record]:
    """Several workers, processes of this machine, each with its GPU."""
    pending, fruitless = dict(enumerate(records)), 0
    while pending:
        before = len(pending)
        try:
            for number, record in _in_pool(workers, build, pending):
                del pending[number]
                yield record
        except BrokenProcessPool as error:
            fruitless = fruitless + 1 if len(pending) == before else 0
            if fruitless == 2:
                raise WordbrushError(
                    "a worker was killed, and its successor too (out of memory?): lower engine.workers, and "
                    "run again to go on; if one is too many, start anew with a lower pairs.batch_size"
                ) from error


def _in_pool(workers: Workers, build: Build, records: Mapping[int, Record]) -> Generator[tuple[int, Record]]:
    """Results as they come, with two records a worker under way, however many there are."""
    context = multiprocessing.get_context("spawn")
    gpus: SimpleQueue[str] = context.SimpleQueue()
    for gpu in _visible_gpus(workers):
        gpus.put(gpu)
    waiting = iter(dict(records).items())
    futures: dict[Future[Record], int] = {}
    pool = ProcessPoolExecutor(
        min(workers.here, len(records)),
        context,
        initializer=_start,
        initargs=(partial(begin, workers, build), gpus),
    )
    try:
        while True:
            while len(futures) < 2 * workers.here and (item := next(waiting, None)):
                futures[pool.submit(_work, item[1])] = item[0]
            if not futures:
                return
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                yield futures.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _visible_gpus(workers: Workers) -> list[str]:
    """What each worker shall have as CUDA_VISIBLE_DEVICES; nothing without GPUs."""
    count = torch.cuda.device_count()
    if not count or not workers.take_gpus(count):
        return []
    every = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    names = every.split(",")
    return [names[i % len(names)] for i in range(workers.here)]


_build: Build


def _start(build: Build, gpus: SimpleQueue[str]) -> None:
    """In a new worker: take a GPU, and end with the parent, however that ends."""
    global _build
    _build = build
    if not gpus.empty():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus.get()
    signal.signal(signal.SIGINT, _leave)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _leave(signal_: int, frame: object) -> None:
    os._exit(130)  # nothing to clean up, and no traceback


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@cache
def _stage() -> Stage:
    return _build()


def _work(record: Record) -> Record:
    return _stage()(record)


class _Actor:
    """Builds the stage with its first record; tells errors as results, for Ray hands on but their text."""

    def __init__(self, build: Build) -> None:
        self._stage = cache(build)

    def __call__(self, record: Record) -> dict[str, str]:
        try:
            return {"result": json.dumps(self._stage()(record)), "failure": ""}
        except WordbrushError as error:
            return {"result": "", "failure": str(error)}


def _run_ray(workers: Workers, build: Build, records: Sequence[Record]) -> Iterator[Record]:
    """Actors of Ray Data, on the cluster of RAY_ADDRESS or else on one that is started on this machine.

    The folder of the run must be at the same place on all machines.
    """
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ModuleNotFoundError as error:
        raise MissingExtraError("--ray", "ray") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what is of use is in the display
        for row in _on_actors(workers, build, records).iter_rows():
            if row["failure"]:
                raise WordbrushError(row["failure"])
            yield json.loads(row["result"])
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise WordbrushError(f"Ray cannot go on: {one_line(error)}") from error
    finally:
        ray.shutdown()


def _on_actors(workers: Workers, build: Build, records: Sequence[Record]) -> Any:
    """A data set of Ray: the records after the stage, by as many actors as its cluster has room for."""
    import ray
    import ray.data

    there = ray.cluster_resources()
    gpus = there.get("GPU", 0)
    if workers.take_gpus(gpus) and not gpus:
        raise DeviceError('no machine of the Ray cluster has a GPU: set pairs.device to "auto" or "cpu"')
    count = min(workers.counted(gpus, there.get("CPU", 1)), len(records))
    rows = min(_ROWS_OF_A_TASK, max(1, len(records) // (4 * count)))
    dataset: Any = ray.data.from_items(list(records), override_num_blocks=-(-len(records) // rows))
    return dataset.map(
        cast("Any", _Actor),
        fn_constructor_args=(partial(begin, workers, build),),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=count, initial_size=count),
        num_cpus=workers.cpus,
        num_gpus=1 if workers.take_gpus(gpus) else None,
    )


_ROWS_OF_A_TASK = 16
"""At most: few enough to be told of, and handed out, while others work; many enough for Ray's bookkeeping."""
