"""The table of jobs, over real SQLite files."""

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from wordbrush.errors import UsageError
from wordbrush.serving.jobs import DiskFullError, Job, JobTable, NewJob, QueueFullError, lock_folder


def new(instruction: str = "make it night", size: tuple[int, int] = (48, 32), **settings: object) -> NewJob:
    return NewJob(b"picture", size, {"instruction": instruction, "seed": 3}, settings)


def size(job: Job) -> tuple[int, int]:
    return job.width, job.height


@pytest.fixture
def table(tmp_path: Path) -> JobTable:
    return JobTable(tmp_path, max_queue=4)


def test_a_job_is_on_the_disk_once_it_is_taken(table: JobTable, tmp_path: Path):
    job = table.add(new(steps=2))
    again = JobTable(tmp_path).get(job.id)
    assert again == job
    assert (job.state, job.asked["seed"], job.settings) == ("queued", 3, {"steps": 2})
    assert table.file(job.id, "picture").read_bytes() == b"picture"


def test_a_full_queue_refuses_and_keeps_nothing(table: JobTable):
    for _ in range(4):
        table.add(new())
    with pytest.raises(QueueFullError, match="try again in 1 s"):
        table.add(new())
    assert len(list((table.folder / "files").iterdir())) == 4
    table.claim(1, size)
    table.add(new())  # the one that is running does not wait


def test_one_owner_cannot_fill_the_queue(tmp_path: Path):
    table = JobTable(tmp_path, max_queue=4, max_each=1)
    table.add(replace(new(), owner="first"))
    with pytest.raises(QueueFullError, match="of your edits"):
        table.add(replace(new(), owner="first"))
    table.add(replace(new(), owner="second"))


def test_the_disk_is_not_filled(tmp_path: Path):
    job = new(size=(10, 10))  # results of 400 bytes at most, and 7 of the picture
    table = JobTable(tmp_path, max_disk=1000)
    first, _ = table.add(job), table.add(job)
    with pytest.raises(DiskFullError):
        table.add(job)
    (running, _) = table.claim(2, size)
    table.file(first.id, "0.png").write_bytes(bytes(300))
    table.finish(running, {})
    table.add(job)  # a result of 300 bytes has to go for it
    assert table.get(first.id) is None
    assert not table.file(first.id, "").exists()


def test_the_names_of_files_are_on_the_disk_before_the_job_is(
    table: JobTable, monkeypatch: pytest.MonkeyPatch
):
    synced: list[tuple[int, int]] = []
    sync = os.fsync

    def noted(number: int) -> None:
        synced.append((os.fstat(number).st_ino, sum(table.counts().values())))
        sync(number)

    monkeypatch.setattr(os, "fsync", noted)
    job = table.add(new())
    home = table.file(job.id, "")
    assert {(home.stat().st_ino, 0), (home.parent.stat().st_ino, 0)} <= set(synced)
    synced.clear()
    table.finish(table.claim(1, size)[0], {})
    assert (home.stat().st_ino, 1) in synced


def test_a_table_of_an_earlier_version_is_taken_over(tmp_path: Path):
    JobTable(tmp_path).add(new())
    with sqlite3.connect(tmp_path / "jobs.sqlite") as base:
        for column in ("heard", "bytes"):
            base.execute(f"ALTER TABLE jobs DROP COLUMN {column}")
    base.close()
    (job,) = JobTable(tmp_path).claim(1, size)
    assert (job.heard, job.bytes) == (None, 0)


def test_compatible_jobs_are_claimed_together_the_oldest_first(table: JobTable):
    first, other_size = table.add(new()), table.add(new(size=(32, 48)))
    other_steps, alike = table.add(new(steps=2)), table.add(new("let it snow"))
    batches = [[job.id for job in table.claim(8, size)] for _ in range(4)]
    assert batches == [[first.id, alike.id], [other_size.id], [other_steps.id], []]
    assert table.totals()["batches"] == 3


def test_a_batch_is_no_larger_than_asked(table: JobTable):
    for _ in range(3):
        table.add(new())
    assert [len(table.claim(2, size)) for _ in range(3)] == [2, 1, 0]


def test_a_batch_is_counted_in_results_and_their_pixels(table: JobTable):
    for count in (3, 10, 1):
        table.add(replace(new(), num_variations=count))
    assert [[job.num_results for job in table.claim(4, size)] for _ in range(2)] == [[3, 1], [10]]
    table.add(new())
    table.add(new())
    assert len(table.claim(4, size, most_pixels=48 * 32)) == 1


def test_two_that_claim_at_once_never_get_the_same(table: JobTable, tmp_path: Path):
    table.max_queue = 100
    ids = {table.add(new()).id for _ in range(40)}
    claimed: list[str] = []

    def work() -> None:
        own = JobTable(tmp_path)
        while batch := own.claim(3, size):
            claimed.extend(job.id for job in batch)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(ids)


def test_a_dead_process_leaves_its_jobs_to_the_next_one_by_one_and_twice_at_most(table: JobTable):
    first, second = table.add(new()), table.add(new())
    assert len(table.claim(8, size)) == 2
    table.recover()
    assert [job.id for job in table.claim(8, size)] == [first.id]  # alone: it may have been the reason
    table.recover()
    assert [job.id for job in table.claim(8, size)] == [second.id]
    failed = table.get(first.id)
    assert failed
    assert (failed.state, failed.attempts) == ("failed", 2)
    assert "tried 2 times" in (failed.error or "")


def test_the_jobs_of_a_worker_that_lives_are_its_own(table: JobTable):
    first, second = table.add(new()), table.add(new())
    life = table.hold("one")
    (job,) = table.claim(1, size, worker="one")
    (other,) = table.claim(1, size, worker="two")  # it died before it could say that it lives
    assert (job.id, other.id) == (first.id, second.id)
    elsewhere = JobTable(table.folder)
    assert [lost.id for lost in elsewhere.recover()] == [second.id]
    assert [late.id for late in table.overdue(-1, "one")] == [first.id]
    assert table.overdue(-1, "two") == []
    elsewhere.sweep()
    assert (table.folder / "worker-one.sqlite").exists()
    life.close()
    assert [lost.id for lost in elsewhere.recover()] == [first.id]
    elsewhere.sweep()
    assert not (table.folder / "worker-one.sqlite").exists()


def test_what_is_given_back_does_not_count_as_an_attempt(table: JobTable):
    job = table.add(new())
    table.give_back(table.claim(1, size))
    assert table.get(job.id) == job


def test_progress_and_result(table: JobTable):
    table.add(new())
    (job,) = table.claim(1, size)
    table.report([job], 3, 20)
    assert (now := table.get(job.id))
    assert (now.state, now.step, now.num_steps) == ("running", 3, 20)
    table.finish(job, {"seeds": [3]})
    assert (now := table.get(job.id))
    assert (now.state, now.record, now.has_ended) == ("done", {"seeds": [3]}, True)
    assert not table.file(job.id, "picture").exists()  # the upload is not kept
    assert table.totals()["done"] == 1


@pytest.mark.parametrize("end", [lambda t, j: t.finish(j, {}), lambda t, j: t.fail(j, "why")])
def test_a_cancelled_job_stays_cancelled(table: JobTable, end: Callable[[JobTable, Job], None]):
    table.add(new())
    (job,) = table.claim(1, size)
    cancelled = table.cancel(job.id)
    assert cancelled
    assert cancelled.state == "cancelled"
    assert table.still_wanted([job]) == set()
    end(table, job)
    table.give_back([job])
    assert table.get(job.id) == cancelled


def test_a_process_that_lost_its_claim_changes_nothing(table: JobTable):
    table.add(new())
    (lost,) = table.claim(1, size)
    table.recover()
    (job,) = table.claim(1, size)
    table.fail(lost, "too late")
    table.report([lost], 1, 2)
    assert table.get(job.id) == job
    assert table.still_wanted([lost]) == set()


def test_a_queued_job_can_be_cancelled_and_an_unknown_one_is_none(table: JobTable):
    job = table.add(new())
    table.cancel(job.id)
    assert table.claim(1, size) == []
    assert table.cancel("unknown") is None


def test_old_jobs_expire_and_files_without_a_job_are_swept(table: JobTable):
    job, waiting = table.add(new()), table.add(new())
    for name, age in (("lost", 3600), ("arriving", 0)):
        home = table.folder / "files" / name
        home.mkdir()
        os.utime(home, (time.time() - age,) * 2)
    table.sweep()
    home.rmdir()  # it was left: another process may be adding a job
    table.cancel(job.id)
    assert table.expire(60) == 0
    assert table.expire(-1) == 1
    assert table.get(job.id) is None
    assert [home.name for home in (table.folder / "files").iterdir()] == [waiting.id]


def test_a_folder_serves_one_service(tmp_path: Path):
    held = lock_folder(tmp_path)
    with pytest.raises(UsageError, match="another --folder"):
        lock_folder(tmp_path)
    held.close()
    lock_folder(tmp_path).close()


def test_a_damaged_table_is_one_clear_error(tmp_path: Path):
    (tmp_path / "jobs.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(UsageError, match="another folder"):
        JobTable(tmp_path)
