"""What the service does with a request, whatever the protocol: checks it, takes it, follows the job."""

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from wordbrush.editors import Method
from wordbrush.editors.asked import Asked
from wordbrush.editors.settings import make_settings
from wordbrush.errors import UsageError
from wordbrush.serving.fields import fields_model, parse_fields, split_settings
from wordbrush.serving.jobs import Job, JobTable, NewJob
from wordbrush.serving.replies import ApiError
from wordbrush.serving.uploads import Upload, open_pictures
from wordbrush.serving.worker import Worker

_SLOWEST_LOOK = 0.5
"""Most seconds between two looks at a job that is followed."""


@dataclass(frozen=True)
class Limits:
    """What one request may take."""

    max_bytes: int = 32 * 2**20
    """Of a request's body."""
    max_pixels: int = 25_000_000
    """Of a picture."""
    max_size: int = 1024
    """Of the setting `size`, in pixels."""


class Keys:
    """The API keys that let in; with none, everybody is.

    Args:
        keys: as they were handed out.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, given: str) -> str | None:
        """A name for the holder of a key; None for a wrong one. Its time says nothing of the keys."""
        digest = sha256(given.encode(errors="surrogateescape")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest.hex() if any(matches) else None


@dataclass(frozen=True)
class Service:
    """A model, its queue, and the rules of who may ask what of it."""

    method: Method
    defaults: Any
    """An instance of the method's settings: what holds where a request says nothing."""
    table: JobTable
    worker: Worker
    limits: Limits = Limits()
    keys: Keys = Keys()

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.worker.options.model_name

    @cached_property
    def fields(self) -> type[BaseModel]:
        """All that a request may say besides its pictures."""
        return fields_model(self.method.settings, vars(self.defaults))

    async def accept(self, upload: Upload, *, owner: str = "", transparent_changes: bool = False) -> Job:
        """Check a request and take it as a job.

        Raises:
            UsageError: a field, or the combination of them, makes no sense.
            ImageError: a picture cannot be used.
            QueueFullError: too many are waiting.
            ApiError: another model is asked for.
        """
        values = parse_fields(self.fields, upload.fields)
        if values.get("model") not in (None, "", self.model_name):
            raise ApiError(404, f"this service has one model: {self.model_name}", code="model_not_found")
        asked, settings = split_settings(values)
        self._check_settings(settings)
        await run_in_threadpool(self.table.check_room)  # before the work of decoding
        picture, mask = await open_pictures(
            upload, max_pixels=self.limits.max_pixels, transparent_changes=transparent_changes
        )
        self.method.check(Asked(**asked).request(picture.image))
        if asked.get("seed") is None:
            asked["seed"] = secrets.randbelow(2**31)  # now: a second attempt has to give the same
        new = NewJob(
            upload.pictures["image"],
            picture.image.size,
            asked,
            settings,
            values.get("num_variations", 1),
            mask,
            owner,
        )
        return await run_in_threadpool(self.table.add, new)

    async def job(self, job_id: str, owner: str = "") -> Job:
        """A job of that owner; an `ApiError` if there is none."""
        job = await run_in_threadpool(self.table.get, job_id)
        if job is None or job.owner != owner:
            raise ApiError(404, "there is no such edit, or its time is over")
        return job

    async def follow(self, job_id: str) -> AsyncGenerator[Job]:
        """The job, looked at again and again until it has ended, ever less often."""
        pause = 0.02
        while (job := await run_in_threadpool(self.table.get, job_id)) is not None:
            yield job
            if job.has_ended:
                return
            await asyncio.sleep(pause)
            pause = min(_SLOWEST_LOOK, 1.2 * pause)

    async def result(self, job: Job, index: int) -> bytes:
        """A result of a job as PNG.

        Raises:
            ApiError: the job is not done, or has no such result.
        """
        if job.state == "failed":
            # Not 409 nor 5xx: OpenAI's clients would try it again.
            raise ApiError(422, job.error or "the edit failed", code="edit_failed")
        if job.state != "done":
            raise ApiError(409, f"the edit is {job.state}: there is no result", code="not_done")
        if index >= job.num_results:
            raise ApiError(404, f"the edit has {job.num_results} results; index counts from 0")
        try:
            return await run_in_threadpool(self.table.file(job.id, f"{index}.png").read_bytes)
        except FileNotFoundError:
            raise ApiError(404, "there is no such edit, or its time is over") from None

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        make_settings(self.method.settings, vars(self.defaults) | dict(settings))
        size = settings.get("size")
        if size is not None and size > self.limits.max_size:
            raise UsageError(f"size is {size}: this service works at {self.limits.max_size} pixels at most")


STARTED = int(time.time())
"""When this process began, in seconds since 1970."""
