"""The endpoint writer over real HTTP, against a small server that behaves well and badly."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from wordbrush.datagen.endpoint import EndpointError, EndpointSettings, EndpointWriter
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
    first = writer(server, tmp_path, **prices)
    server.script = [chat("no json")]
    first.write(CAPTIONS[:4])
    assert first.usage == (500, 100, pytest.approx((500 * 2 + 100 * 10) / 1e6))
    assert writer(server, tmp_path, **prices).usage == first.usage  # the journal remembers


def test_too_many_requests_wait_as_long_as_the_server_says(server: Server, tmp_path: Path):
    server.script = [(429, {"Retry-After": "0.7"}, "{}")]
    assert writer(server, tmp_path).write(CAPTIONS[:1]) == [expected(CAPTIONS[0])]
    assert len(server.times) == 2 and server.times[1] - server.times[0] >= 0.7


def test_a_server_error_is_tried_again_after_a_while(server: Server, tmp_path: Path):
    server.script = [(500, {}, "broken")]
    assert writer(server, tmp_path).write(CAPTIONS[:1]) == [expected(CAPTIONS[0])]
    assert len(server.times) == 2 and server.times[1] - server.times[0] > 0.3


def test_a_server_that_stays_broken_stops_the_run_after_four_tries(server: Server, tmp_path: Path):
    server.answer = lambda _: (503, {"Retry-After-Ms": "10"}, "{}")
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1.*503.*run again") as caught:
        writer(server, tmp_path).write(CAPTIONS[:1])
    assert len(server.requests) == 4 and "\n" not in str(caught.value)


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


def test_a_refused_caption_is_rejected_and_asked_again_by_the_next_run(server: Server, tmp_path: Path):
    refusal = json.dumps({"error": {"message": "content filter", "code": "content_filter"}})
    server.script = [(400, {}, refusal)]
    (rejected,) = writer(server, tmp_path).write(CAPTIONS[:1])
    assert isinstance(rejected, Rejected) and "content filter" in rejected.reason
    assert writer(server, tmp_path).write(CAPTIONS[:1]) == [expected(CAPTIONS[0])]


def test_a_wrong_key_is_one_clear_line_and_is_not_repeated(server: Server, tmp_path: Path):
    server.answer = lambda _: (401, {}, json.dumps({"error": {"message": "Incorrect API key"}}))
    with pytest.raises(EndpointError, match="Incorrect API key") as caught:
        writer(server, tmp_path, concurrency=1).write(CAPTIONS)
    assert len(server.requests) < 12 and "\n" not in str(caught.value)


def test_a_port_without_a_server_is_one_clear_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    dead = EndpointSettings(model="m", base_url="http://127.0.0.1:1/v1")
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
        writer(server, tmp_path)
    assert (tmp_path / "journal.jsonl").read_text() == notes


_RUN = """
import sys
from pathlib import Path
from tests.datagen.test_endpoint import CAPTIONS, EXAMPLES
from wordbrush.datagen.endpoint import EndpointSettings, EndpointWriter
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
