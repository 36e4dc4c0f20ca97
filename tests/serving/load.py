"""Many clients at one service, and how it bears them."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from statistics import median, quantiles
from typing import Any

import httpx
import psutil

from tests.serving.clients import Command, events

_PROBE = 0.05
"""Seconds between two looks at the service's health and memory."""
_MIB = 2**20


@dataclass
class Flood:
    """What many clients at once came to."""

    ends: Counter[str] = field(default_factory=Counter[str])
    """How accepted edits ended: "done" if the result came, too."""
    refused: int = 0
    """Requests that met a full queue; each was sent again when the answer said so."""
    waits: list[float] = field(default_factory=list[float])
    """Seconds from an edit's acceptance to its result."""
    seconds: float = 0.0


def flood(url: str, file: bytes, count: int, clients: int, **fields: str) -> Flood:
    """Clients that ask for edits one after the other, follow each, and fetch its result.

    Args:
        url: of the service.
        file: the picture.
        count: edits of all of them together.
        clients: at one time.
        fields: of every request; each has a seed of its own.
    """
    found, began = Flood(), time.monotonic()
    asyncio.run(_flood(url, file, iter(range(count)), clients, fields, found))
    found.seconds = time.monotonic() - began
    return found


async def _flood(
    url: str, file: bytes, seeds: Iterator[int], clients: int, fields: dict[str, str], found: Flood
) -> None:
    async def client(http: httpx.AsyncClient) -> None:
        for seed in seeds:
            asked = {"instruction": "make it night", "seed": str(seed), **fields}
            await _edit(http, file, asked, found)

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with (
        httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(clients):
            group.create_task(client(http))


async def _edit(http: httpx.AsyncClient, file: bytes, asked: dict[str, str], found: Flood) -> None:
    edit = await _accepted(http, file, asked, found)
    began = time.monotonic()
    stream = await http.get(f"/v1/edits/{edit}/events")
    end, _ = events(stream.text)[-1]
    if end == "done":
        result = await http.get(f"/v1/edits/{edit}/result")
        end = "done" if result.content.startswith(b"\x89PNG") else "without a result"
    found.ends[end] += 1
    found.waits.append(time.monotonic() - began)


async def _accepted(http: httpx.AsyncClient, file: bytes, asked: dict[str, str], found: Flood) -> str:
    while True:
        reply = await http.post("/v1/edits", files={"image": ("dog.png", file)}, data=asked)
        if reply.status_code == 202:
            return reply.json()["id"]
        assert reply.status_code == 429, reply.text
        found.refused += 1
        await asyncio.sleep(int(reply.headers["retry-after"]))


@dataclass(frozen=True)
class Load:
    """A flood, and what was seen of the service from outside meanwhile."""

    flood: Flood
    health: list[float]
    """Seconds of each /healthz."""
    server: list[int]
    """Resident bytes of the server at each look,"""
    worker: list[int]
    """and of the model's process."""

    def summary(self) -> dict[str, Any]:
        """The figures of a report."""
        found = self.flood
        return {
            "ends": dict(found.ends),
            "refused": found.refused,
            "seconds": found.seconds,
            "edits_per_second": found.ends["done"] / found.seconds,
            "wait_median": median(found.waits),
            "wait_p99": percentile(found.waits, 99),
            "healthz_median": median(self.health),
            "healthz_p99": percentile(self.health, 99),
            "server_mib": in_time(self.server),
            "worker_mib": in_time(self.worker),
        }


def under_load(service: Command, file: bytes, count: int, clients: int, **fields: str) -> Load:
    """A flood from a process of its own, with an eye on the service."""
    server = psutil.Process(service.process.pid)
    worker = max(server.children(recursive=True), key=lambda child: child.memory_info().rss)
    load = Load(Flood(), [], [], [])
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        running = pool.submit(flood, str(service.client.base_url), file, count, clients, **fields)
        while not running.done():
            began = time.monotonic()
            service.client.get("/healthz").raise_for_status()
            load.health.append(time.monotonic() - began)
            load.server.append(server.memory_info().rss)
            load.worker.append(worker.memory_info().rss)
            time.sleep(_PROBE)
        return Load(running.result(), load.health, load.server, load.worker)


def percentile(values: list[float], percent: int) -> float:
    """So many percent of the values are below it."""
    return quantiles(values, n=100)[percent - 1]


def in_time(bytes_seen: list[int]) -> list[float]:
    """The median MiB of the second, third and last quarter: the first is that of the start."""
    size = len(bytes_seen) // 4
    return [round(median(bytes_seen[size * n : size * (n + 1)]) / _MIB, 1) for n in (1, 2, 3)]
