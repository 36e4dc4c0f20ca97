"""The service over real HTTP: uvicorn on loopback, a real queue, a tiny model in a process of its own."""

import base64
import contextlib
import dataclasses
import io
import os
import signal
import socket
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image, PngImagePlugin

import wordbrush
from tests.serving.clients import ended, events, wait_for
from tests.serving.load import flood
from tests.serving.services import SETTINGS, make, running
from wordbrush.controls import controls
from wordbrush.images import open_image
from wordbrush.languages.tables import TableTranslator
from wordbrush.provenance import read_provenance
from wordbrush.serving import connections, uploads
from wordbrush.serving.http import build
from wordbrush.serving.service import Keys, Limits, Service
from wordbrush.serving.uploads import Room

LONG = {"steps": "1000", "size": "128"}
"""Settings of an edit that does not end by itself within a test."""


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def file(picture: Image.Image) -> bytes:
    return png(picture)


@pytest.fixture(scope="module")
def service(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    limits = Limits(max_bytes=200_000, max_pixels=100_000, max_size=256)
    return make(tiny_checkpoint, tmp_path_factory.mktemp("service"), limits=limits, max_queue=50)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with running(service) as client:
        wait_for(lambda: client.get("/readyz").is_success)
        yield client


def post(client: httpx.Client, file: bytes, **fields: Any) -> httpx.Response:
    fields = {"instruction": "make it night", "seed": "3", **fields}
    return client.post("/v1/edits", files={"image": ("dog.png", file)}, data=fields)


def test_an_edit_from_request_to_result(
    client: httpx.Client, file: bytes, tiny_checkpoint: Path, tmp_path: Path
):
    accepted = post(client, file, text_scale="5", num_variations="2")
    assert accepted.status_code == 202
    status = ended(client, accepted.json()["id"])
    assert (status["status"], status["seeds"], status["num_results"]) == ("done", [3, 4], 2)
    assert status["settings"]["text_scale"] == 5
    editor = wordbrush.load(tiny_checkpoint, **SETTINGS, text_scale=5)
    expected = editor.edit(
        wordbrush.EditRequest(open_image(file).image, "make it night", seed=3, num_variations=2)
    )
    for index, image in enumerate(expected.images):
        reply = client.get(f"/v1/edits/{status['id']}/result", params={"index": index})
        assert reply.headers["content-type"] == "image/png"
        got = np.asarray(Image.open(io.BytesIO(reply.content)), dtype=int)
        assert np.abs(got - np.asarray(image, dtype=int)).max() <= 2
    (tmp_path / "result.png").write_bytes(reply.content)
    record = read_provenance(tmp_path / "result.png")["settings"]
    assert record["model"] == tiny_checkpoint.name
    assert str(tiny_checkpoint.parent) not in str(record)


def test_json_does_the_same(client: httpx.Client, file: bytes):
    image = base64.b64encode(file).decode()
    mask = base64.b64encode(png(Image.new("L", (48, 32)))).decode()
    asked = {"image": image, "mask": mask, "instruction": "make it night", "seed": 3, "steps": 1}
    status = ended(client, client.post("/v1/edits", json=asked).json()["id"])
    result = Image.open(io.BytesIO(client.get(f"/v1/edits/{status['id']}/result").content))
    assert np.array_equal(np.asarray(result), np.asarray(open_image(file).image))  # black: nothing may change


def test_instructions_in_other_languages(client: httpx.Client, file: bytes):
    status = ended(client, post(client, file, instruction="mach es zur Nacht").json()["id"])
    assert status["status"] == "done"
    assert "was read as “make it night”" in status["warnings"][0]
    record = {"said": "mach es zur Nacht", "said_in": "de", "instruction": "make it night"}
    assert record.items() <= status["settings"].items()
    assert status["settings"]["translator"]


def test_what_was_understood_is_said_at_once(client: httpx.Client, file: bytes):
    accepted = post(client, file, instruction="mach es zur Nacht").json()
    assert (accepted["status"], accepted["english"]) == ("queued", "make it night")
    assert "was read as" in accepted["warnings"][0]
    reply = post(client, file, instruction="把沙发变成熊猫")
    assert reply.status_code == 400
    assert "not understood (zh): “沙发”" in reply.json()["error"]["message"]


def test_progress_is_streamed_until_the_end(client: httpx.Client, file: bytes):
    edit = post(client, file, steps="30").json()["id"]
    reply = client.get(f"/v1/edits/{edit}/events")
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = events(reply.text)
    assert [name for name, _ in found[:-1]] == ["progress"] * (len(found) - 1)
    assert found[-1][0] == "done"
    steps = [data["step"] for _, data in found]
    assert steps == sorted(steps)
    assert steps[-1] == 30


def test_a_running_edit_can_be_cancelled(client: httpx.Client, service: Service, file: bytes):
    edit = post(client, file, **LONG).json()["id"]
    wait_for(lambda: client.get(f"/v1/edits/{edit}").json()["step"])
    assert client.delete(f"/v1/edits/{edit}").json()["status"] == "cancelled"
    after = ended(client, post(client, file).json()["id"])  # the model is free again
    assert after["status"] == "done"
    assert client.get(f"/v1/edits/{edit}/result").json()["error"]["code"] == "not_done"
    assert service.worker.restarts == 0


def test_an_edit_that_has_ended_can_be_deleted(client: httpx.Client, service: Service, file: bytes):
    edit = ended(client, post(client, file).json()["id"])["id"]
    assert service.table.file(edit, "0.png").exists()
    assert client.delete(f"/v1/edits/{edit}").json()["status"] == "done"
    assert client.get(f"/v1/edits/{edit}").status_code == 404
    assert not service.table.file(edit, "").exists()


def test_a_stream_says_that_its_edit_was_deleted(client: httpx.Client, service: Service, file: bytes):
    edit = post(client, file, **LONG).json()["id"]
    with client.stream("GET", f"/v1/edits/{edit}/events") as reply:
        lines = reply.iter_lines()
        next(lines)
        with sqlite3.connect(service.table.folder / "jobs.sqlite") as base:
            base.execute("DELETE FROM jobs WHERE id = ?", (edit,))
        base.close()
        text = "\n".join(lines)
    assert "event: error" in text
    assert "no such edit any more" in text


def test_small_things_of_http(client: httpx.Client, file: bytes):
    reply = post(client, file)
    assert reply.headers["location"] == f"/v1/edits/{reply.json()['id']}"
    assert client.head("/healthz").status_code == 200
    reply = client.get("/v1/edits/", follow_redirects=False)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")


def test_every_setting_of_the_method_is_offered_but_none_of_files(client: httpx.Client):
    model = client.get("/v1/models").json()["data"][0]
    names = [setting["name"] for setting in model["settings"]]
    assert names == [control.name for control in controls(wordbrush.InstructPix2PixSettings)]
    hidden = {control.name for control in controls(wordbrush.METHODS["emu-edit"].settings) if control.local}
    assert hidden == {"task_predictor", "task_file"}
    body = client.get("/openapi.json").json()["paths"]["/v1/edits"]["post"]["requestBody"]["content"]
    for kind in ("application/json", "multipart/form-data"):
        assert set(names) < set(body[kind]["schema"]["properties"])
    example = body["application/json"]["example"]
    assert ended(client, client.post("/v1/edits", json=example).json()["id"])["status"] == "done"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"instruction": " "}, "needs instruction"),
        ({"instruction": "x" * 3000}, "instruction"),
        ({"seed": "many"}, "seed"),
        ({"seed": "-1"}, "seed"),
        ({"num_variations": "11"}, "num_variations"),
        ({"steps": "0"}, "steps"),
        ({"size": "512"}, "256 pixels at most"),
        ({"scheduler": "magic"}, "euler-a"),
        ({"guidance_start": "0.9", "guidance_end": "0.1"}, "after"),
        ({"magic": "1"}, "unknown field 'magic'"),
        ({"mask": "/etc/passwd"}, "not a path"),
    ],
)
def test_mistakes_are_one_clear_object(client: httpx.Client, file: bytes, fields: dict[str, str], words: str):
    reply = post(client, file, **fields)
    assert reply.status_code == 400
    assert set(reply.json()) == {"error"}
    error = reply.json()["error"]
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"not a picture", 400, "invalid_image"),
        (b"", 400, "invalid_image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), 400, "invalid_image"),
        (bytes(300_000), 413, "request_too_large"),
    ],
)
def test_bad_files_are_refused(client: httpx.Client, body: bytes, status: int, code: str):
    reply = post(client, body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(client: httpx.Client):
    bomb = png(Image.new("1", (30_000, 30_000)))
    assert len(bomb) < 200_000
    reply = post(client, bomb)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_image")
    assert "100000" in reply.json()["error"]["message"]


def tiff_of_large_tiles(side: int) -> bytes:
    """A picture of 64x64 whose one tile is `side` pixels wide and high."""
    packed = zlib.compress(bytes(side * side))
    entries = [(256, 64), (257, 64), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side)]
    entries += [(324, 8 + 2 + 12 * 10 + 4), (325, len(packed))]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, 10) + table + bytes(4) + packed


def icon(side: int) -> bytes:
    """An icon that calls itself 16x16 and holds a PNG of that side."""
    inside = png(Image.new("1", (side, side)))
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22) + inside


@pytest.mark.parametrize("bomb", [tiff_of_large_tiles(2000), icon(2000)])
def test_formats_that_hold_more_than_they_say_are_not_read(client: httpx.Client, bomb: bytes):
    reply = post(client, bomb)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_image")
    assert "known format" in reply.json()["error"]["message"]  # not its size: it was not opened


def test_json_of_countless_values_is_refused_unparsed(client: httpx.Client):
    body = b'{"instruction":[' + b"[]," * 60_000 + b"[]]}"
    reply = client.post("/v1/edits", content=body, headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["message"]) == (400, "the body has too many values")


def test_json_is_parsed_in_a_thread(client: httpx.Client, monkeypatch: pytest.MonkeyPatch, file: bytes):
    threads: list[str] = []
    parse = uploads.json.loads

    def noted(body: bytes) -> Any:
        threads.append(threading.current_thread().name)
        return parse(body)

    monkeypatch.setattr(uploads.json, "loads", noted)
    asked = {"image": base64.b64encode(file).decode(), "instruction": " "}
    assert client.post("/v1/edits", json=asked).status_code == 400
    assert any(name.startswith("decoding") for name in threads)


def test_a_form_in_an_unknown_charset(client: httpx.Client):
    part = b'--b\r\nContent-Disposition: form-data; name="instruction"\r\n\r\n\xff\xfe\r\n--b--\r\n'
    for charset in ("undefined", "punycode"):
        headers = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}
        assert client.post("/v1/edits", content=part, headers=headers).status_code == 400


def test_the_sum_of_all_results_is_bounded(client: httpx.Client):
    large = png(Image.new("RGB", (300, 300)))  # of 100,000 pixels; results may have four times those
    reply = post(client, large, num_variations="5")
    assert reply.status_code == 400
    assert "of a picture of 300x300 it may be 4" in reply.json()["error"]["message"]


def raw(client: httpx.Client, *, send: bytes) -> socket.socket:
    """A connection over which that was sent."""
    connection = socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=30)
    connection.sendall(send)
    return connection


HEAD = b"POST /v1/edits HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def test_a_body_too_large_is_refused_before_it_is_sent(client: httpx.Client):
    for expect in (b"", b"Expect: 100-continue\r\n"):
        with raw(client, send=HEAD + expect + b"Content-Length: 40000000\r\n\r\n") as connection:
            began = time.monotonic()
            assert connection.recv(1000).startswith(b"HTTP/1.1 413")
            assert time.monotonic() - began < uploads.DRAIN_SECONDS


def test_clients_that_are_slow_are_dropped(client: httpx.Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(uploads, "BODY_SECONDS", 0.5)
    monkeypatch.setattr(uploads, "DRAIN_SECONDS", 0.5)
    with raw(client, send=b"GET /healthz HTTP/1.1\r\nHo") as half, raw(client, send=b"") as silent:
        for connection in (half, silent):
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1000) == b""
    with raw(client, send=HEAD + b'Content-Length: 1000\r\n\r\n{"') as trickle:
        assert trickle.recv(1000).startswith(b"HTTP/1.1 408")


def test_too_many_connections_are_refused(client: httpx.Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 0)
    with raw(client, send=b"") as connection:
        reply = connection.recv(1000)
    assert reply.startswith(b"HTTP/1.1 503")
    assert b"\r\nRetry-After: 5\r\n" in reply


def test_too_many_uploads_at_once_are_refused(client: httpx.Client, service: Service, file: bytes):
    service.__dict__["room"] = Room(10)  # where it caches the one of its limits
    try:
        reply = post(client, file)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "busy")
        assert reply.headers["retry-after"] == "5"
    finally:
        del service.__dict__["room"]
    assert post(client, file).status_code == 202


def test_a_kept_connection_answers_without_delay(client: httpx.Client):
    def seconds() -> float:
        began = time.monotonic()
        client.get("/healthz").raise_for_status()
        return time.monotonic() - began

    assert sorted(seconds() for _ in range(30))[10] < 0.03  # else 0.04 each, all but the first few


def test_a_connection_is_kept_until_after_its_client_gives_it_up(service: Service):
    server = connections.make_server(build(service), service.worker)
    assert server.config.timeout_keep_alive > 2 * (httpx.Limits().keepalive_expiry or 0) > 0


def test_a_client_that_hangs_up_is_no_error(client: httpx.Client, caplog: pytest.LogCaptureFixture):
    with raw(client, send=HEAD + b'Content-Length: 1000\r\n\r\n{"'):
        time.sleep(0.2)
    wait_for(lambda: 'path="/v1/edits",status="499"' in client.get("/metrics").text)
    assert not caplog.records


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://example.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "rebound.example.org"}, 403),
        ({"Host": "rebound.example.org", "Origin": "http://rebound.example.org"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "[::1]:8000"}, 200),
    ],
)
def test_pages_of_other_sites_may_not_call(client: httpx.Client, headers: dict[str, str], status: int):
    assert client.get("/v1/models", headers=headers).status_code == status


def test_a_streamed_body_is_counted(client: httpx.Client):
    chunks = (b"x" * 10_000 for _ in range(50))  # no Content-Length
    headers = {"Content-Type": "application/json"}
    assert client.post("/v1/edits", content=chunks, headers=headers).status_code == 413


@pytest.mark.parametrize(
    ("call", "status"),
    [
        (("GET", "/v1/edits/unknown"), 404),
        (("GET", "/v1/edits/..%2f..%2fjobs.sqlite/result"), 404),
        (("GET", "/nowhere"), 404),
        (("PUT", "/v1/edits"), 405),
        (("POST", "/v1/edits"), 415),
    ],
)
def test_other_errors_have_the_same_shape(client: httpx.Client, call: tuple[str, str], status: int):
    reply = client.request(*call)
    assert reply.status_code == status
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [b"{", b"[]", b"[" * 100_000, b'{"image": "http://example.org/a.png"}'])
def test_json_that_makes_no_sense(client: httpx.Client, body: bytes):
    reply = client.post("/v1/edits", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400


def test_the_kind_of_a_picture_is_in_its_bytes_not_in_its_name(client: httpx.Client, picture: Image.Image):
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG")
    files = {"image": ("dog.txt", jpeg.getvalue(), "text/plain")}
    reply = client.post("/v1/edits", files=files, data={"instruction": "make it night"})
    assert reply.status_code == 202


def test_metrics_count(client: httpx.Client, file: bytes):
    ended(client, post(client, file).json()["id"])
    text = client.get("/metrics").text
    assert 'wordbrush_jobs{state="queued"} 0.0' in text
    assert 'wordbrush_requests_total{method="POST",path="/v1/edits",status="202"}' in text
    assert "wordbrush_ready 1.0" in text


def test_web_pages_of_other_origins_are_not_let_in_by_default(client: httpx.Client):
    reply = client.get("/v1/models", headers={"Origin": "https://example.org"})
    assert "access-control-allow-origin" not in reply.headers


def test_a_killed_model_process_is_replaced_and_its_edit_is_finished(
    client: httpx.Client, service: Service, file: bytes
):
    edit = post(client, file, steps="300").json()["id"]
    wait_for(lambda: client.get(f"/v1/edits/{edit}").json()["step"])
    assert service.worker.pid
    os.kill(service.worker.pid, signal.SIGKILL)
    assert ended(client, edit)["status"] == "done"
    job = service.table.get(edit)
    assert job
    assert job.attempts == 2


def test_many_clients_at_once(client: httpx.Client, file: bytes):
    found = flood(str(client.base_url), file, 40, 10, steps="1")
    assert found.ends == {"done": 40}


@pytest.fixture
def sdk(client: httpx.Client) -> openai.OpenAI:
    return openai.OpenAI(api_key="none", base_url=str(client.base_url.join("/v1")), max_retries=0)


def decoded(reply: Any) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(item.b64_json))) for item in reply.data]


def test_openai_client(sdk: openai.OpenAI, file: bytes, service: Service):
    name = service.model_name
    assert [model.id for model in sdk.models.list()] == [name]
    asked: Any = {"image": ("dog.png", file), "prompt": "make it night", "n": 2, "model": name}
    reply = sdk.images.edit(**asked, size="auto", response_format="b64_json", extra_body={"seed": 3})
    assert [picture.size for picture in decoded(reply)] == [(48, 32)] * 2


def test_openai_parameters_that_do_no_harm_are_ignored(sdk: openai.OpenAI, file: bytes):
    asked: Any = {"image": ("dog.png", file), "prompt": "make it night", "model": "gpt-image-1"}
    reply: Any = sdk.images.edit(**asked, quality="high", input_fidelity="high", background="auto", user="me")
    warnings = " ".join(reply.warnings)
    assert "quality was ignored input_fidelity was ignored the model is" in warnings
    assert "background" not in warnings


def test_openai_json(client: httpx.Client, file: bytes):
    image = base64.b64encode(file).decode()
    asked = {"image": image, "prompt": "make it night", "n": 2, "steps": 1, "size": "48x32"}
    assert len(client.post("/v1/images/edits", json=asked).json()["data"]) == 2
    body = client.get("/openapi.json").json()["paths"]["/v1/images/edits"]["post"]["requestBody"]
    properties = body["content"]["multipart/form-data"]["schema"]["properties"]
    assert {"seed", "steps", "text_scale", "prompt"} < set(properties)


def test_openai_pictures_are_decoded_by_the_two_threads_for_it(
    sdk: openai.OpenAI, file: bytes, monkeypatch: pytest.MonkeyPatch
):
    threads: list[str] = []
    read = uploads.open_image

    def noted(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread().name.rpartition("_")[0])
        return read(*arguments, **options)

    monkeypatch.setattr(uploads, "open_image", noted)
    with pytest.raises(openai.BadRequestError, match="the picture's size, 48x32"):
        sdk.images.edit(image=("dog.png", file), prompt="make it night", size="1024x1024")
    assert threads == ["decoding"]


def test_openai_mask_is_transparent_where_it_may_change(sdk: openai.OpenAI, file: bytes):
    mask = Image.new("RGBA", (48, 32), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 24, 32))
    reply = sdk.images.edit(image=[("dog.png", file)], mask=png(mask), prompt="make it night")  # image[]
    before, after = np.asarray(open_image(file).image), np.asarray(decoded(reply)[0])
    assert np.array_equal(before[:, 24:], after[:, 24:])
    assert not np.array_equal(before[:, :24], after[:, :24])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"size": "1024x1024"}, "the picture's size, 48x32"),
        ({"response_format": "url"}, "b64_json"),
        ({"model": "storybook-9"}, "one model"),
        ({"output_format": "webp"}, "knows png"),
        ({"mask": png(Image.new("RGB", (48, 32)))}, "transparen"),
        ({"mask": png(Image.new("RGBA", (32, 32)))}, "must be the same"),
        ({"n": 11}, "num_variations"),
        ({"prompt": ""}, "prompt|instruction"),
    ],
)
def test_openai_mistakes(sdk: openai.OpenAI, file: bytes, wrong: dict[str, Any], words: str):
    asked: Any = {"image": ("dog.png", file), "prompt": "make it night", **wrong}
    with pytest.raises(openai.APIStatusError, match=words):
        sdk.images.edit(**asked)


def test_several_pictures_are_refused(sdk: openai.OpenAI, file: bytes):
    with pytest.raises(openai.BadRequestError, match="given twice"):
        sdk.images.edit(image=[("a.png", file), ("b.png", file)], prompt="make it night")


def test_an_openai_client_that_goes_away_cancels(client: httpx.Client, service: Service, file: bytes):
    before = service.table.counts()["cancelled"]
    with pytest.raises(httpx.ReadTimeout):
        client.post(
            "/v1/images/edits",
            files={"image": ("dog.png", file)},
            data={"prompt": "make it night", "steps": "1000"},
            timeout=1,
        )
    wait_for(lambda: service.table.counts()["cancelled"] > before)


def test_a_service_of_its_own_rules(tiny_checkpoint: Path, tmp_path: Path, file: bytes):
    """Keys, owners, CORS, a queue of one, and a time limit."""
    options: dict[str, Any] = {"keys": Keys(["first", "second"]), "max_queue": 1, "time_limit": 1.0}
    service = make(tiny_checkpoint, tmp_path, **options)
    with running(service, cors_origins=["https://example.org"]) as client:
        assert client.get("/healthz").is_success
        reply = client.get("/v1/models")
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        for key in ("wrong", "first\u00e9"):
            headers = [(b"authorization", f"Bearer {key}".encode())]
            assert client.get("/v1/models", headers=headers).status_code == 401
        client.headers["Authorization"] = "Bearer first"
        reply = client.get("/v1/models", headers={"Origin": "https://example.org"})
        assert reply.headers["access-control-allow-origin"] == "https://example.org"
        waiting = post(client, file, **LONG)  # the model is still loading, most likely; else it runs
        full = wait_for(lambda: (r := post(client, file, **LONG)).status_code == 429 and r)
        assert int(full.headers["retry-after"]) >= 1
        assert full.json()["error"]["type"] == "rate_limit_error"
        edit = waiting.json()["id"]
        other = client.get(f"/v1/edits/{edit}", headers={"Authorization": "Bearer second"})
        assert other.status_code == 404
        status = ended(client, edit)
        assert status["status"] == "failed"
        assert "longer than 1 s" in status["error"]["message"]


def test_the_translator_is_loaded_before_the_first_instruction_and_nothing_waits_for_it(
    tiny_checkpoint: Path, tmp_path: Path, file: bytes
):
    loading, may_go_on = threading.Event(), threading.Event()

    class Slow:
        def encode(self, texts: list[str]) -> Any:
            loading.set()
            assert may_go_on.wait(120)
            raise MemoryError

    service = dataclasses.replace(make(tiny_checkpoint, tmp_path), translator=TableTranslator(Slow()))
    with running(service) as client:
        assert loading.wait(60)
        assert client.get("/healthz").is_success
        assert post(client, file).status_code == 202
        may_go_on.set()
        assert post(client, file, instruction="mach es zur Nacht").json()["english"] == "make it night"


def test_a_file_that_claims_to_be_a_picture_with_text_is_one(client: httpx.Client, picture: Image.Image):
    """Metadata of an upload is not taken for a record of ours."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("wordbrush", '{"settings": {"model": "/etc/passwd"}}')
    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=info)
    status = ended(client, post(client, file.getvalue()).json()["id"])
    assert b"/etc/passwd" not in client.get(f"/v1/edits/{status['id']}/result").content
