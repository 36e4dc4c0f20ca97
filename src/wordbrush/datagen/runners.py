"""Where the stages run: in this process, in several, or as actors of Ray Data.

A runner makes workers of a stage, gives them the records, and yields what comes back, in any order. A worker
that is killed is replaced, and its record is done again.
"""

from __future__ import annotations

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
from wordbrush.datagen.stages import Record, Stage
from wordbrush.diffusion.runtime import prepare_process
from wordbrush.errors import WordbrushError
from wordbrush.models import one_line

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
    # An endpoint's journal and rate limit are for one process; it asks many things at once by itself.
    alone = isinstance(config.triplets, WrittenTriplets) and config.triplets.endpoint is not None
    return Runners(partial(run_here, workers) if alone else pairs, pairs)


@dataclass(frozen=True)
class Workers:
    """How many workers there are, and what each needs.

    Attributes:
        count: At a time; None: as many as there are GPUs, or CPUs for.
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

    @property
    def gpu(self) -> bool:
        """Whether each has a GPU for itself."""
        return self.device.startswith("cuda") or (self.device == "auto" and torch.cuda.is_available())

    def counted(self, gpus: float, cpus: float) -> int:
        """How many, where there are so many GPUs and CPUs."""
        return self.count or max(1, int(gpus if self.gpu else cpus // self.cpus))

    @property
    def here(self) -> int:
        """How many on this machine."""
        return self.counted(torch.cuda.device_count(), os.cpu_count() or 1)


def run_here(workers: Workers, build: Build, records: Sequence[Record]) -> Iterator[Record]:
    """One worker, and this process is it."""
    yield from map(begin(workers, build), records)


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
                    "a worker was killed, and its successor too (out of memory?): lower pairs.batch_size or "
                    "engine.workers, and run again to go on"
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
    if not workers.gpu:
        return []
    every = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
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
    def __init__(self, build: Build) -> None:
        self._stage = build()

    def __call__(self, record: Record) -> Record:
        return self._stage(record)


def _run_ray(workers: Workers, build: Build, records: Sequence[Record]) -> Iterator[Record]:
    """Actors of Ray Data, on the cluster of RAY_ADDRESS or else on one that is started on this machine.

    The folder of the run must be at the same place on all machines.
    """
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ModuleNotFoundError as error:
        raise WordbrushError("--ray needs: pip install 'wordbrush[ray]'") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        there = ray.cluster_resources()
        count = workers.counted(there.get("GPU", 0), there.get("CPU", 1))
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = min(_ROWS_OF_A_TASK, max(1, len(records) // (4 * count)))
        dataset: Any = ray.data.from_items(list(records), override_num_blocks=-(-len(records) // rows)).map(
            cast("Any", _Actor),
            fn_constructor_args=(partial(begin, workers, build),),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=count, initial_size=count),
            num_cpus=workers.cpus,
            num_gpus=1 if workers.gpu else None,
        )
        yield from dataset.iter_rows()
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise _cause(error) from error
    finally:
        ray.shutdown()


_ROWS_OF_A_TASK = 16
"""At most: what is done again when an actor is killed."""


def _cause(error: BaseException) -> WordbrushError:
    """What a stage raised on a worker, out of what Ray wrapped around it."""
    seen: list[BaseException | None] = [error]
    while (inner := seen[-1]) is not None and len(seen) < 10:
        if isinstance(inner, WordbrushError):
            return inner
        seen.append(getattr(inner, "cause", None) or inner.__cause__)
    return WordbrushError(f"Ray cannot go on: {one_line(error)}")
