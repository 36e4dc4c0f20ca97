"""The process that holds the model: it takes batches of jobs from the table and edits them.

`Worker` lives in the service's process, `run` is the other one. They share the table's files and a pipe, over
which the process says when it is ready and is told to stop. A process that died is started again.
"""

import contextlib
import dataclasses
import logging
import multiprocessing
import secrets
import signal
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import wordbrush
from wordbrush.controls import controls
from wordbrush.editors.asked import Asked
from wordbrush.errors import ImageError, OutputError, UsageError, WithheldError, WordbrushError
from wordbrush.images import FROM_STRANGERS, Picture, open_image
from wordbrush.outputs import save_result
from wordbrush.safety import Safety
from wordbrush.serving.jobs import WITHHELD, Job, JobTable
from wordbrush.types import Editor, EditResult, StepInfo

_IDLE = 0.02
"""Seconds between two looks at an empty queue."""
_GATHER = 0.01
"""Seconds that a first job waits for others that can share its batch."""
_REPORT = 0.05
"""Least seconds between two notes of progress on the disk."""
_HUNG = 60.0
"""Seconds beyond the time limit after which a process that reports no step is ended."""
_CONTEXT = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerOptions:
    """What the process needs to know; all of it can be pickled."""

    folder: Path
    """Of the table."""
    model_name: str
    """What strangers may know of the model: a result's record says this instead of a path."""
    load: Mapping[str, Any]
    """The keywords of `wordbrush.load`."""
    safety: Safety = Safety()
    """What is done to results before anybody gets them."""
    max_batch: int = 4
    """Results that are made together."""
    max_pixels: float = float("inf")
    """Of the results of a batch together."""
    time_limit: float = 300.0
    """Seconds that a batch may take."""
    grace: float = 20.0
    """Seconds that a batch has left once the process is told to stop; then its jobs wait for the next one."""


class Worker:
    """Keeps one model process alive.

    Args:
        options: of the process.
        table: of the same folder.
        keep: seconds that an ended job is kept.
        on_failure: called, in a thread, if there will be no model any more; `failure` says why.
    """

    def __init__(
        self,
        options: WorkerOptions,
        table: JobTable,
        *,
        keep: float = 3600.0,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self.options, self.table, self.keep, self.on_failure = options, table, keep, on_failure
        self.failure = ""
        self.restarts = 0
        self._ready, self._stop = threading.Event(), threading.Event()
        self._process: BaseProcess | None = None
        self._thread = threading.Thread(target=self._keep_alive, name="worker", daemon=True)

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded."""
        return self._ready.is_set()

    @property
    def is_stopping(self) -> bool:
        """Whether nothing that waits will be begun any more."""
        return self._stop.is_set()

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Take up what an earlier service left, and start the process."""
        self.table.recover()
        self.table.sweep()
        self._thread.start()

    def wait_until_ready(self, seconds: float) -> bool:
        """Wait for the model; returns whether it is there."""
        return self._ready.wait(seconds)

    def begin_stop(self) -> None:
        """Tell the process to end; what it cannot finish in time waits for the next one."""
        self._stop.set()

    def stop(self) -> None:
        """The same, and wait for the end."""
        self.begin_stop()
        self._thread.join()

    def _keep_alive(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            began = time.monotonic()
            with _logged("the model's process cannot be looked after"):
                self._live()
            if self._stop.is_set():
                return
            if self.failure:
                self.on_failure()
                return
            self.restarts += 1
            quick = time.monotonic() - began < 30
            pause = min(30.0, 2 * pause or 1.0) if quick else 0.0
            _log.error("the model's process died; starting it again in %g s", pause)

    def _live(self) -> None:
        """One process from its start to its end."""
        self.table.recover()  # again, if the disk was full when the last one ended
        pipe, theirs = _CONTEXT.Pipe()
        name = secrets.token_hex(8)
        process = _CONTEXT.Process(
            target=run, args=(self.options, theirs, name), name="wordbrush-worker", daemon=True
        )
        process.start()
        theirs.close()  # so that a dead process is seen as the pipe's end
        self._process, tidied = process, 0.0
        try:
            while process.is_alive() and not self._stop.is_set():
                self._listen(pipe, process)
                if time.monotonic() - tidied > 1:
                    tidied = time.monotonic()
                    with _logged("the table cannot be tidied"):
                        self._tidy(process, name)
            if process.is_alive():
                self._end(pipe, process)
            else:
                self._listen(pipe, process)  # its last word may be why it ended
        finally:
            self._ready.clear()
            process.kill()  # an error may have led here while it lives
            process.join()
            pipe.close()
            with _logged("the jobs of a process that ended cannot be given back"):
                self.table.recover()

    def _listen(self, pipe: Connection, process: BaseProcess) -> None:
        try:
            if not pipe.poll(0.1):
                return
            kind, text = pipe.recv()
        except (EOFError, OSError):
            process.join(0.1)
            return
        if kind == "ready":
            self._ready.set()
        else:
            self.failure = text

    def _tidy(self, process: BaseProcess, name: str) -> None:
        self.table.expire(self.keep)
        self.table.recover()  # of another replica that died
        overdue = self.table.overdue(self.options.time_limit + _HUNG, name)
        if len(overdue) == 1:  # of several, each is tried by itself
            self.table.fail(overdue[0], _too_long(self.options.time_limit))
        if overdue:
            process.kill()

    def _end(self, pipe: Connection, process: BaseProcess) -> None:
        with contextlib.suppress(OSError):
            pipe.send("stop")
        process.join(self.options.grace + 10)
        if process.is_alive():
            process.kill()


@contextmanager
def _logged(what: str) -> Generator[None]:
    """Go on after an error: that of a full disk may pass, and without this thread the service is dead."""
    try:
        yield
    except Exception:
        _log.exception(what)


def run(options: WorkerOptions, pipe: Connection, name: str) -> None:
    """The whole life of the process: load the model, then edit until told to stop."""
    warnings.simplefilter("ignore")  # the libraries' remarks to their own users
    orders = _Orders(pipe)
    try:
        editor = options.safety.guard(wordbrush.load(**options.load), options.load.get("device", "auto"))
    except WordbrushError as error:
        pipe.send(("failed", str(error)))
        return
    pipe.send(("ready", ""))
    table = JobTable(options.folder)
    desk = _Desk(options, table, editor, orders, name)
    busy = False
    with contextlib.closing(table.hold(name)):
        while not orders.stop(0 if busy else _IDLE):
            busy = desk.work()


class _Orders:
    """Whether the process was told to stop: over the pipe, by the end of its parent, or by SIGTERM."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._told = False
        self.since: float | None = None
        """When it was told, on the monotonic clock."""
        signal.signal(signal.SIGTERM, self._tell)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent says what it means

    def stop(self, wait: float = 0.0) -> bool:
        """Whether to stop; waits that many seconds for the word."""
        try:
            self._told = self._pipe.poll(wait) or self._told  # nothing is read: it stays true
        except OSError:
            self._told = True
        if self._told and self.since is None:
            self.since = time.monotonic()
        return self._told

    def _tell(self, *_: object) -> None:
        self._told = True


class _Desk:
    """Takes one batch after the other."""

    def __init__(
        self, options: WorkerOptions, table: JobTable, editor: Editor, orders: _Orders, name: str
    ) -> None:
        self.options, self.table, self.editor, self.orders = options, table, editor, orders
        self.name = name

    def work(self) -> bool:
        """Edit one batch, if anything waits; returns whether there was one."""
        if not self.table.has_waiting():
            return False
        self.orders.stop(_GATHER)
        most = self.options.max_pixels
        jobs = self.table.claim(self.options.max_batch, self._key, most_pixels=most, worker=self.name)
        pictures = self._open(jobs)
        jobs = [job for job in jobs if job.id in pictures]
        if jobs:
            self._edit(jobs, pictures)
        return True

    def _key(self, job: Job) -> Hashable:
        """Jobs of one working size go through the model together; a method without one takes them singly."""
        try:
            editor: Any = self.editor.with_settings(**job.settings)
            return editor.working_size((job.width, job.height))
        except (
            AttributeError,
            WordbrushError,
        ):  # an error comes again when the job is edited, and is its own
            return job.id

    def _open(self, jobs: Sequence[Job]) -> dict[str, tuple[Picture, Picture | None]]:
        """The pictures and masks; a job whose picture cannot be read has failed."""
        opened: dict[str, tuple[Picture, Picture | None]] = {}
        for job in jobs:
            try:
                mask = self._picture(job, "mask.png") if job.has_mask else None
                opened[job.id] = self._picture(job, "picture"), mask
            except (ImageError, OSError):
                self.table.fail(job, "the picture cannot be read: send it again as PNG or JPEG")
        return opened

    def _picture(self, job: Job, name: str) -> Picture:
        return open_image(self.table.file(job.id, name).read_bytes(), formats=FROM_STRANGERS)

    def _edit(self, jobs: Sequence[Job], pictures: Mapping[str, tuple[Picture, Picture | None]]) -> None:
        try:
            results = self._results(jobs, pictures)
        except _Unwanted:
            return
        except _Stopped:
            self.table.give_back(jobs)
        except Exception as error:
            if len(jobs) > 1:
                self.table.give_back(jobs, counted=True)  # each by itself, so that only the culprit fails
            else:
                self._fail(jobs[0], error)
        else:
            wanted = self.table.still_wanted(jobs)
            for job, result in zip(jobs, results, strict=True):
                if job.id in wanted:
                    self._deliver(job, result, *pictures[job.id])

    def _fail(self, job: Job, error: Exception) -> None:
        if isinstance(error, _OutOfTime):
            return self.table.fail(job, _too_long(self.options.time_limit))
        if isinstance(error, WithheldError):
            return self.table.fail(job, str(error), code=WITHHELD)
        if not isinstance(error, UsageError | ImageError):
            _log.error("an edit failed", exc_info=error)
        return self.table.fail(job, _explain(error))

    def _results(
        self, jobs: Sequence[Job], pictures: Mapping[str, tuple[Picture, Picture | None]]
    ) -> list[EditResult]:
        editor = self.editor.with_settings(**jobs[0].settings)
        requests = [
            Asked(**job.asked).request(picture.image, mask and mask.image, job.num_results)
            for job in jobs
            for picture, mask in [pictures[job.id]]
        ]
        return editor.edit_batch(requests, on_step=_Watch(self, jobs))

    def _deliver(self, job: Job, result: EditResult, picture: Picture, mask: Picture | None) -> None:
        settings = self._public(result.settings) | (job.heard.record if job.heard else {})
        paths = [self.table.file(job.id, f"{index}.png") for index in range(len(result.images))]
        try:
            public = dataclasses.replace(result, settings=settings)
            save_result(public, paths, source=picture, mask=mask, overwrite=True)
        except OutputError:
            _log.exception("a result cannot be written")
            self.table.fail(job, "the result could not be stored")
            return
        warned = [*([job.heard.warning] if job.heard else []), *picture.notes, *result.warnings]
        self.table.finish(job, {"seeds": result.seeds, "warnings": warned, "settings": settings})

    def _public(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The record of a result without what it says of this computer's files."""
        hidden = {control.name for control in controls(type(self.editor.settings)) if control.local}
        files = {name: [Path(file).name for file in settings.get(name, ())] for name in ("lora", "concept")}
        kept = {name: value for name, value in settings.items() if name not in hidden}
        return kept | files | {"model": self.options.model_name, "config": None}


class _Watch:
    """Called after every step of a batch: ends it where it is no longer wanted, and notes how far it is."""

    def __init__(self, desk: _Desk, jobs: Sequence[Job]) -> None:
        self.desk, self.jobs = desk, jobs
        self.began, self.noted = time.monotonic(), 0.0

    def __call__(self, info: StepInfo) -> None:
        options, orders, now = self.desk.options, self.desk.orders, time.monotonic()
        if not self.desk.table.still_wanted(self.jobs):
            raise _Unwanted
        if now - self.began > options.time_limit:
            raise _OutOfTime
        if orders.stop() and orders.since is not None and now - orders.since > options.grace:
            raise _Stopped
        if now - self.noted >= _REPORT or info.step + 1 == info.num_steps:
            self.noted = now
            with contextlib.suppress(sqlite3.OperationalError):  # a full disk: no reason to lose the edit
                self.desk.table.report(self.jobs, info.step + 1, info.num_steps)


class _Unwanted(Exception):
    """Every job of the batch was cancelled."""


class _OutOfTime(Exception):
    """The batch has taken longer than it may."""


class _Stopped(Exception):
    """The process was told to stop, and the batch has had its time to finish."""


def _too_long(limit: float) -> str:
    return f"the edit took longer than {limit:g} s: ask for fewer steps, a smaller size or fewer variations"


def _explain(error: Exception) -> str:
    """What a stranger may read: nothing about this computer."""
    if isinstance(error, UsageError | ImageError):
        return " ".join(str(error).split())
    return f"the edit failed in the service ({type(error).__name__}): its log says why"
