"""`POST /v1/images/edits` as OpenAI's clients call it."""

import asyncio
import base64
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from wordbrush.errors import UsageError
from wordbrush.serving.jobs import Job
from wordbrush.serving.replies import client_left
from wordbrush.serving.service import Service
from wordbrush.serving.uploads import Upload, read_upload

ALIASES = {"image[]": "image", "n": "num_variations"}
_ONLY = {"response_format": ("b64_json",), "output_format": ("png",), "stream": ("false",)}
"""OpenAI's parameters that have one value here."""
_IGNORED = ("quality", "input_fidelity", "output_compression", "moderation", "background", "user")
"""Those that ask for nothing which would spoil the result if it is not done."""
_SILENT = ("", "auto", "none", "standard")
_THEIRS = ("gpt-image", "chatgpt-image", "dall-e")
"""How the names of OpenAI's own models begin; clients send one by default."""


class ImagesEdits:
    """The endpoint: takes the edit as a job, waits for it, and cancels it if the client goes away."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, request: Request) -> JSONResponse:
        """Edit a picture by a prompt and wait for the result (as OpenAI's API)."""
        job, ignored = await self._accept(request)
        job = await self._wait(request, job)
        pictures = [await self.service.result(job, index) for index in range(job.num_results)]
        warnings = [*ignored, *job.record.get("warnings", [])]
        return await run_in_threadpool(_reply, job, pictures, warnings)

    async def _accept(self, request: Request) -> tuple[Job, list[str]]:
        """The job, and warnings; the upload is in memory no longer than this takes."""
        with self.service.room.hold(request):
            upload = await read_upload(request, aliases=ALIASES)
            size, warnings = self._translate(upload)
            owner = getattr(request.state, "owner", "")
            job = await self.service.accept(upload, owner=owner, transparent_changes=True, size=size)
        return job, warnings

    def _translate(self, upload: Upload) -> tuple[Any, list[str]]:
        """Put OpenAI's fields into ours; returns the size that was asked for, and what was ignored."""
        fields = upload.fields
        for name, allowed in _ONLY.items():
            value = fields.pop(name, None)
            if value is not None and str(value).lower() not in allowed:
                raise UsageError(f"{name} is {str(value)[:100]!r}: this service knows {', '.join(allowed)}")
        asked = {name: str(fields.pop(name, "")).lower() for name in _IGNORED}
        warnings = [
            f"{name} was ignored" for name, value in asked.items() if name != "user" and value not in _SILENT
        ]
        if str(fields.get("model", "")).startswith(_THEIRS):
            warnings.append(f"the model is {self.service.model_name}, not {fields.pop('model')[:100]}")
        prompt = fields.pop("prompt", None)
        if prompt is None:
            raise UsageError("prompt is missing")
        fields["instruction" if "instruction" in self.service.method.needs else "target_caption"] = prompt
        return fields.pop("size", None), warnings

    async def _wait(self, request: Request, job: Job) -> Job:
        """The job once it has ended."""
        ended = asyncio.ensure_future(self._ended(job))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await run_in_threadpool(self.service.table.cancel, job.id)
                raise client_left()
            return ended.result()
        finally:
            for task in (ended, gone):
                task.cancel()

    async def _ended(self, job: Job) -> Job:
        async for current in self.service.follow(job.id):
            job = current
        if not job.has_ended:
            raise self.service.why_unfinished()
        return job


def describe_body(service: Service) -> dict[str, Any]:
    """The request for OpenAPI: OpenAI's parameters, and ours, which a client puts into `extra_body`."""
    file = {"type": "string", "format": "binary"}
    ours = service.fields.model_json_schema()["properties"]
    theirs: dict[str, Any] = {
        "image": {**file, "description": "the picture"},
        "mask": {**file, "description": "of the picture's size: what is transparent may change"},
        "prompt": {"type": "string", "maxLength": 2000},
        "n": {"type": "integer", "minimum": 1, "maximum": 10, "default": 1},
        "size": {"type": "string", "default": "auto", "description": "auto, or the picture's own size"},
        "response_format": {"type": "string", "enum": ["b64_json"]},
        "model": {"type": "string", "description": "as /v1/models names it, or any of OpenAI's names"},
    }
    left_out = ("instruction", "target_caption", "num_variations")
    properties = {name: field for name, field in ours.items() if name not in left_out} | theirs
    schema = {"type": "object", "properties": properties, "required": ["image", "prompt"]}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _reply(job: Job, pictures: list[bytes], warnings: list[str]) -> JSONResponse:
    data = [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures]
    made = {"created": int(job.ended or 0), "data": data, "output_format": "png", "warnings": warnings}
    return JSONResponse(made)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
