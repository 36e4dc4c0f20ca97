"""`wordbrush serve` as a process: crashes, restarts, the end; and what a fuzzer makes of its description."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.serving.clients import Command, ended, wait_for
from tests.serving.load import in_time, percentile, under_load
from wordbrush.cli import main
from wordbrush.models import public_name
from wordbrush.serving.jobs import JobTable
from wordbrush.serving.starting import read_keys

_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.fixture
def asked(tmp_path: Path, picture: Image.Image) -> dict[str, Any]:
    picture.save(tmp_path / "dog.png")
    return {
        "files": {"image": ("dog.png", (tmp_path / "dog.png").read_bytes())},
        "data": {"instruction": "make it night", "steps": "300"},
    }


@pytest.mark.long
def test_what_was_accepted_is_finished_after_a_power_cut(
    tiny_checkpoint: Path, tmp_path: Path, asked: dict[str, Any]
):
    first = Command(tiny_checkpoint, tmp_path / "service", "--max-batch", "1")
    running, waiting = (first.client.post("/v1/edits", **asked).json()["id"] for _ in range(2))
    wait_for(lambda: first.client.get(f"/v1/edits/{running}").json()["step"])
    first.kill()
    second = Command(tiny_checkpoint, tmp_path / "service")
    assert [ended(second.client, edit)["status"] for edit in (running, waiting)] == ["done", "done"]
    assert second.client.get(f"/v1/edits/{running}/result").content.startswith(b"\x89PNG")
    again = second.client.post(
        "/v1/edits", **asked | {"data": {"instruction": "let it snow", "steps": "1000"}}
    )
    wait_for(lambda: second.client.get(f"/v1/edits/{again.json()['id']}").json()["step"])
    assert second.stop() in (0, -signal.SIGTERM)
    job = JobTable(tmp_path / "service").get(again.json()["id"])
    assert job
    assert job.state in ("done", "queued")  # finished in its grace, or given back


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks the process up in /proc")
def test_the_model_process_does_not_outlive_the_service(tiny_checkpoint: Path, tmp_path: Path):
    service = Command(tiny_checkpoint, tmp_path / "service")
    wait_for(lambda: service.client.get("/readyz").is_success)
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
    os.kill(service.process.pid, signal.SIGKILL)  # it alone
    service.process.wait()
    wait_for(lambda: not any(Path("/proc", child).exists() for child in children), 30)
    service.kill()


def test_a_model_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    with pytest.raises(SystemExit):
        main(["serve", "--model", str(tmp_path / "none"), "--folder", str(tmp_path)])
    assert capsys.readouterr().err.startswith("wordbrush: no model")


def test_keys_come_from_a_file(tmp_path: Path):
    (tmp_path / "keys").write_text("# ours\nfirst\n\n second \n")
    assert read_keys(tmp_path / "keys") == ["first", "second"]


def test_strangers_are_told_no_paths(tmp_path: Path):
    assert public_name(tmp_path / "model") == "model"
    assert [public_name(name) for name in ("storybook", "owner/model")] == ["storybook", "owner/model"]


def fuzz(tiny_checkpoint: Path, folder: Path, examples: int) -> None:
    service = Command(tiny_checkpoint, folder / "service", "--max-queue", "20", "--time-limit", "2")
    try:
        wait_for(lambda: service.client.get("/readyz").is_success)
        command = [str(Path(sys.executable).with_name("schemathesis")), "run"]
        command += [str(service.client.base_url.join("/openapi.json")), "--checks", _CHECKS]
        command += ["--max-examples", str(examples), "--phases", "fuzzing,stateful"]
        command += ["--seed", "1", "--no-color"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stdout[-5000:]
        assert service.client.get("/healthz").is_success
    finally:
        service.kill()


def test_the_service_does_as_its_description_says(tiny_checkpoint: Path, tmp_path: Path):
    pytest.importorskip("schemathesis")
    fuzz(tiny_checkpoint, tmp_path, 5)


@pytest.mark.long
def test_10000_requests_of_a_fuzzer(tiny_checkpoint: Path, tmp_path: Path):
    pytest.importorskip("schemathesis")
    began = time.monotonic()
    fuzz(tiny_checkpoint, tmp_path, 1000)  # of each of ten operations
    assert time.monotonic() - began < 3600


@pytest.mark.long
def test_2000_edits_by_200_clients(tiny_checkpoint: Path, tmp_path: Path, asked: dict[str, Any]):
    pytest.importorskip("psutil")
    service = Command(tiny_checkpoint, tmp_path / "service")
    try:
        wait_for(lambda: service.client.get("/readyz").is_success)
        load = under_load(service, asked["files"]["image"][1], 2000, 200, steps="1")
        assert load.flood.ends == {"done": 2000}
        assert load.flood.refused  # more clients than the queue is long
        assert percentile(load.health, 99) < 0.25
        for memory in (load.server, load.worker):
            _, before, after = in_time(memory)
            assert after < 1.05 * before
    finally:
        service.stop()


def replicas(checkpoint: Path, folder: Path) -> Command:
    """Two of them, on a Ray of their own, with their models loaded."""
    service = Command(checkpoint, folder, "--replicas", "2", "--max-batch", "1")
    wait_for(lambda: len(list(folder.glob("worker-*.sqlite"))) == 2, 300)
    return service


def accepted(service: Command, asked: dict[str, Any], count: int) -> list[str]:
    answers = [service.client.post("/v1/edits", **asked) for _ in range(count)]
    assert [answer.status_code for answer in answers] == [202] * count
    return [answer.json()["id"] for answer in answers]


@pytest.mark.long
def test_every_replica_knows_every_edit(tiny_checkpoint: Path, tmp_path: Path, asked: dict[str, Any]):
    pytest.importorskip("ray.serve", exc_type=ImportError)
    service = replicas(tiny_checkpoint, tmp_path / "service")
    try:
        asked["data"]["steps"] = "100"
        edits = accepted(service, asked, 6)
        table = JobTable(tmp_path / "service")
        wait_for(lambda: table.counts()["running"] == 2)
        for edit in edits:
            answers = [service.client.get(f"/v1/edits/{edit}").status_code for _ in range(8)]
            assert answers == [200] * 8
        assert [ended(service.client, edit)["status"] for edit in edits] == ["done"] * 6
        jobs = [job for edit in edits if (job := table.get(edit))]
        assert len({job.worker for job in jobs}) == 2
        results = [service.client.get(f"/v1/edits/{edit}/result").content for edit in edits]
        assert all(result.startswith(b"\x89PNG") for result in results)
    finally:
        service.stop(180)


@pytest.mark.long
def test_a_replica_that_is_killed_loses_no_edit(tiny_checkpoint: Path, tmp_path: Path, asked: dict[str, Any]):
    pytest.importorskip("ray.serve", exc_type=ImportError)
    psutil = pytest.importorskip("psutil")
    service = replicas(tiny_checkpoint, tmp_path / "service")
    try:
        edits = accepted(service, asked, 6)
        table = JobTable(tmp_path / "service")
        wait_for(lambda: table.counts()["running"] == 2)
        known = set((tmp_path / "service").glob("worker-*.sqlite"))
        family = psutil.Process(service.process.pid).children(recursive=True)
        victim = next(one for one in family if "ray::ServeReplica" in " ".join(one.cmdline()))
        victim.kill()
        wait_for(lambda: table.counts()["done"] == 6, 300)
        wait_for(lambda: set((tmp_path / "service").glob("worker-*.sqlite")) - known, 300)  # another one
        accepted(service, asked, 1)
        wait_for(lambda: table.counts()["done"] == 7, 120)
        results = [service.client.get(f"/v1/edits/{edit}/result") for edit in edits]
        assert [result.status_code for result in results] == [200] * 6
    finally:
        service.stop(180)
