"""Connections that cost nothing for long: few enough, without delay, and dropped if no request comes."""

import asyncio
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from wordbrush.errors import WordbrushError
from wordbrush.serving.replies import ApiError, ErrorReply
from wordbrush.serving.worker import Worker

MAX_CONNECTIONS = 800
"""At one time; a process may usually have 1,024 files open."""
HEADER_SECONDS = 10.0
"""That a client has to send a request's header."""
KEPT_SECONDS = 20
"""That a connection is kept for another request: longer than httpx does, and so OpenAI's client (5 s), since
a request that is sent while its connection is closed gets no answer."""
_GRACE = 12
"""Seconds beyond the worker's grace after which requests that still run are cut off."""


class Connection(H11Protocol):
    """Uvicorn's connection with a deadline for the header, and 503 where there are too many."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Take it, or refuse it."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.write(_busy())
            transport.close()
        else:
            self._watch_header()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        super().data_received(data)
        self._watch_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of it."""
        self._unwatch()
        super().connection_lost(exc)

    def _watch_header(self) -> None:
        """Start the deadline unless a request is being answered: its body has a deadline of its own."""
        cycle: Any = self.cycle  # None before the first request, whatever its type says
        if cycle is not None and not cycle.response_complete:
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Server(uvicorn.Server):
    """Tells the model's process of a stop at once: requests that wait for it end by that."""

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self._worker = worker

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End everything, in order."""
        self._worker.begin_stop()
        await super().shutdown(sockets)


def make_server(app: FastAPI, worker: Worker) -> Server:
    """A server of the application; `worker` is told when it stops."""
    config: Any = {"log_level": "warning", "access_log": False, "server_header": False, "http": Connection}
    config["loop"] = "asyncio"  # whatever else is installed: the same everywhere
    config["timeout_keep_alive"] = KEPT_SECONDS
    grace = int(worker.options.grace) + _GRACE
    return Server(uvicorn.Config(app, timeout_graceful_shutdown=grace, **config), worker)


def listen(host: str, port: int) -> socket.socket:
    """A socket to serve at.

    Raises:
        WordbrushError: the address or the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise WordbrushError(f"cannot listen at {host}, port {port}: try another --port") from error
    # asyncio does it only where a socket names its protocol; without, a kept connection waits 40 ms a reply.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _busy() -> bytes:
    """A whole reply: there is no request yet that the application could answer."""
    error = ApiError(503, "too many connections: try again in 5 s", code="busy")
    body = ErrorReply(error=error.detail).model_dump_json().encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: 5\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
