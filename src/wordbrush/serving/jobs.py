"""The service's jobs, on disk: what was accepted outlives the process that accepted it.

A folder holds `jobs.sqlite` and, for every job, a folder of files: the picture and the mask until the job has
ended, then the results `0.png`, `1.png`, ...
"""

import dataclasses
import json
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from wordbrush.errors import UsageError, WordbrushError
from wordbrush.languages.translation import Heard
from wordbrush.outputs import make_folder
from wordbrush.provenance import atomic_file

State = Literal["queued", "running", "done", "failed", "cancelled"]
_PIXEL = 4
"""Bytes of a pixel in a result, at most."""
STATES: tuple[State, ...] = get_args(State)
WITHHELD = "moderation_blocked"
"""Why a job failed whose results were withheld; the code is OpenAI's."""
_BEING_ADDED = 600.0
"""Seconds after which files without a job are what a crash left: until then, one may be being added."""
MAX_ATTEMPTS = 2
"""How often a job is begun whose process died."""

_CREATE = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    state TEXT NOT NULL,
    asked TEXT NOT NULL,
    settings TEXT NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    has_mask INTEGER NOT NULL,
    num_results INTEGER NOT NULL,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    step INTEGER NOT NULL DEFAULT 0,
    num_steps INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    claim TEXT,
    record TEXT NOT NULL DEFAULT '{}',
    error TEXT,
    heard TEXT,
    bytes INTEGER NOT NULL DEFAULT 0,
    error_code TEXT,
    worker TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number);
CREATE TABLE IF NOT EXISTS totals (name TEXT PRIMARY KEY, value REAL NOT NULL);
"""
_ADDED = {
    "heard": "TEXT",
    "bytes": "INTEGER NOT NULL DEFAULT 0",
    "error_code": "TEXT",
    "worker": "TEXT NOT NULL DEFAULT ''",
}
"""Columns that a table of an earlier version lacks."""
_LIFE = "worker-{}.sqlite"
"""Locked by a worker as long as it lives."""
_DIED = "the process that edits died while it was at this job; it was tried {} times"


class QueueFullError(WordbrushError):
    """As many jobs are waiting as may; `retry_after` is in seconds."""

    def __init__(self, retry_after: int, whose: str = "edits") -> None:
        super().__init__(f"too many {whose} are waiting: try again in {retry_after} s")
        self.retry_after = retry_after


class DiskFullError(WordbrushError):
    """The jobs' files would take more of the disk than they may."""

    def __init__(self) -> None:
        super().__init__("the results of other edits fill the service's disk: try again later")


@dataclass(frozen=True)
class NewJob:
    """A request that was checked, with its files as bytes."""

    picture: bytes
    """The file as it was uploaded."""
    size: tuple[int, int]
    """Width and height of the upright picture."""
    asked: Mapping[str, Any]
    """Fields of `wordbrush.editors.asked.Asked`; with a seed, so that a second attempt gives the same."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Those that were given."""
    num_variations: int = 1
    mask: bytes | None = None
    owner: str = ""
    """Who may see the job."""
    heard: Heard | None = None
    """Where `asked` holds the English of another instruction; its translator is no path."""

    @property
    def num_bytes(self) -> int:
        """Of the disk, that the job will take at most: its files, and results that compress badly."""
        width, height = self.size
        return len(self.picture) + len(self.mask or b"") + _PIXEL * width * height * self.num_variations


@dataclass(frozen=True)
class Job:
    """One row of the table; times are seconds since 1970."""

    id: str
    owner: str
    state: State
    asked: dict[str, Any]
    settings: dict[str, Any]
    width: int
    height: int
    has_mask: bool
    num_results: int
    created: float
    started: float | None
    ended: float | None
    step: int
    num_steps: int
    attempts: int
    claim: str | None
    record: dict[str, Any]
    """Of a job that is done: its seeds and warnings."""
    error: str | None
    heard: Heard | None
    bytes: int
    """Of its files on the disk; until it has ended, what they may come to."""
    error_code: str | None
    """Of a job that failed, `WITHHELD` if that is why."""
    worker: str
    """The name of the process that has claimed it, as in `JobTable.hold`."""

    @property
    def num_pixels(self) -> int:
        """Of all its results."""
        return self.width * self.height * self.num_results

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state not in ("queued", "running")


class JobTable:
    """The jobs of one folder, for several threads.

    Every process that uses the folder, on one computer, has its own instance: that of each replica of the
    service, and that of each worker.

    Args:
        folder: made if missing, readable by its owner alone.
        max_queue: most jobs that may wait.
        max_each: most of them that one owner may have; None for as many as may wait.
        max_disk: bytes that the files of all jobs may take together; None for no limit.

    Raises:
        OutputError: the folder cannot be made or written.
        UsageError: its table is damaged.
    """

    def __init__(
        self, folder: Path, *, max_queue: int = 100, max_each: int | None = None, max_disk: int | None = None
    ) -> None:
        self.folder, self.max_queue, self.max_each, self.max_disk = folder, max_queue, max_each, max_disk
        self._lock = threading.RLock()
        make_folder(folder)
        folder.chmod(0o700)
        (folder / "files").mkdir(exist_ok=True)
        try:
            self._base = sqlite3.connect(
                folder / "jobs.sqlite", timeout=30, isolation_level=None, check_same_thread=False
            )
            self._base.row_factory = sqlite3.Row
            self._base.execute("PRAGMA journal_mode = WAL")
            self._base.execute("PRAGMA synchronous = FULL")  # an answer of "accepted" holds after a power cut
            self._base.executescript(_CREATE)
            self._add_columns()
        except sqlite3.DatabaseError as error:
            raise UsageError(
                f"{folder / 'jobs.sqlite'} cannot be used ({error}): name another folder"
            ) from error

    def close(self) -> None:
        """Close the table's file."""
        with self._lock:
            self._base.close()

    def file(self, job_id: str, name: str) -> Path:
        """Where a job's file lies: "picture", "mask.png", "0.png", ..."""
        return self.folder / "files" / job_id / name

    def check_room(self, owner: str = "") -> None:
        """Raise a `QueueFullError` if no further job of that owner would be taken now."""
        if self.counts()["queued"] >= self.max_queue:
            raise QueueFullError(self._retry_after())
        if self.max_each is not None:
            own = self._one("SELECT COUNT(*) FROM jobs WHERE state = 'queued' AND owner = ?", owner)
            if own >= self.max_each:
                raise QueueFullError(self._retry_after(), "of your edits")

    def add(self, new: NewJob) -> Job:
        """Take a job; once this returns, it is on the disk.

        Raises:
            QueueFullError: too many are waiting.
            DiskFullError: there is no room for its results, even without those of ended jobs.
            OutputError: its files cannot be written.
        """
        self._make_room(new.num_bytes)
        job_id = secrets.token_urlsafe(16)
        home = self.file(job_id, "")
        home.mkdir()
        try:
            _write(home / "picture", new.picture)
            if new.mask is not None:
                _write(home / "mask.png", new.mask)
            _sync(home)
            _sync(home.parent)
            with self._writing():
                self.check_room(new.owner)
                if self._lacks(new.num_bytes):  # another was added meanwhile
                    raise DiskFullError
                self._insert(job_id, new)
        except BaseException:
            shutil.rmtree(home, ignore_errors=True)
            raise
        return self._existing(job_id)

    def get(self, job_id: str) -> Job | None:
        """The job of that id, if there is one."""
        rows = self._select("id = ?", job_id)
        return rows[0] if rows else None

    def ahead(self, job: Job) -> int:
        """How many jobs are before a queued one."""
        own = "(SELECT number FROM jobs WHERE id = ?)"
        query = f"SELECT COUNT(*) FROM jobs WHERE state = 'queued' AND number < {own}"
        return int(self._one(query, job.id)) if job.state == "queued" else 0

    def has_waiting(self) -> bool:
        """Whether there is anything to claim."""
        return bool(self._one("SELECT EXISTS (SELECT 1 FROM jobs WHERE state = 'queued')"))

    def counts(self) -> dict[State, int]:
        """How many jobs are in each state."""
        with self._lock:
            found = dict(self._base.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state").fetchall())
        return {state: found.get(state, 0) for state in STATES}

    def totals(self) -> dict[str, float]:
        """Sums over all jobs ever: done, failed, cancelled, batches, run_seconds, wait_seconds."""
        with self._lock:
            return dict(self._base.execute("SELECT name, value FROM totals").fetchall())

    def hold(self, worker: str) -> sqlite3.Connection:
        """Show that a worker is alive until the connection is closed, or its process is gone.

        Args:
            worker: a name that nobody had before.
        """
        lock = _lock(self._life(worker))
        assert lock is not None
        return lock

    def claim(
        self,
        most: int,
        key: Callable[[Job], Hashable],
        *,
        most_pixels: float = float("inf"),
        worker: str = "",
    ) -> list[Job]:
        """Take the oldest waiting job, and further ones of the same settings and key.

        A job whose process died is taken by itself: it may have been the reason.

        Args:
            most: results of all of them together; the first may have more.
            key: has to be equal.
            most_pixels: of all results, likewise.
            worker: who takes them; as long as it is held, nobody else gets them.
        """
        with self._writing():
            waiting = self._select("state = 'queued' ORDER BY number LIMIT 200")
            if not waiting:
                return []
            first, *others = waiting
            chosen = [first]
            if not first.attempts:
                wanted = _same(first), key(first)
                alike = (
                    o for o in others if not o.attempts and _same(o) == wanted[0] and key(o) == wanted[1]
                )
                for other in alike:
                    batch = [*chosen, other]
                    pixels = sum(job.num_pixels for job in batch)
                    if sum(job.num_results for job in batch) <= most and pixels <= most_pixels:
                        chosen = batch
            token, now = secrets.token_hex(8), time.time()
            for job in chosen:
                self._base.execute(
                    "UPDATE jobs SET state = 'running', claim = ?, worker = ?, started = ?, step = 0, "
                    "attempts = attempts + 1 WHERE id = ?",
                    (token, worker, now, job.id),
                )
            self._count(batches=1, wait_seconds=sum(now - job.created for job in chosen))
            return self._select("claim = ? ORDER BY number", token)

    def still_wanted(self, jobs: Sequence[Job]) -> set[str]:
        """The ids of those claimed jobs that nobody cancelled, timed out or gave to another process."""
        with self._lock:
            found = self._base.execute(
                "SELECT id FROM jobs WHERE claim = ? AND state = 'running'", (jobs[0].claim,)
            ).fetchall()
        return {row[0] for row in found}

    def report(self, jobs: Sequence[Job], step: int, num_steps: int) -> None:
        """Note how far a claimed batch is."""
        with self._lock:
            self._base.execute(
                "UPDATE jobs SET step = ?, num_steps = ? WHERE claim = ? AND state = 'running'",
                (step, num_steps, jobs[0].claim),
            )

    def finish(self, job: Job, record: Mapping[str, Any]) -> None:
        """A claimed job's results are on the disk."""
        _sync(self.file(job.id, ""))  # their names, too, before the job says so
        self._end(job, "done", record=json.dumps(record))

    def fail(self, job: Job, message: str, *, code: str | None = None) -> None:
        """A claimed job cannot be done, for a reason that its owner may read."""
        self._end(job, "failed", error=message, error_code=code)

    def cancel(self, job_id: str) -> Job | None:
        """Cancel a job that has not ended; the job as it is then, None if there is none."""
        job = self.get(job_id)
        if job is not None and not job.has_ended:
            self._end(job, "cancelled", any_claim=True)
        return self.get(job_id)

    def forget(self, job: Job) -> None:
        """Delete an ended job and its files."""
        with self._writing():
            self._base.execute("DELETE FROM jobs WHERE id = ? AND ended IS NOT NULL", (job.id,))
        shutil.rmtree(self.file(job.id, ""), ignore_errors=True)

    def give_back(self, jobs: Sequence[Job], *, counted: bool = False) -> None:
        """Put claimed jobs back into the queue; the attempt counts only if told so."""
        with self._writing():
            for job in jobs:
                self._base.execute(
                    "UPDATE jobs SET state = 'queued', claim = NULL, started = NULL, step = 0, "
                    "attempts = attempts - ? WHERE id = ? AND claim = ? AND state = 'running'",
                    (int(not counted), job.id, job.claim),
                )

    def recover(self) -> list[Job]:
        """The jobs of workers that died wait again, or have failed if this was their last attempt."""
        running = self._select("state = 'running'")
        dead = {worker for worker in {job.worker for job in running} if not self._is_alive(worker)}
        lost = [job for job in running if job.worker in dead]
        again = [job for job in lost if job.attempts < MAX_ATTEMPTS]
        self.give_back(again, counted=True)
        for job in lost:
            if job not in again:
                self.fail(job, _DIED.format(job.attempts))
        return lost

    def sweep(self) -> None:
        """Delete what no job has, of old files (a crash came between them and their row) and dead workers."""
        for home in (self.folder / "files").iterdir():
            if self.get(home.name) is None and _age(home) > _BEING_ADDED:
                shutil.rmtree(home, ignore_errors=True)
        for life in self.folder.glob(_LIFE.format("*")):
            if (lock := _lock(life)) is not None:
                lock.close()
                life.unlink(missing_ok=True)

    def overdue(self, seconds: float, worker: str) -> list[Job]:
        """The jobs that a worker has been at for longer than that."""
        return self._select("state = 'running' AND worker = ? AND started < ?", worker, time.time() - seconds)

    def expire(self, seconds: float) -> int:
        """Forget the jobs that ended longer ago than that, with their files; returns how many."""
        old = self._select("ended < ?", time.time() - seconds)
        for job in old:
            self.forget(job)
        return len(old)

    def _life(self, worker: str) -> Path:
        return self.folder / _LIFE.format(worker)

    def _is_alive(self, worker: str) -> bool:
        if not worker or not self._life(worker).exists():
            return False
        lock = _lock(self._life(worker))
        if lock is not None:
            lock.close()
        return lock is None

    def _make_room(self, wanted: int) -> None:
        """Forget the jobs that ended first until that many bytes are free."""
        if self._lacks(wanted, "ended IS NULL"):  # nothing is lost where it would not help
            raise DiskFullError
        for job in self._select("ended IS NOT NULL ORDER BY ended") if self._lacks(wanted) else []:
            if self._lacks(wanted):
                self.forget(job)

    def _lacks(self, wanted: int, which: str = "TRUE") -> bool:
        """Whether that many bytes more than those jobs have would be too many."""
        if self.max_disk is None:
            return False
        used = self._one(f"SELECT COALESCE(SUM(bytes), 0) FROM jobs WHERE {which}")
        return int(used) + wanted > self.max_disk

    def _add_columns(self) -> None:
        known = {row["name"] for row in self._base.execute("PRAGMA table_info(jobs)")}
        for name, kind in _ADDED.items():
            if name not in known:
                self._base.execute(f"ALTER TABLE jobs ADD COLUMN {name} {kind}")

    def _insert(self, job_id: str, new: NewJob) -> None:
        width, height = new.size
        values: dict[str, Any] = {
            "id": job_id,
            "owner": new.owner,
            "state": "queued",
            "asked": json.dumps(dict(new.asked)),
            "settings": json.dumps(dict(new.settings), sort_keys=True),
            "width": width,
            "height": height,
            "has_mask": new.mask is not None,
            "num_results": new.num_variations,
            "created": time.time(),
            "heard": None if new.heard is None else json.dumps(dataclasses.asdict(new.heard)),
            "bytes": new.num_bytes,
        }
        marks = ", ".join("?" * len(values))
        self._base.execute(f"INSERT INTO jobs ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))

    def _end(
        self,
        job: Job,
        state: State,
        *,
        error: str | None = None,
        error_code: str | None = None,
        record: str = "{}",
        any_claim: bool = False,
    ) -> None:
        now = time.time()
        mine = "state IN ('queued', 'running')" if any_claim else "state = 'running' AND claim = ?"
        size = self._size(job) if state == "done" else 0
        values = (state, now, error, error_code, record, size, job.id, *(() if any_claim else (job.claim,)))
        with self._writing():
            changed = self._base.execute(
                "UPDATE jobs SET state = ?, ended = ?, error = ?, error_code = ?, record = ?, bytes = ? "
                f"WHERE id = ? AND {mine}",
                values,
            ).rowcount
            if changed:
                run = now - job.started if job.started and state == "done" else 0.0
                self._count(**{state: 1, "run_seconds": run})
        if changed:
            for name in ("picture", "mask.png"):  # nobody needs them any more
                self.file(job.id, name).unlink(missing_ok=True)

    def _size(self, job: Job) -> int:
        """Bytes of a job's results."""
        return sum(file.stat().st_size for file in self.file(job.id, "").glob("[0-9]*.png"))

    def _count(self, **changes: float) -> None:
        for name, change in changes.items():
            self._base.execute(
                "INSERT INTO totals VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + ?",
                (name, change, change),
            )

    def _retry_after(self) -> int:
        """About as many seconds as a recent edit took."""
        recent = "SELECT ended - started AS took FROM jobs WHERE state = 'done' ORDER BY ended DESC LIMIT 20"
        mean = self._one(f"SELECT AVG(took) FROM ({recent})")
        return min(120, max(1, round(mean or 1)))

    def _existing(self, job_id: str) -> Job:
        return self._select("id = ?", job_id)[0]

    def _select(self, where: str, *values: Any) -> list[Job]:
        with self._lock:
            return [_job(row) for row in self._base.execute(f"SELECT * FROM jobs WHERE {where}", values)]

    def _one(self, query: str, *values: Any) -> Any:
        with self._lock:
            return self._base.execute(query, values).fetchone()[0]

    @contextmanager
    def _writing(self) -> Generator[None]:
        """A transaction; what it reads cannot change until it ends."""
        with self._lock:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")


def lock_folder(folder: Path) -> sqlite3.Connection:
    """Keep other services out of a folder until the connection is closed, or its process is gone.

    Raises:
        UsageError: another service uses it.
    """
    make_folder(folder)
    lock = _lock(folder / "lock.sqlite")
    if lock is None:
        raise UsageError(f"another service uses {folder}: give this one another --folder")
    return lock


def _lock(path: Path) -> sqlite3.Connection | None:
    """Keep a file to oneself until the connection is closed, or the process is gone; None if another does."""
    lock = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        lock.close()
        return None
    return lock


def _age(path: Path) -> float:
    """Seconds since a folder was made or changed; 0 for one that is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _same(job: Job) -> str:
    """What must be equal for two jobs to be edited by one call."""
    return json.dumps(job.settings, sort_keys=True)


def _job(row: sqlite3.Row) -> Job:
    values: dict[str, Any] = {name: row[name] for name in row.keys() if name != "number"}  # noqa: SIM118
    for name in ("asked", "settings", "record"):
        values[name] = json.loads(values[name])
    values["has_mask"] = bool(values["has_mask"])
    values["heard"] = Heard(**json.loads(values["heard"])) if values["heard"] else None
    return Job(**values)


def _write(path: Path, data: bytes) -> None:
    with atomic_file(path) as file:
        file.write(data)


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk: a file that is synced may still be lost without."""
    if os.name == "nt":  # Windows opens no folders
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
