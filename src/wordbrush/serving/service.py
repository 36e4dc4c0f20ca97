"""What the service does with a request, whatever the protocol: checks it, takes it, follows the job."""

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from wordbrush.editors import Method
from wordbrush.editors.asked import Asked
from wordbrush.editors.settings import make_settings
from wordbrush.errors import UsageError
from wordbrush.languages.translation import Heard, Translator, hear
from wordbrush.serving.fields import fields_model, parse_fields, split_settings
from wordbrush.serving.jobs import Job, JobTable, NewJob
from wordbrush.serving.replies import ApiError
from wordbrush.serving.uploads import Room, Upload, open_pictures
from wordbrush.serving.worker import Worker

_SLOWEST_LOOK = 0.5
"""Most seconds between two looks at a job that is followed."""
EDIT_FAILED = "edit_failed"
"""The code of a failure that has no other."""
_MADE = 4
"""Times the pixels of the largest picture that one request's results may have: all are in memory at once."""


@dataclass(frozen=True)
class Limits:
    """What one request may take."""

    max_bytes: int = 32 * 2**20
    """Of a request's body."""
    max_pixels: int = 25_000_000
    """Of a picture."""
    max_size: int = 1024
    """Of the setting `size`, in pixels."""

    @property
    def max_made(self) -> int:
        """Pixels of all results of a request, and of a batch, together."""
        return _MADE * self.max_pixels


class Keys:
    """The API keys that let in; with none, everybody is.

    Args:
        keys: as they were handed out.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

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
    translator: Translator | None = None
    """What turns instructions into English; None leaves them as they are."""

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.worker.options.model_name

    @cached_property
    def fields(self) -> type[BaseModel]:
        """All that a request may say besides its pictures."""
        return fields_model(self.method.settings, vars(self.defaults))

    @cached_property
    def room(self) -> Room:
        """For the bodies that are being read."""
        return Room(self.limits.max_bytes)

    async def accept(
        self, upload: Upload, *, owner: str = "", transparent_changes: bool = False, size: Any = None
    ) -> Job:
        """Check a request and take it as a job.

        Args:
            upload: what was sent.
            owner: who sent it.
            transparent_changes: see `open_pictures`.
            size: as OpenAI writes it; the picture has to be that large, for the result will be as large.

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
        await run_in_threadpool(self.table.check_room, owner)  # before the work of decoding
        heard = await run_in_threadpool(self._hear, asked.get("instruction", ""))
        if heard is not None:
            asked["instruction"] = heard.english
        picture, mask = await open_pictures(
            upload, max_pixels=self.limits.max_pixels, transparent_changes=transparent_changes
        )
        self._check_size(picture.image.size, size, values.get("num_variations", 1))
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
            heard,
        )
        return await run_in_threadpool(self.table.add, new)

    async def job(self, job_id: str, owner: str = "") -> Job:
        """A job of that owner; an `ApiError` if there is none."""
        job = await run_in_threadpool(self.table.get, job_id)
        if job is None or job.owner != owner:
            raise ApiError(404, "there is no such edit, or its time is over")
        return job

    async def follow(self, job_id: str) -> AsyncGenerator[Job]:
        """The job, looked at again and again until it has ended, ever less often.

        It stops early if the job is deleted, or if the service stops and the job waits for its next start.
        """
        pause = 0.02
        while (job := await run_in_threadpool(self.table.get, job_id)) is not None:
            yield job
            if job.has_ended or (self.worker.is_stopping and job.state == "queued"):
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
            raise ApiError(422, job.error or "the edit failed", code=job.error_code or EDIT_FAILED)
        if job.state != "done":
            raise ApiError(409, f"the edit is {job.state}: there is no result", code="not_done")
        if index >= job.num_results:
            raise ApiError(404, f"the edit has {job.num_results} results; index counts from 0")
        try:
            return await run_in_threadpool(self.table.file(job.id, f"{index}.png").read_bytes)
        except FileNotFoundError:
            raise ApiError(404, "there is no such edit, or its time is over") from None

    def why_unfinished(self) -> ApiError:
        """Why `follow` came to its end before the job."""
        if self.worker.is_stopping:
            words = "the service stops; the edit is kept and goes on when it starts again"
            return ApiError(503, words, code="stopping", headers={"Retry-After": "30"})
        return ApiError(404, "there is no such edit any more")

    def _hear(self, instruction: str) -> Heard | None:
        heard = None if self.translator is None else hear(self.translator, instruction)
        # the translator's name may be the path of a checkpoint
        return heard and replace(heard, translator=Path(heard.translator).name)

    def _check_size(self, picture: tuple[int, int], size: Any, num_variations: int) -> None:
        own = "{}x{}".format(*picture)
        if size not in (None, "auto", own):
            raise UsageError(f"size is {str(size)[:100]!r}: the result has the picture's size, {own} or auto")
        most = self.limits.max_made // (picture[0] * picture[1])
        if num_variations > most:
            raise UsageError(f"num_variations is {num_variations}: of a picture of {own} it may be {most}")

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        make_settings(self.method.settings, vars(self.defaults) | dict(settings))
        size = settings.get("size")
        if size is not None and size > self.limits.max_size:
            raise UsageError(f"size is {size}: this service works at {self.limits.max_size} pixels at most")


STARTED = int(time.time())
"""When this process began, in seconds since 1970."""
