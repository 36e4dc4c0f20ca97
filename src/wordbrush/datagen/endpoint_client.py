"""One request to an OpenAI-compatible endpoint, with patience for what passes by itself."""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from wordbrush.datagen.instructions import TRIES
from wordbrush.errors import MissingExtraError, WordbrushError, one_line

try:
    import openai
    from openai.types.chat import ChatCompletion
except ModuleNotFoundError as error:
    raise MissingExtraError("an endpoint", "data") from error

REFUSED = "refused by the endpoint"
TIMED_OUT = "not answered by the endpoint in time"
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0  # seconds


class EndpointError(WordbrushError):
    """The endpoint cannot be reached, or refuses to work."""


class RequestError(Exception):
    """One request has no answer; `reason` is `REFUSED` or `TIMED_OUT`, the message the server's."""

    def __init__(self, reason: str, error: openai.OpenAIError) -> None:
        super().__init__(one_line(error))
        self.reason = reason


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
    concurrency: int = Field(default=8, ge=1, description="captions asked about at a time")
    requests_per_minute: float | None = Field(default=None, gt=0, description="none: no limit")
    timeout: float = Field(default=120.0, gt=0, description="seconds until a request is given up")
    patience: float = Field(
        default=5.0, ge=0, description="minutes for which a server that is away or too busy is tried again"
    )
    journal: Path | None = Field(
        default=None, description="file of answers that later runs may use too; default: in the work folder"
    )
    input_price: float = Field(default=0.0, ge=0, description="of a million tokens")
    output_price: float = Field(default=0.0, ge=0, description="of a million tokens")


class EndpointClient:
    """Sends requests at even distances, for as long as it is entered; for one event loop.

    Args:
        settings: where, how fast, and how patiently.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings = settings
        self._next = 0.0
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",  # local servers want none
            max_retries=0,  # its own are over after some seconds, and a server takes minutes to start again
            timeout=settings.timeout,
        )

    async def __aenter__(self) -> EndpointClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    @property
    def address(self) -> str:
        """Of the endpoint."""
        return str(self._client.base_url)

    async def complete(self, request: Mapping[str, Any]) -> ChatCompletion | None:
        """The reply to the body of a request; None if it is damaged.

        No connection, 429, 5xx and the like are tried again, after as long as the server's Retry-After says
        or else growing waits, until one would end `patience` minutes after the first failure.

        Raises:
            RequestError: a 400 or 422, or four times no answer within `timeout`.
            EndpointError: patience is over, or the failure is none that passes.
        """
        end, timeouts, failures = math.inf, 0, 0
        while True:
            await self._wait_for_turn()
            try:
                return await self._send(request)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                raise RequestError(REFUSED, error) from error
            except openai.OpenAIError as error:
                if _took_too_long(error):
                    timeouts += 1
                    if timeouts == TRIES:
                        raise RequestError(TIMED_OUT, error) from error
                    continue
                wait = _wait(error, failures)
                end = end if failures else time.monotonic() + 60 * self.settings.patience
                if wait is None or time.monotonic() + wait > end:
                    raise EndpointError(
                        f"{self.address} does not work ({one_line(error)}): run again to go on"
                    ) from error
                failures += 1
            await asyncio.sleep(wait)

    async def _send(self, request: Mapping[str, Any]) -> ChatCompletion | None:
        try:
            reply = await self._client.post("/chat/completions", cast_to=ChatCompletion, body=request)
        except ValueError:  # a body that is no JSON
            return None
        return reply if isinstance(reply, ChatCompletion) and reply.choices else None  # pyright: ignore

    async def _wait_for_turn(self) -> None:
        per_minute = self.settings.requests_per_minute
        if per_minute:
            mine = max(self._next, time.monotonic())
            self._next = mine + 60.0 / per_minute
            await asyncio.sleep(mine - time.monotonic())


def _took_too_long(error: openai.OpenAIError) -> bool:
    """Whether the server was there, but gave no answer in time."""
    there = type(error.__cause__).__name__ != "ConnectTimeout"  # of httpx or of its successor
    return isinstance(error, openai.APITimeoutError) and there


def _wait(error: openai.OpenAIError, failures: int) -> float | None:
    """Seconds until the next try after so many others; None if no further try would help."""
    if isinstance(error, openai.APIStatusError):
        if error.status_code < 500 and error.status_code not in (408, 409, 429):
            return None
        if asked := _retry_after(error.response.headers):
            return asked
    elif not isinstance(error, openai.APIConnectionError):
        return None
    return min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(failures, 10)) * random.uniform(0.75, 1)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait; 0 if it does not say, or not clearly."""
    milliseconds, after = headers.get("retry-after-ms"), headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(after) if milliseconds is None else float(milliseconds) / 1000)
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    return 0.0
