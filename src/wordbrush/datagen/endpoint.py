"""Instructions by any OpenAI-compatible endpoint (vLLM, Ollama, OpenAI), with a journal of answers."""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wordbrush.datagen.instructions import TRIES, Rejected, judge, unfit
from wordbrush.datagen.prompts import SHOWN, system_prompt, vary_verb
from wordbrush.errors import MissingExtraError, OutputError, UsageError, WordbrushError, one_line
from wordbrush.triplets import Caption, GroundedEdit, Triplet, WrittenEdit

try:
    import openai
    from openai.types.chat import ChatCompletion
except ModuleNotFoundError as error:
    raise MissingExtraError("an endpoint", "data") from error


class EndpointError(WordbrushError):
    """The endpoint cannot be reached, or refuses to work."""


class EndpointSettings(BaseModel):
    """Where to ask, how, how fast, and at what price. The key, if one is needed, is in OPENAI_API_KEY."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    base_url: str | None = Field(default=None, description="default OPENAI_BASE_URL, then OpenAI's own")
    options: dict[str, Any] = Field(
        default={"temperature": 0.7, "max_tokens": 256, "frequency_penalty": 0.1},
        description="further fields of each request; some models know other ones",
    )
    num_examples: int = Field(default=8, ge=0, description="triplets shown before each caption, drawn for it")
    seed: int = Field(default=0, description="of the draw of the examples")
    concurrency: int = Field(default=8, ge=1, description="requests under way at a time")
    requests_per_minute: float | None = Field(default=None, gt=0, description="none: no limit")
    timeout: float = Field(default=120.0, gt=0, description="seconds until a request is given up")
    input_price: float = Field(default=0.0, ge=0, description="of a million tokens")
    output_price: float = Field(default=0.0, ge=0, description="of a million tokens")


class Usage(NamedTuple):
    """Tokens, and what they cost in the currency of the prices."""

    input_tokens: int
    output_tokens: int
    cost: float


class Answer(BaseModel):
    """A line of the journal: a request by its hash, what came of it, and the tokens of all its tries."""

    request: str
    caption: str
    edit: str = ""
    output: str = ""
    original: str = ""
    edited: str = ""
    reason: str = Field(default="", description="why there is no edit")
    input_tokens: int = 0
    output_tokens: int = 0

    def outcome(self, caption: Caption) -> Triplet | Rejected:
        """The triplet, or why there is none, for the caption that was asked about."""
        if self.reason:
            return Rejected(caption, self.reason)
        written = self.model_dump(include={"edit", "output", "original", "edited"})
        return Triplet(caption=caption.text, url=caption.url, task=caption.task, **written)


class Journal:
    """Answers in a JSONL file, each on the disk before the next is taken; for one process at a time.

    Raises:
        UsageError: the file is something else.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            *lines, half = content.split(b"\n")  # a kill can leave half a line
            answers = _parse(path, lines, half)
            os.truncate(path, len(content) - len(half)) if half else path.touch()
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
        self.answers = {answer.request: answer for answer in answers}

    def add(self, answer: Answer) -> None:
        """Write an answer down; from any thread."""
        with self._lock:
            try:
                with self.path.open("ab") as file:
                    file.write(answer.model_dump_json().encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise OutputError(f"cannot write {self.path}: {error.strerror}") from error
            self.answers[answer.request] = answer


def _parse(path: Path, lines: list[bytes], half: bytes) -> list[Answer]:
    begins = b'{"request":"'
    try:
        if not half.startswith(begins[: len(half)]):
            raise ValueError(half)
        return [Answer.model_validate_json(line) for line in lines]
    except ValueError as error:
        raise UsageError(f"{path} is no journal of an endpoint: name another file") from error


class _RateLimit:
    """Lets requests go at even distances; from any thread."""

    def __init__(self, per_minute: float | None) -> None:
        self._distance = 60.0 / per_minute if per_minute else 0.0
        self._next, self._lock = 0.0, threading.Lock()

    def wait(self, _request: object) -> None:
        with self._lock:
            mine = max(self._next, time.monotonic())
            self._next = mine + self._distance
        time.sleep(max(0.0, mine - time.monotonic()))


class EndpointWriter:
    """Asks an endpoint for JSON of a given schema, and never twice for the same.

    Failures of transport (no connection, time-out, 429, 5xx) are repeated by OpenAI's client: up to four
    tries, with growing waits or as long as the server's Retry-After says. An answer that is rejected is asked
    for anew, up to `TRIES` times.

    Args:
        settings: where and how to ask.
        examples: triplets to show, such as the seed set.
        journal: the file that makes a run go on where it was. It holds the answers by the hash of the whole
            request, so other settings or examples ask anew.
    """

    def __init__(self, settings: EndpointSettings, examples: Sequence[Triplet], journal: Path) -> None:
        self.settings, self.examples, self.journal = settings, examples, Journal(journal)
        limit = _RateLimit(settings.requests_per_minute)
        self._client = openai.OpenAI(
            base_url=settings.base_url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",  # local servers want none
            max_retries=TRIES - 1,
            timeout=settings.timeout,
            http_client=openai.DefaultHttpxClient(event_hooks={"request": [limit.wait]}),
        )

    @property
    def usage(self) -> Usage:
        """Of all answers in the journal, this run's and earlier ones'."""
        answers = list(self.journal.answers.values())
        read = sum(answer.input_tokens for answer in answers)
        written = sum(answer.output_tokens for answer in answers)
        cost = (read * self.settings.input_price + written * self.settings.output_price) / 1e6
        return Usage(read, written, cost)

    def write(self, captions: Sequence[Caption]) -> list[Triplet | Rejected]:
        """One outcome for each caption, in their order.

        Raises:
            EndpointError: the endpoint does not work; what it answered before is in the journal.
        """
        outcomes = unfit(captions)
        requests = {i: self._request(c) for i, c in enumerate(captions) if i not in outcomes}
        keys = {i: _hash(request) for i, request in requests.items()}
        pending = {keys[i]: (captions[i], requests[i]) for i in keys if keys[i] not in self.journal.answers}
        answers = {answer.request: answer for answer in self._ask_all(pending)} | self.journal.answers
        outcomes |= {i: answers[key].outcome(captions[i]) for i, key in keys.items()}
        return [outcomes[i] for i in range(len(captions))]

    def _ask_all(self, pending: dict[str, tuple[Caption, dict[str, Any]]]) -> Iterator[Answer]:
        pool = ThreadPoolExecutor(self.settings.concurrency)
        try:
            futures = [pool.submit(self._ask, key, *asked) for key, asked in pending.items()]
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _request(self, caption: Caption) -> dict[str, Any]:
        """The body of the request for a caption; the same whenever it is made."""
        draw = random.Random(f"{self.settings.seed} {caption.task} {caption.text}")
        messages = [_message("system", system_prompt(caption.task))]
        for triplet in self._shown(caption.task, draw):
            fields = triplet.model_dump(include=set(_answer(caption).model_fields))
            answer = _answer(caption)(**fields).model_dump_json()
            messages += [_message("user", triplet.caption), _message("assistant", answer)]
        schema = {"name": "edit", "strict": True, "schema": _answer(caption).model_json_schema()}
        return {
            "model": self.settings.model,
            "messages": [*messages, _message("user", caption.text)],
            "response_format": {"type": "json_schema", "json_schema": schema},
            **self.settings.options,
        }

    def _shown(self, task: str, draw: random.Random) -> list[Triplet]:
        """Examples in a drawn order; of a task, some of its own, with other verbs now and then."""
        if not task:
            return draw.sample(self.examples, min(self.settings.num_examples, len(self.examples)))
        known = [triplet for triplet in self.examples if triplet.task == task]
        count = min(self.settings.num_examples, math.ceil(SHOWN * len(known)))
        return [t.model_copy(update={"edit": vary_verb(t.edit, draw)}) for t in draw.sample(known, count)]

    def _ask(self, key: str, caption: Caption, request: dict[str, Any]) -> Answer:
        """Asks until an answer is accepted, and writes down what came last."""
        answer = Answer(request=key, caption=caption.text)
        for _ in range(TRIES):
            try:
                reply = self._complete(request)
            except openai.BadRequestError as error:  # often a filter of contents; not journaled: ask again
                return answer.model_copy(update={"reason": f"the endpoint refuses it ({one_line(error)})"})
            if reply is not None:
                answer = _with_reply(answer, caption, reply)
            if answer.edit:
                break
        if not (answer.edit or answer.reason):
            raise EndpointError(f"{self._client.base_url} does not answer as OpenAI's API does: see base_url")
        self.journal.add(answer)
        return answer

    def _complete(self, request: dict[str, Any]) -> ChatCompletion | None:
        """The reply; None if it is damaged."""
        try:
            reply = self._client.post("/chat/completions", cast_to=ChatCompletion, body=request)
        except openai.BadRequestError:
            raise
        except openai.OpenAIError as error:
            raise EndpointError(
                f"{self._client.base_url} does not work ({one_line(error)}): run again to go on"
            ) from error
        except ValueError:  # a body that is no JSON
            return None
        return reply if isinstance(reply, ChatCompletion) and reply.choices else None  # pyright: ignore


def _with_reply(answer: Answer, caption: Caption, reply: ChatCompletion) -> Answer:
    found = _read(caption, reply.choices[0].message.content or "")
    changes: dict[str, Any] = (
        {"reason": found.reason}
        if isinstance(found, Rejected)
        else found.model_dump(include=set(GroundedEdit.model_fields)) | {"reason": ""}
    )
    if reply.usage:
        changes["input_tokens"] = answer.input_tokens + reply.usage.prompt_tokens
        changes["output_tokens"] = answer.output_tokens + reply.usage.completion_tokens
    return answer.model_copy(update=changes)


def _read(caption: Caption, content: str) -> Triplet | Rejected:
    try:
        return judge(caption, _answer(caption).model_validate_json(content))
    except ValidationError:
        return Rejected(caption, "malformed: not the JSON that was asked for")


def _answer(caption: Caption) -> type[WrittenEdit]:
    """The JSON that is asked for."""
    return GroundedEdit if caption.task else WrittenEdit


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _hash(request: dict[str, Any]) -> str:
    return sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
