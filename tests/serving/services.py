"""A real service on loopback: uvicorn in a thread, the model in a process of its own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.serving.clients import wait_for
from wordbrush.serving.connections import listen, make_server
from wordbrush.serving.http import build
from wordbrush.serving.service import Service
from wordbrush.serving.starting import make_service

SETTINGS = {"steps": 2, "dtype": "float32", "device": "cpu"}


def make(checkpoint: Path, folder: Path, **options: Any) -> Service:
    """A service of a tiny checkpoint, not started."""
    load = {"model": str(checkpoint), "method": "instruct-pix2pix", **SETTINGS}
    return make_service(load, folder=folder, **options)


@contextmanager
def running(service: Service, **options: Any) -> Iterator[httpx.Client]:
    """Serves while the block runs; gives a client that knows the address."""
    server, listening = make_server(build(service, **options), service.worker), listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=120) as client:
            wait_for(lambda: server.started)
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
