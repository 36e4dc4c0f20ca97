"""The process that edits, and the thread that looks after it: time limits, full disks, the end."""

import dataclasses
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.serving.clients import wait_for
from tests.serving.services import make, running
from tests.serving.test_http import LONG, png, post
from wordbrush.serving.jobs import JobTable, NewJob
from wordbrush.serving.worker import WorkerOptions, _Desk
from wordbrush.types import EditRequest, StepInfo


class SlowEditor:
    """Takes longer than a batch may, but not for one picture alone."""

    settings = None

    def with_settings(self, **_: Any) -> "SlowEditor":
        return self

    def working_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def edit_batch(self, requests: Sequence[EditRequest], *, on_step: Any) -> list[Any]:
        if len(requests) > 1:
            on_step.began -= 1000
        on_step(StepInfo(0, 2, None, list))
        raise ValueError


class NoOrders:
    since = None

    def stop(self, wait: float = 0.0) -> bool:
        return False


def test_batch_mates_of_a_slow_edit_are_tried_by_themselves(tmp_path: Path):
    table = JobTable(tmp_path)
    picture = png(Image.new("RGB", (16, 16)))
    for _ in range(2):
        table.add(NewJob(picture, (16, 16), {"instruction": "make it night", "seed": 0}))
    editor: Any = SlowEditor()
    orders: Any = NoOrders()
    desk = _Desk(WorkerOptions(tmp_path, "model", {}), table, editor, orders, "desk")
    desk.work()
    assert table.counts()["queued"] == 2
    desk.work()
    assert table.counts() == {"queued": 1, "running": 0, "done": 0, "failed": 1, "cancelled": 0}


def test_a_full_disk_does_not_end_the_service(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    service = make(tiny_checkpoint, tmp_path)
    full = True

    def failing(work: Any) -> Any:
        def tried(*arguments: Any) -> Any:
            if full:
                raise sqlite3.OperationalError("database or disk is full")
            return work(*arguments)

        return tried

    service.worker.start()
    for name in ("expire", "recover"):
        monkeypatch.setattr(service.table, name, failing(getattr(service.table, name)))
    try:
        assert service.worker.wait_until_ready(120)
        wait_for(lambda: "cannot be tidied" in caplog.text)
        assert service.worker.is_ready
        process = service.worker._process
        assert process
        process.kill()
        wait_for(lambda: not service.worker.is_ready)
        full = False
        assert service.worker.wait_until_ready(120)
    finally:
        service.worker.stop()


def test_a_stop_ends_what_waits_and_keeps_its_edits(tiny_checkpoint: Path, tmp_path: Path):
    service = make(tiny_checkpoint, tmp_path)
    service.worker.options = dataclasses.replace(service.worker.options, grace=2.0)
    file = png(Image.new("RGB", (48, 32)))
    answers: dict[str, Any] = {}

    def ask(url: httpx.URL) -> None:
        asked: Any = {"files": {"image": ("dog.png", file)}, "data": {"prompt": "make it night"}}
        answers["openai"] = httpx.post(url.join("/v1/images/edits"), timeout=60, **asked)

    def follow(url: httpx.URL) -> None:
        answers["events"] = httpx.get(url, timeout=60)

    with running(service) as client:
        wait_for(lambda: client.get("/readyz").is_success)
        first = post(client, file, **LONG | {"steps": "400"}).json()["id"]
        wait_for(lambda: client.get(f"/v1/edits/{first}").json()["step"])
        waiting = post(client, file, **LONG).json()["id"]
        events = client.base_url.join(f"/v1/edits/{waiting}/events")
        threads = [Thread(target=ask, args=(client.base_url,)), Thread(target=follow, args=(events,))]
        for thread in threads:
            thread.start()
        wait_for(lambda: service.table.counts()["queued"] == 2)
        began = time.monotonic()
    assert time.monotonic() - began < service.worker.options.grace + 12
    for thread in threads:
        thread.join()
    assert (answers["openai"].status_code, answers["openai"].json()["error"]["code"]) == (503, "stopping")
    assert "event: error" in answers["events"].text
    counts = service.table.counts()
    assert counts["queued"] + counts["done"] == 3
    assert counts["queued"] >= 2
