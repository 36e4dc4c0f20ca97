"""`POST /v1/images/edits` as OpenAI's clients call it."""

import asyncio
import base64
import contextlib
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from wordbrush.errors import UsageError
from wordbrush.images import open_image
from wordbrush.serving.jobs import Job
from wordbrush.serving.replies import ApiError
from wordbrush.serving.service import Service
from wordbrush.serving.uploads import Upload, read_upload

ALIASES = {"image[]": "image", "n": "num_variations"}
_ONLY = {
    "response_format": ("b64_json",),
    "output_format": ("png",),
    "background": ("auto",),
    "quality": ("auto", "standard"),
    "stream": ("false",),
}
"""OpenAI's parameters that have one sensible value here."""


class ImagesEdits:
    """The endpoint: takes the edit as a job, waits for it, and cancels it if the client goes away."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, request: Request) -> JSONResponse:
        """Edit a picture by a prompt and wait for the result (as OpenAI's API)."""
        upload = await read_upload(request, aliases=ALIASES)
        size = self._translate(upload)
        if size not in (None, "auto"):
            await run_in_threadpool(self._check_size, upload, size)
        owner = getattr(request.state, "owner", "")
        job = await self.service.accept(upload, owner=owner, transparent_changes=True)
        job = await self._wait(request, job)
        pictures = [await self.service.result(job, index) for index in range(job.num_results)]
        data = [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures]
        return JSONResponse({"created": int(job.ended or 0), "data": data, "output_format": "png"})

    def _translate(self, upload: Upload) -> str | None:
        """Put OpenAI's fields into ours; returns the size that was asked for."""
        fields = upload.fields
        for name, allowed in _ONLY.items():
            value = fields.pop(name, None)
            if value is not None and str(value).lower() not in allowed:
                raise UsageError(f"{name} is {str(value)[:100]!r}: this service knows {', '.join(allowed)}")
        fields.pop("user", None)
        prompt = fields.pop("prompt", None)
        if prompt is None:
            raise UsageError("prompt is missing")
        fields["instruction" if "instruction" in self.service.method.needs else "target_caption"] = prompt
        return fields.pop("size", None)

    def _check_size(self, upload: Upload, size: Any) -> None:
        """The result has the picture's size: another one cannot be asked for."""
        picture = open_image(upload.pictures.get("image", b""), max_pixels=self.service.limits.max_pixels)
        own = f"{picture.image.width}x{picture.image.height}"
        if size != own:
            raise UsageError(f"size is {str(size)[:100]!r}: the result has the picture's size, {own} or auto")

    async def _wait(self, request: Request, job: Job) -> Job:
        """The job once it has ended."""
        ended = asyncio.ensure_future(self._ended(job))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                raise ApiError(499, "the client went away", code="client_closed_request")
            return ended.result()
        finally:
            for task in (ended, gone):
                task.cancel()
            with contextlib.suppress(Exception):
                await asyncio.shield(run_in_threadpool(self.service.table.cancel, job.id))  # if it still runs

    async def _ended(self, job: Job) -> Job:
        async for current in self.service.follow(job.id):
            job = current
        return job


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
