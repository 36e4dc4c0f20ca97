"""`wordbrush serve --replicas N`: the same application several times over, by Ray Serve on this computer.

Every replica has a model of its own. They share the folder of jobs, so that each knows all of them.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from wordbrush.diffusion.runtime import resolve_device
from wordbrush.errors import ModelError, WordbrushError
from wordbrush.serving.connections import MAX_CONNECTIONS, listen
from wordbrush.serving.http import build
from wordbrush.serving.service import Service

_ENDING = 20.0
"""Seconds beyond the worker's grace that a replica has to end."""


class Replica:
    """One process with the application, its model in a process beside it.

    Args:
        make: makes the service.
        cors_origins: see `build`.

    Raises:
        ModelError: the model cannot be loaded.
    """

    def __init__(self, make: Callable[[], Service], cors_origins: Sequence[str]) -> None:
        self.service, self.cors_origins = make(), cors_origins

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build(self.service, cors_origins=self.cors_origins)

    def check_health(self) -> None:
        """Raise if there is no model any more; Ray then puts another replica in this one's place."""
        if self.service.worker.failure:
            raise ModelError(self.service.worker.failure)


def serve_replicas(
    make: Callable[[], Service],
    num_replicas: int,
    *,
    host: str,
    port: int,
    cors_origins: Sequence[str] = (),
) -> None:
    """Serve until a signal; edits that run then may finish, the others wait on the disk for the next start.

    Args:
        make: makes a service; all of the same folder, which is this command's alone.
        num_replicas: how many.
        host: see `listen`.
        port: see `listen`.
        cors_origins: see `build`.

    Raises:
        WordbrushError: the address or the port cannot be had, or the replicas cannot be started.
    """
    service = make()  # what is wrong with it is known before Ray starts
    service.table.recover()
    service.table.sweep()
    service.table.close()
    with listen(host, port) as found:
        port = found.getsockname()[1]
    options = service.worker.options
    cuda = resolve_device(options.load.get("device", "auto")).type == "cuda"
    told = threading.Event()

    def tell(*_: object) -> None:
        told.set()

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray's own
            signal.signal(number, tell)
        serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "ERROR"})
        deployment: Any = serve.deployment(serve.ingress()(Replica))
        deployment = deployment.options(
            num_replicas=num_replicas,
            max_ongoing_requests=MAX_CONNECTIONS,
            graceful_shutdown_timeout_s=options.grace + _ENDING,
            ray_actor_options={"num_cpus": 0, "num_gpus": int(cuda)},
        )
        try:
            serve.run(deployment.bind(make, list(cors_origins)), route_prefix="/")
        except RuntimeError as error:
            raise WordbrushError(f"the replicas cannot be started: {error}") from error
        print(f"Wordbrush is at http://{host}:{port} (Ctrl-C to stop)", flush=True)
        told.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
