"""`wordbrush serve`: edits over HTTP, as jobs of our own and as OpenAI's clients ask for them."""

import base64
import io
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from PIL import Image
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool

from wordbrush import __version__
from wordbrush.controls import offered
from wordbrush.errors import ModelError
from wordbrush.languages.tables import TableTranslator
from wordbrush.models import public_name
from wordbrush.serving.connections import listen, make_server
from wordbrush.serving.jobs import Job, State
from wordbrush.serving.metrics import JobMetrics, RequestMetrics
from wordbrush.serving.openai_edits import ImagesEdits, describe_body
from wordbrush.serving.origins import check_origin
from wordbrush.serving.replies import ApiError, ErrorDetail, ErrorReply, add_error_replies, error_detail
from wordbrush.serving.service import EDIT_FAILED, STARTED, Service
from wordbrush.serving.uploads import BodyLimit, read_upload

_KEEP_ALIVE = 15.0
"""Seconds after which a stream without news says that it is still there."""
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorReply, "description": "The request cannot be met as it is"},
    "5XX": {"model": ErrorReply, "description": "The service cannot answer now"},
}


_FOLLOWING: dict[int | str, dict[str, Any]] = {
    202: {
        "links": {
            name: {"operationId": name, "parameters": {"edit_id": "$response.body#/id"}}
            for name in ("status", "cancel", "events", "result")
        }
    }
}
"""What a client may do with the id that it gets."""


class EditStatus(BaseModel):
    """How an edit stands."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "Zk3T9m0QmE6vXw",
                "object": "edit",
                "status": "running",
                "created_at": 1_790_000_000,
                "model": "storybook",
                "ahead": 0,
                "step": 7,
                "num_steps": 20,
                "num_results": 0,
                "seeds": [],
                "warnings": [],
                "settings": {},
                "error": None,
            }
        }
    )

    id: str
    object: Literal["edit"] = "edit"
    status: State
    created_at: int
    model: str
    ahead: int
    step: int
    num_steps: int
    num_results: int
    seeds: list[int]
    warnings: list[str]
    settings: dict[str, Any]
    english: str | None = None
    """What was made of an instruction in another language."""
    error: ErrorDetail | None = None


def build(service: Service, *, cors_origins: Sequence[str] = ()) -> FastAPI:
    """The application; its start and end are those of the model's process.

    Args:
        service: answers the requests.
        cors_origins: web pages of these origins may call; none by default.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        service.worker.start()
        if isinstance(service.translator, TableTranslator):  # others were loaded whole
            service.translator.warm_up()
        yield
        await run_in_threadpool(service.worker.stop)

    app = FastAPI(
        title="Wordbrush",
        version=__version__,
        description="Edits pictures by words.",
        lifespan=lifespan,
        docs_url=None,  # both pages would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # an empty reply that sends elsewhere: 404 says more
        generate_unique_id_function=lambda route: route.name,
        responses=_ERRORS,
    )
    registry = CollectorRegistry()
    registry.register(JobMetrics(service.table, service.worker))
    add_error_replies(app)
    _add_routes(app, service, registry, cors_origins)
    app.add_middleware(BodyLimit, most=service.limits.max_bytes)
    app.add_middleware(RequestMetrics, registry=registry)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["*"], allow_headers=["*"]
        )
    return app


def serve(service: Service, *, host: str, port: int, cors_origins: Sequence[str] = ()) -> None:
    """Serve until a signal; edits that run then may finish, the others wait on the disk for the next start.

    Raises:
        WordbrushError: the address or the port cannot be had.
        ModelError: the model cannot be loaded.
    """
    listening = listen(host, port)
    server = make_server(build(service, cors_origins=cors_origins), service.worker)

    def give_up() -> None:
        server.should_exit = True

    service.worker.on_failure = give_up
    print(f"Wordbrush is at http://{host}:{listening.getsockname()[1]} (Ctrl-C to stop)", flush=True)
    with listening:
        server.run(sockets=[listening])
    if service.worker.failure:
        raise ModelError(service.worker.failure)


def _add_routes(
    app: FastAPI, service: Service, registry: CollectorRegistry, cors_origins: Sequence[str]
) -> None:
    routes = _Routes(service, registry)
    guard = _Guard(service) if service.keys else _OwnPages(cors_origins)
    locked: dict[str, Any] = {"dependencies": [Depends(guard)]}
    body = _body(service)
    app.add_api_route(
        "/v1/edits",
        routes.create,
        methods=["POST"],
        status_code=202,
        response_model=EditStatus,
        responses=_FOLLOWING,
        openapi_extra={"requestBody": body},
        **locked,
    )
    edit = "/v1/edits/{edit_id}"
    app.add_api_route(edit, routes.status, methods=["GET"], response_model=EditStatus, **locked)
    app.add_api_route(edit, routes.cancel, methods=["DELETE"], response_model=EditStatus, **locked)
    events: Any = {200: {"content": {"text/event-stream": {}}, "description": "The status, again and again"}}
    app.add_api_route(
        f"{edit}/events",
        routes.events,
        methods=["GET"],
        response_class=StreamingResponse,
        responses=events,
        **locked,
    )
    picture: Any = {200: {"content": {"image/png": {}}, "description": "The edited picture"}}
    app.add_api_route(
        f"{edit}/result",
        routes.result,
        methods=["GET"],
        response_class=Response,
        responses=picture,
        **locked,
    )
    app.add_api_route(
        "/v1/images/edits",
        ImagesEdits(service).__call__,
        methods=["POST"],
        name="images_edits",
        openapi_extra={"requestBody": describe_body(service)},
        **locked,
    )
    app.add_api_route("/v1/models", routes.models, methods=["GET"], **locked)
    text: Any = {200: {"content": {"text/plain": {}}, "description": "Prometheus's text format"}}
    app.add_api_route(
        "/metrics", routes.metrics, methods=["GET"], response_class=Response, responses=text, **locked
    )
    for path, answer in (("/healthz", routes.healthz), ("/readyz", routes.readyz)):
        app.add_api_route(path, answer, methods=["GET"])
        app.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)


class _OwnPages:
    """Lets in everybody but other sites' pages."""

    def __init__(self, origins: Sequence[str]) -> None:
        self.origins = origins

    async def __call__(self, request: Request) -> None:
        check_origin(request, self.origins)


class _Guard:
    """Lets in who has a key, and notes on the request who it is."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(
        self,
        request: Request,
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        owner = None if given is None else self.service.keys.owner(given.credentials)
        if owner is None:
            headers = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, "send a valid key: 'Authorization: Bearer KEY'", headers=headers)
        request.state.owner = owner


class _Routes:
    """The endpoints."""

    def __init__(self, service: Service, registry: CollectorRegistry) -> None:
        self.service, self.registry = service, registry

    async def create(self, request: Request, response: Response) -> EditStatus:
        """Ask for an edit: multipart with the picture as a file, or JSON with it in base64."""
        with self.service.room.hold(request):
            job = await self.service.accept(await read_upload(request), owner=_owner(request))
        response.headers["Location"] = f"/v1/edits/{job.id}"
        return await self._status(job)

    async def status(self, request: Request, edit_id: str) -> EditStatus:
        """How an edit stands."""
        return await self._status(await self.service.job(edit_id, _owner(request)))

    async def cancel(self, request: Request, edit_id: str) -> EditStatus:
        """Cancel an edit, which stops at its next step; one that has ended is deleted, and its results."""
        job = await self.service.job(edit_id, _owner(request))
        if job.has_ended:
            await run_in_threadpool(self.service.table.forget, job)
        else:
            job = await run_in_threadpool(self.service.table.cancel, job.id) or job
        return await self._status(job)

    async def events(self, request: Request, edit_id: str) -> StreamingResponse:
        """Server-sent events: the status whenever it changes, until the edit has ended."""
        job = await self.service.job(edit_id, _owner(request))
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._events(job), media_type="text/event-stream", headers=headers)

    async def result(
        self, request: Request, edit_id: str, index: Annotated[int, Query(ge=0, le=1000)] = 0
    ) -> Response:
        """A result as PNG, with the record of how it was made inside."""
        job = await self.service.job(edit_id, _owner(request))
        return Response(await self.service.result(job, index), media_type="image/png")

    async def models(self) -> dict[str, Any]:
        """The model that is served, and the settings that a request may give."""
        service = self.service
        defaults = vars(service.defaults)
        settings = [
            {
                "name": control.name,
                "type": control.type.__name__,
                "default": defaults[control.name],
                "minimum": control.low,
                "maximum": control.high,
                "description": control.description,
            }
            for control in offered(service.method.settings)
        ]
        model = {"id": service.model_name, "object": "model", "created": STARTED, "owned_by": "wordbrush"}
        model |= {"method": service.method.name, "needs": list(service.method.needs), "settings": settings}
        safety = service.worker.options.safety
        model |= {"nsfw_check": public_name(safety.nsfw_check), "watermark": safety.watermark}
        return {"object": "list", "data": [model]}

    async def metrics(self) -> Response:
        """The service's figures for Prometheus."""
        text = await run_in_threadpool(generate_latest, self.registry)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(self) -> dict[str, str]:
        """Whether the service answers at all."""
        return {"status": "ok"}

    async def readyz(self) -> dict[str, str]:
        """Whether the model is loaded."""
        if not self.service.worker.is_ready:
            raise ApiError(503, "the model is not loaded yet", headers={"Retry-After": "5"})
        return {"status": "ready"}

    async def _status(self, job: Job) -> EditStatus:
        ahead = await run_in_threadpool(self.service.table.ahead, job)
        done = job.state == "done"
        return EditStatus(
            id=job.id,
            status=job.state,
            created_at=int(job.created),
            model=self.service.model_name,
            ahead=ahead,
            step=job.step,
            num_steps=job.num_steps,
            num_results=job.num_results if done else 0,
            seeds=job.record.get("seeds", []),
            warnings=job.record.get("warnings", [job.heard.warning] if job.heard else []),
            settings=job.record.get("settings", {}),
            english=job.heard.english if job.heard else None,
            error=error_detail(500, job.error, job.error_code or EDIT_FAILED) if job.error else None,
        )

    async def _events(self, job: Job) -> AsyncGenerator[str]:
        seen, said, current = None, time.monotonic(), job
        async for current in self.service.follow(job.id):
            if current != seen:
                status = await self._status(current)
                yield f"event: {'progress' if not current.has_ended else current.state}\n"
                yield f"data: {status.model_dump_json()}\n\n"
                seen, said = current, time.monotonic()
            elif time.monotonic() - said > _KEEP_ALIVE:
                yield ": still there\n\n"
                said = time.monotonic()
        if not current.has_ended:
            error = ErrorReply(error=self.service.why_unfinished().detail)
            yield f"event: error\ndata: {error.model_dump_json()}\n\n"


def _owner(request: Request) -> str:
    return getattr(request.state, "owner", "")


def _body(service: Service) -> dict[str, Any]:
    """The request of /v1/edits for OpenAPI, in both forms."""
    fields = service.fields.model_json_schema()
    example = {"image": _example_picture(), "seed": 0}
    example |= dict.fromkeys(service.method.needs, "make it night")
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": _with_pictures(fields, {"type": "string", "contentEncoding": "base64"}),
                "example": example,
            },
            "multipart/form-data": {"schema": _with_pictures(fields, {"type": "string", "format": "binary"})},
        },
    }


def _with_pictures(fields: dict[str, Any], picture: dict[str, str]) -> dict[str, Any]:
    pictures = {
        "image": {**picture, "description": "PNG, JPEG, WebP, GIF, AVIF or HEIC: the file itself"},
        "mask": {**picture, "description": "of the picture's size: white may change, black may not"},
    }
    return {**fields, "properties": pictures | fields["properties"], "required": ["image"]}


def _example_picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
