"""The service's figures for Prometheus."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wordbrush.serving.jobs import JobTable
from wordbrush.serving.worker import Worker

_ENDED = ("done", "failed", "cancelled")


class JobMetrics(Collector):
    """What the table and the worker know, read when Prometheus asks."""

    def __init__(self, table: JobTable, worker: Worker) -> None:
        self.table, self.worker = table, worker

    def collect(self) -> Iterator[Metric]:
        """The gauges, and the counters since the table was made."""
        jobs = GaugeMetricFamily("wordbrush_jobs", "Jobs in the table", labels=["state"])
        for state, count in self.table.counts().items():
            jobs.add_metric([state], count)
        yield jobs
        totals = self.table.totals()
        edits = CounterMetricFamily("wordbrush_edits", "Edits that ended", labels=["state"])
        for state in _ENDED:
            edits.add_metric([state], totals.get(state, 0))
        yield edits
        for name, words in (
            ("batches", "Batches that were begun"),
            ("run_seconds", "Seconds that the edits that are done ran"),
            ("wait_seconds", "Seconds that edits waited before they were begun"),
        ):
            yield CounterMetricFamily(f"wordbrush_{name}", words, value=totals.get(name, 0))
        yield GaugeMetricFamily("wordbrush_ready", "Whether the model is loaded", value=self.worker.is_ready)
        restarts = "Times that the model's process died and was started again"
        yield CounterMetricFamily("wordbrush_worker_restarts", restarts, value=self.worker.restarts)


class RequestMetrics:
    """Counts and times the HTTP requests that pass through it."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self.app = app
        labels = ["method", "path", "status"]
        self._count = Counter("wordbrush_requests", "HTTP requests", labels, registry=registry)
        self._time = Histogram(
            "wordbrush_request_seconds", "Seconds until a reply began", ["path"], registry=registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began = time.monotonic()

        def note(status: int) -> None:
            path = getattr(scope.get("route"), "path", "other")  # as declared: ids would be without end
            self._count.labels(_method(scope), path, status).inc()
            self._time.labels(path).observe(time.monotonic() - began)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                note(message["status"])
            await send(message)

        try:
            return await self.app(scope, receive, watched)
        except Exception:  # answered further out
            note(500)
            raise


def _method(scope: Scope) -> str:
    method = str(scope["method"])
    return method if method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS") else "other"
