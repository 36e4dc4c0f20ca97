"""The endpoint writer over real HTTP, against a small server that behaves well and badly."""

import gc
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from wordbrush.datagen.endpoint import EndpointWriter, Usage
from wordbrush.datagen.endpoint_client import REFUSED, TIMED_OUT, EndpointError, EndpointSettings
from wordbrush.datagen.instructions import Rejected
from wordbrush.errors import UsageError
from wordbrush.tasks import TASKS
from wordbrush.triplets import Caption, Triplet, read_triplets

EXEMPLARS = Path(__file__).parents[2] / "data" / "task_exemplars.jsonl"
Reply = tuple[int, dict[str, str], str]
CAPTIONS = [Caption(text=f"a dog on beach {number}", url=f"http://x/{number}") for number in range(12)]
EXAMPLES = [
    Triplet(caption=f"a cat {n}", edit=f"make it {n + 1}", output=f"a cat {n + 1}") for n in range(20)
]


def chat(content: str) -> Reply:
    message = {"role": "assistant", "content": content}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }
    return 200, {}, json.dumps(body)


def asked(request: dict[str, Any]) -> str:
    return request["messages"][-1]["content"]


def edits(request: dict[str, Any]) -> Reply:
    """A good answer to any caption."""
    return chat(json.dumps({"edit": "make it a cat", "output": asked(request).replace("dog", "cat")}))


def expected(caption: Caption) -> Triplet:
    output = caption.text.replace("dog", "cat")
    return Triplet(caption=caption.text, edit="make it a cat", output=output, url=caption.url)


class Server(ThreadingHTTPServer):
    """Gives the scripted replies first, then what `answer` makes of a request; remembers the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Reply] = []
        self.answer: Callable[[dict[str, Any]], Reply] = edits
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may go before it is answered
            super().handle_error(request, client_address)

    def counts(self) -> Counter[str]:
        """How often each caption was asked about."""
        return Counter(map(asked, self.requests))


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.times.append(time.monotonic())
        self.server.requests.append(request)
        self.server.keys.add(self.headers["Authorization"])
        status, headers, body = (
            self.server.script.pop(0) if self.server.script else self.server.answer(request)
        )
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def writer(server: Server, folder: Path, **settings: Any) -> EndpointWriter:
    return EndpointWriter(
        EndpointSettings(model="m", base_url=server.url, **settings), EXAMPLES, folder / "journal.jsonl"
    )


def test_it_asks_for_json_by_examples_and_writes_triplets(server: Server, tmp_path: Path):
    written = writer(server, tmp_path, num_examples=3, options={"temperature": 0.5, "top_k": 9}).write(
        CAPTIONS
    )
    assert written == [expected(caption) for caption in CAPTIONS]
    assert server.keys == {"Bearer secret-key"}
    request = server.requests[0]
    assert (request["model"], request["temperature"], request["top_k"]) == ("m", 0.5, 9)
    schema = request["response_format"]["json_schema"]["schema"]
    assert set(schema["properties"]) == set(schema["required"]) == {"edit", "output"}
    assert schema["additionalProperties"] is False
    roles = [message["role"] for message in request["messages"]]
    assert roles == ["system", *["user", "assistant"] * 3, "user"]
    shown = {message["content"] for request in server.requests for message in request["messages"][1:-1:2]}
    assert (
        shown <= {triplet.caption for triplet in EXAMPLES} and len(shown) > 6
    )  # not the same for every caption
    assert set(json.loads(request["messages"][2]["content"])) == {"edit", "output"}


def grounded(request: dict[str, Any]) -> Reply:
    output = asked(request).replace("dog", "cat")
    return chat(json.dumps({"edit": "make it a cat", "original": "dog", "edited": "cat", "output": output}))


def test_with_a_task_it_asks_for_what_the_edit_is_about(server: Server, tmp_path: Path):
    known = read_triplets(EXEMPLARS)
    settings = EndpointSettings(model="m", base_url=server.url)
    local = CAPTIONS[0].model_copy(update={"task": "local"})
    remove = CAPTIONS[1].model_copy(update={"task": "remove"})
    server.answer = grounded
    first, second = EndpointWriter(settings, known, tmp_path / "journal.jsonl").write([local, remove])
    assert isinstance(first, Triplet) and isinstance(second, Triplet)
    assert (first.task, first.original, first.edited) == ("local", "dog", "cat") and second.task == "remove"
    request = next(r for r in server.requests if asked(r) == local.text)
    schema = request["response_format"]["json_schema"]["schema"]
    assert set(schema["properties"]) == set(schema["required"]) == {"edit", "output", "original", "edited"}
    told, *shown = [message["content"] for message in request["messages"][:-1]]
    assert TASKS["local"].description in told and len(shown) == 2 * 5  # of 8 examples 60 %
    of_the_task = {triplet.caption for triplet in known if triplet.task == "local"}
    assert set(shown[::2]) <= of_the_task and set(json.loads(shown[1])) == set(schema["properties"])
    again = EndpointWriter(settings, known, tmp_path / "journal.jsonl").write([local, remove])
    assert again == [first, second] and len(server.requests) == 2


def test_an_answer_about_things_that_are_not_there_is_asked_for_anew(server: Server, tmp_path: Path):
    server.answer = grounded
    server.script = [chat('{"edit": "make it a cat", "original": "cow", "edited": "cat", "output": "a cat"}')]
    caption = CAPTIONS[0].model_copy(update={"task": "local"})
    (found,) = writer(server, tmp_path).write([caption])
    assert isinstance(found, Triplet) and found.original == "dog" and len(server.requests) == 2


def test_tokens_are_counted_and_cost_what_the_settings_say(server: Server, tmp_path: Path):
    prices: dict[str, Any] = {"input_price": 2.0, "output_price": 10.0}
    server.script = [chat("no json")]
    blocks = CAPTIONS[:3], CAPTIONS[3:4]
    first = list(writer(server, tmp_path, **prices).write_blocks(blocks))
    total = sum((block.usage for block in first), Usage())
    assert total == Usage(500, 100, pytest.approx((500 * 2 + 100 * 10) / 1e6))
    assert total.as_text() == "500 tokens read, 100 written, cost 0.00"
    again = {block.number: block for block in writer(server, tmp_path, **prices).write_blocks(blocks)}
    assert again == {block.number: block for block in first} and len(server.requests) == 5


def test_too_many_requests_wait_as_long_as_the_server_says(server: Server, tmp_path: Path):
    server.script = [(429, {"Retry-After": "0.7"}, "{}")]
    assert writer(server, tmp_path).write(CAPTIONS[:1]) == [expected(CAPTIONS[0])]
    assert len(server.times) == 2 and server.times[1] - server.times[0] >= 0.7


def test_a_server_error_is_tried_again_after_a_while(server: Server, tmp_path: Path):
    server.script = [(500, {}, "broken")]
    assert writer(server, tmp_path).write(CAPTIONS[:1]) == [expected(CAPTIONS[0])]
    assert len(server.times) == 2 and server.times[1] - server.times[0] > 0.3


def test_a_server_that_is_away_for_longer_than_openais_client_waits_is_asked_again(
    server: Server, tmp_path: Path
):
    server.script = [(503, {"Retry-After-Ms": "1"}, "{}")] * 30
    assert writer(server, tmp_path).write(CAPTIONS[:1]) == [expected(CAPTIONS[0])]
    assert len(server.requests) == 31


def test_a_server_that_stays_broken_stops_the_run_when_patience_is_over(server: Server, tmp_path: Path):
    server.answer = lambda _: (503, {"Retry-After-Ms": "10"}, "{}")
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1.*503.*run again") as caught:
        writer(server, tmp_path, patience=0.005).write(CAPTIONS[:1])
    assert 2 <= len(server.requests) <= 31 and "\n" not in str(caught.value)


@pytest.mark.parametrize("asked", ["301", "inf", "a date"])
def test_a_server_that_asks_for_more_patience_than_there_is_stops_the_run_at_once(
    server: Server, tmp_path: Path, asked: str
):
    if asked == "a date":
        asked = format_datetime(datetime.now(UTC) + timedelta(hours=1))
    server.answer = lambda _: (429, {"Retry-After": asked}, "{}")
    with pytest.raises(EndpointError, match="429"):
        writer(server, tmp_path).write(CAPTIONS[:1])
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "bad",
    [
        chat("Sure! Here is an edit."),
        chat('{"edit": "make it a cat"}'),
        chat('{"edit": "make it a cat", "output": 7}'),
        chat('{"edit": "make it nicer", "output": "a dog on beach 0."}'),
        chat('{"edit": "undress her", "output": "a nude on a beach"}'),
        (200, {}, '{"id": "1", "choices": ['),
        (200, {"Content-Type": "text/html"}, "<html>come back later</html>"),
    ],
)
def test_an_unusable_answer_is_asked_for_anew(server: Server, tmp_path: Path, bad: Reply):
    server.script = [bad, bad, bad]
    assert writer(server, tmp_path).write(CAPTIONS[:1]) == [expected(CAPTIONS[0])]
    assert len(server.requests) == 4


def test_a_caption_whose_answers_stay_unusable_is_rejected_once_for_all(server: Server, tmp_path: Path):
    server.answer = lambda request: chat(json.dumps({"edit": "keep it", "output": asked(request)}))
    for _ in range(2):
        written = writer(server, tmp_path).write(CAPTIONS[:1])
        assert written == [Rejected(CAPTIONS[0], "unchanged: both captions are the same")]
        assert len(server.requests) == 4


def test_what_is_no_such_api_is_an_error_and_not_a_rejection(server: Server, tmp_path: Path):
    server.answer = lambda _: (200, {"Content-Type": "text/html"}, "<html>hello</html>")
    with pytest.raises(EndpointError, match="base_url"):
        writer(server, tmp_path).write(CAPTIONS[:1])
    server.answer = edits
    assert writer(server, tmp_path).write(CAPTIONS[:1]) == [expected(CAPTIONS[0])]


def refusal(status: int) -> Reply:
    return status, {}, json.dumps({"error": {"message": "content filter, request id 17"}})


@pytest.mark.parametrize("status", [400, 422])
def test_a_refused_caption_is_rejected_once_for_all(server: Server, tmp_path: Path, status: int):
    refused = CAPTIONS[2].text
    server.answer = lambda request: refusal(status) if asked(request) == refused else edits(request)
    outcomes = [expected(caption) for caption in CAPTIONS]
    for _ in range(2):
        written = writer(server, tmp_path).write(CAPTIONS)
        assert written == [*outcomes[:2], Rejected(CAPTIONS[2], REFUSED), *outcomes[3:]]
        assert len(server.requests) == 12 and server.counts()[refused] == 1


def test_the_tokens_of_tries_before_a_refusal_count(server: Server, tmp_path: Path):
    writer(server, tmp_path).write(CAPTIONS[:1])
    server.script = [chat("no json"), refusal(400)]
    (block,) = writer(server, tmp_path).write_blocks([CAPTIONS[1:2]])
    assert block.outcomes == [Rejected(CAPTIONS[1], REFUSED)]
    assert (block.usage.input_tokens, block.usage.output_tokens) == (100, 20)


def test_a_caption_that_is_never_answered_in_time_is_rejected_once_for_all(server: Server, tmp_path: Path):
    slow, released = CAPTIONS[1].text, threading.Event()

    def late(request: dict[str, Any]) -> Reply:
        if asked(request) == slow:
            released.wait(60)
        return edits(request)

    server.answer = late
    for _ in range(2):
        written = writer(server, tmp_path, timeout=0.5).write(CAPTIONS[:3])
        assert written == [expected(CAPTIONS[0]), Rejected(CAPTIONS[1], TIMED_OUT), expected(CAPTIONS[2])]
        assert server.counts()[slow] == 4
    released.set()


def test_a_server_that_refuses_a_whole_block_is_an_error_and_nothing_of_it_is_kept(
    server: Server, tmp_path: Path
):
    good, bad = CAPTIONS[:4], CAPTIONS[4:]
    assert writer(server, tmp_path).write(good) == [expected(caption) for caption in good]
    kept = (tmp_path / "journal.jsonl").read_bytes()
    server.answer = lambda _: refusal(400)
    with pytest.raises(EndpointError, match="none of 8 requests .*content filter, request id 17.*mend"):
        writer(server, tmp_path).write(bad)
    with pytest.raises(EndpointError, match="none of 8 requests"):
        writer(server, tmp_path).write(CAPTIONS)  # also where an earlier run was stopped within the block
    assert (tmp_path / "journal.jsonl").read_bytes() == kept
    server.answer = edits
    assert writer(server, tmp_path).write(CAPTIONS) == [expected(caption) for caption in CAPTIONS]


def test_a_server_that_never_answered_is_at_fault_however_few_were_asked(server: Server, tmp_path: Path):
    server.answer = lambda _: refusal(422)
    with pytest.raises(EndpointError, match="none of 2 requests"):
        writer(server, tmp_path).write(CAPTIONS[:2])


def test_the_refused_rest_of_a_block_that_was_answered_before_is_rejected(server: Server, tmp_path: Path):
    more = [*CAPTIONS, *(Caption(text=f"a dog in park {number}") for number in range(8))]
    writer(server, tmp_path).write(CAPTIONS)
    server.answer = lambda _: refusal(400)
    written = writer(server, tmp_path).write(more)
    assert [isinstance(outcome, Rejected) for outcome in written] == [False] * 12 + [True] * 8


def test_a_wrong_key_is_one_clear_line_and_is_not_repeated(server: Server, tmp_path: Path):
    server.answer = lambda _: (401, {}, json.dumps({"error": {"message": "Incorrect API key"}}))
    with pytest.raises(EndpointError, match="Incorrect API key") as caught:
        writer(server, tmp_path, concurrency=1).write(CAPTIONS)
    assert len(server.requests) < 12 and "\n" not in str(caught.value)


def test_a_port_without_a_server_is_one_clear_line(server: Server, tmp_path: Path):
    dead = EndpointSettings(model="m", base_url="http://127.0.0.1:1/v1", patience=0)
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:1/v1.*Connection"):
        EndpointWriter(dead, EXAMPLES, tmp_path / "journal.jsonl").write(CAPTIONS[:1])


def test_unfit_captions_are_never_sent(server: Server, tmp_path: Path):
    unfit = [Caption(text="a nude"), Caption(text="..."), Caption(text="long " * 100)]
    written = writer(server, tmp_path).write([unfit[0], CAPTIONS[0], *unfit[1:]])
    assert [isinstance(outcome, Triplet) for outcome in written] == [False, True, False, False]
    assert server.counts() == {CAPTIONS[0].text: 1}


def test_a_second_run_asks_only_for_what_is_new(server: Server, tmp_path: Path):
    assert len(writer(server, tmp_path).write([*CAPTIONS[:5], *CAPTIONS[:5]])) == 10
    written = writer(server, tmp_path).write(CAPTIONS)
    assert written == [expected(caption) for caption in CAPTIONS]
    assert set(server.counts().values()) == {1}


def test_the_address_is_that_of_the_caption_asked_about(server: Server, tmp_path: Path):
    same = [CAPTIONS[0], CAPTIONS[0].model_copy(update={"url": "http://elsewhere"})]
    assert writer(server, tmp_path).write(same) == [expected(caption) for caption in same]
    assert len(server.requests) == 1


def test_other_settings_or_examples_ask_anew(server: Server, tmp_path: Path):
    for settings in ({}, {}, {"seed": 1}, {"options": {}}):
        writer(server, tmp_path, **settings).write(CAPTIONS[:1])
    assert len(server.requests) == 3


def test_half_a_line_at_the_end_of_the_journal_is_written_anew(server: Server, tmp_path: Path):
    writer(server, tmp_path).write(CAPTIONS[:3])
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-30])
    assert writer(server, tmp_path).write(CAPTIONS[:3]) == [expected(caption) for caption in CAPTIONS[:3]]
    assert sum(server.counts().values()) == 4 and len(journal.read_text().splitlines()) == 3
    assert "secret-key" not in journal.read_text()


@pytest.mark.parametrize("notes", ["my notes\n", "my notes", '{"request": 1}\n'])
def test_another_file_is_not_taken_for_a_journal_and_stays_as_it_is(
    server: Server, tmp_path: Path, notes: str
):
    (tmp_path / "journal.jsonl").write_text(notes)
    with pytest.raises(UsageError, match="no journal"):
        writer(server, tmp_path).write(CAPTIONS)
    assert (tmp_path / "journal.jsonl").read_text() == notes


_RUN = """
import signal, sys
from pathlib import Path
from tests.datagen.test_endpoint import CAPTIONS, EXAMPLES
from wordbrush.datagen.endpoint import EndpointWriter
from wordbrush.datagen.endpoint_client import EndpointSettings
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
settings = EndpointSettings(model="m", base_url=sys.argv[1], concurrency=2)
EndpointWriter(settings, EXAMPLES, Path(sys.argv[2]) / "journal.jsonl").write(CAPTIONS)
"""


def test_killed_and_run_again_it_repeats_no_answer(server: Server, tmp_path: Path):
    def slowly(request: dict[str, Any]) -> Reply:
        time.sleep(0.05)
        return edits(request)

    server.answer = slowly
    journal = tmp_path / "journal.jsonl"
    process = subprocess.Popen([sys.executable, "-c", _RUN, server.url, str(tmp_path)])
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 4):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = [json.loads(line)["caption"] for line in journal.read_bytes().split(b"\n")[:-1]]
    time.sleep(0.1)  # for the requests that were under way
    before = server.counts()
    assert len(CAPTIONS) > len(kept) >= 4
    written = writer(server, tmp_path).write(CAPTIONS)
    assert written == [expected(caption) for caption in CAPTIONS]
    again = server.counts() - before
    assert not set(kept) & set(again) and len(kept) + len(again) == len(CAPTIONS)


def test_a_journal_is_of_one_process_at_a_time(server: Server, tmp_path: Path):
    with (
        FileLock(tmp_path / "journal.jsonl.lock"),
        pytest.raises(UsageError, match=r"another run writes to .*journal\.jsonl: wait"),
    ):
        writer(server, tmp_path).write(CAPTIONS)


def test_it_can_be_interrupted_while_it_waits_for_a_server(server: Server, tmp_path: Path):
    never = threading.Event()

    def busy(request: dict[str, Any]) -> Reply:  # one waits for its answer, one for a server that is busy
        if asked(request) == CAPTIONS[0].text:
            never.wait(60)
        return 503, {"Retry-After": "200"}, "{}"

    server.answer = busy
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, server.url, str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and len(server.requests) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    never.set()
    assert said.strip().endswith("KeyboardInterrupt") and "never retrieved" not in said


def test_a_block_does_not_wait_for_a_slow_answer_to_another(server: Server, tmp_path: Path):
    blocks = [CAPTIONS[start : start + 2] for start in range(0, 12, 2)]
    last = threading.Event()

    def slow(request: dict[str, Any]) -> Reply:
        if asked(request) == CAPTIONS[0].text:  # is answered after all others
            assert last.wait(60)
        return edits(request)

    server.answer = slow
    found = []
    for block in writer(server, tmp_path, concurrency=2).write_blocks(blocks):
        found.append(block.number)
        assert block.outcomes == [expected(caption) for caption in blocks[block.number]]
        if len(found) == 5:
            last.set()
    assert found[-1] == 0 and sorted(found) == list(range(6))


def test_failures_of_many_blocks_at_a_time_are_one_error(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    server.answer = lambda _: (401, {}, "{}")
    with pytest.raises(EndpointError, match="401"):
        list(writer(server, tmp_path).write_blocks([[caption] for caption in CAPTIONS]))
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_requests_keep_their_distance(server: Server, tmp_path: Path):
    server.script = [(500, {"Retry-After-Ms": "1"}, "{}")]  # tries count too
    writer(server, tmp_path, requests_per_minute=60 / 0.1).write(CAPTIONS[:5])
    assert len(server.times) == 6 and max(server.times) - min(server.times) > 0.45


def test_so_many_requests_are_under_way_and_no_more(server: Server, tmp_path: Path):
    gate, busy, lock = threading.Barrier(3, timeout=20), [0], threading.Lock()
    most = 0

    def together(request: dict[str, Any]) -> Reply:
        nonlocal most
        with lock:
            busy[0] += 1
            most = max(most, busy[0])
        gate.wait()  # passes only where three are under way at a time
        with lock:
            busy[0] -= 1
        return edits(request)

    server.answer = together
    writer(server, tmp_path, concurrency=3).write(CAPTIONS)
    assert most == 3
