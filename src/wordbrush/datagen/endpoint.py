"""Instructions by any OpenAI-compatible endpoint (vLLM, Ollama, OpenAI), with a journal of answers."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, Field, ValidationError

from wordbrush.datagen.endpoint_client import EndpointClient, EndpointError, EndpointSettings, RequestError
from wordbrush.datagen.instructions import TRIES, Rejected, judge, unfit
from wordbrush.datagen.prompts import SHOWN, system_prompt, vary_verb
from wordbrush.errors import OutputError, UsageError
from wordbrush.triplets import Caption, GroundedEdit, Triplet, WrittenEdit

_ENOUGH = 8
"""Captions of a block, all refused, by which a server that is set up wrongly is known."""
_AHEAD = 4
"""Blocks that are under way besides those that `concurrency` fills: some wait for their last answer."""

Outcome = Triplet | Rejected


@dataclass(frozen=True)
class Usage:
    """Tokens, and what they cost in the currency of the prices."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cost + other.cost,
        )

    def as_text(self) -> str:
        """On one line."""
        return f"{self.input_tokens:,} tokens read, {self.output_tokens:,} written, cost {self.cost:,.2f}"


@dataclass(frozen=True)
class WrittenBlock:
    """A block of captions by its number, an outcome for each caption, and the tokens of all their answers."""

    number: int
    outcomes: list[Outcome]
    usage: Usage


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
    """Answers in a JSONL file, each on the disk before it counts; of one process at a time, see `journal_of`.

    Raises:
        UsageError: the file is something else.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = path.read_bytes() if path.exists() else b""
            *lines, half = content.split(b"\n")  # a kill can leave half a line
            answers = _parse(path, lines, half)
            os.truncate(path, len(content) - len(half)) if half else path.touch()
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
        self.answers = {answer.request: answer for answer in answers}

    def add(self, answer: Answer) -> None:
        """Write an answer down."""
        try:
            with self.path.open("ab") as file:
                file.write(answer.model_dump_json().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error
        self.answers[answer.request] = answer


@contextmanager
def journal_of(path: Path) -> Generator[Journal]:
    """The journal in a file, which is this process's alone meanwhile.

    Raises:
        UsageError: another process has it, or the file is something else.
        OutputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock"), timeout=0):
            yield Journal(path)
    except Timeout as error:
        raise UsageError(f"another run writes to {path}: wait for it, or name another journal") from error


def _parse(path: Path, lines: list[bytes], half: bytes) -> list[Answer]:
    begins = b'{"request":"'
    try:
        if not half.startswith(begins[: len(half)]):
            raise ValueError(half)
        return [Answer.model_validate_json(line) for line in lines]
    except ValueError as error:
        raise UsageError(f"{path} is no journal of an endpoint: name another file") from error


class EndpointWriter:
    """Asks an endpoint for JSON of a given schema; for what the journal has an answer to, it does not ask.

    An answer that is rejected is asked for anew, up to `TRIES` times.

    Args:
        settings: where and how to ask.
        examples: triplets to show, such as the seed set.
        journal: the file that makes a run go on where it was. It holds the answers by the hash of the whole
            request, so other settings or examples ask anew.
    """

    def __init__(self, settings: EndpointSettings, examples: Sequence[Triplet], journal: Path) -> None:
        self.settings, self.examples, self.journal = settings, examples, journal

    def write(self, captions: Sequence[Caption]) -> list[Outcome]:
        """One outcome for each caption, in their order.

        Raises:
            EndpointError: the endpoint does not work; what it answered before is in the journal.
        """
        (block,) = self.write_blocks([captions])
        return block.outcomes

    def write_blocks(self, blocks: Sequence[Sequence[Caption]]) -> Generator[WrittenBlock]:
        """Blocks of captions in the order in which they are done: none waits for a slow answer to another.

        Raises:
            EndpointError: the endpoint does not work, or refuses a whole block; what it answered is in the
                journal, and the refusals of blocks that are not done are not.
        """
        with journal_of(self.journal) as journal, asyncio.Runner() as runner:
            written = self._write_blocks(journal, blocks)
            while (block := runner.run(_next(written))) is not None:
                yield block

    async def _write_blocks(
        self, journal: Journal, blocks: Sequence[Sequence[Caption]]
    ) -> AsyncGenerator[WrittenBlock]:
        waiting, most = enumerate(blocks), _AHEAD + self.settings.concurrency // max(1, len(blocks[0]))
        turns = asyncio.Semaphore(self.settings.concurrency)
        under_way: set[asyncio.Task[WrittenBlock]] = set()
        async with EndpointClient(self.settings) as client:
            try:
                while True:
                    for number, captions in islice(waiting, most - len(under_way)):
                        block = self._write_block(client, turns, journal, number, captions)
                        under_way.add(asyncio.create_task(block))
                    if not under_way:
                        return
                    await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                    for task in [task for task in under_way if task.done()]:
                        yield task.result()
                        under_way.remove(task)
            finally:
                for task in under_way:
                    task.cancel()
                await asyncio.gather(*under_way, return_exceptions=True)

    async def _write_block(
        self,
        client: EndpointClient,
        turns: asyncio.Semaphore,
        journal: Journal,
        number: int,
        captions: Sequence[Caption],
    ) -> WrittenBlock:
        outcomes = unfit(captions)
        requests = {i: self._request(c) for i, c in enumerate(captions) if i not in outcomes}
        keys = {i: _hash(request) for i, request in requests.items()}
        pending = {keys[i]: i for i in keys if keys[i] not in journal.answers}

        async def ask(key: str, i: int) -> _Refusal | None:
            async with turns:
                return await _ask(client, journal, key, captions[i], requests[i])

        found = await asyncio.gather(*(ask(key, i) for key, i in pending.items()))
        refusals = [refusal for refusal in found if refusal]
        known = len(set(keys.values())) - len(pending)  # of an earlier run that was stopped in this block
        enough = len(refusals) >= _ENOUGH or not journal.answers
        if refusals and len(refusals) == len(found) > known and enough:  # it is not the captions, then
            raise EndpointError(
                f"{client.address} answers none of {len(refusals)} requests ({refusals[0].message}): mend "
                "the server or [triplets.endpoint], and run again to go on"
            )
        for refusal in refusals:
            journal.add(refusal.answer)
        answers = {key: journal.answers[key] for key in keys.values()}
        outcomes |= {i: answers[key].outcome(captions[i]) for i, key in keys.items()}
        usage = sum((self._usage(answer) for answer in answers.values()), Usage())
        return WrittenBlock(number, [outcomes[i] for i in range(len(captions))], usage)

    def _usage(self, answer: Answer) -> Usage:
        read, written = answer.input_tokens, answer.output_tokens
        cost = (read * self.settings.input_price + written * self.settings.output_price) / 1e6
        return Usage(read, written, cost)

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


async def _next(blocks: AsyncGenerator[WrittenBlock]) -> WrittenBlock | None:
    return await anext(blocks, None)


@dataclass(frozen=True)
class _Refusal:
    """What goes into the journal if it is a caption's fault, and what the server said."""

    answer: Answer
    message: str


async def _ask(
    client: EndpointClient, journal: Journal, key: str, caption: Caption, request: dict[str, Any]
) -> _Refusal | None:
    """Asks until an answer is accepted, and writes down what came last; a refusal is only handed back."""
    answer = Answer(request=key, caption=caption.text)
    for _ in range(TRIES):
        try:
            reply = await client.complete(request)
        except RequestError as error:
            return _Refusal(answer.model_copy(update={"reason": error.reason}), str(error))
        if reply is not None:
            answer = _with_reply(answer, caption, reply)
        if answer.edit:
            break
    if not (answer.edit or answer.reason):
        raise EndpointError(f"{client.address} does not answer as OpenAI's API does: see base_url")
    journal.add(answer)
    return None


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
