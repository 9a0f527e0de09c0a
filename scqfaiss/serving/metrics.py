"""What a service tells Prometheus. With several workers every figure is the sum, or the latest, of all of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
    multiprocess,
)

from .batching import Job
from .galleries import Answer, OpenGallery

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counters of one process."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        if FOLDER not in os.environ:
            ProcessCollector(registry=r)
            PlatformCollector(registry=r)
        of_request = ("route", "status")
        self.requests = Counter("scqfaiss_requests", "Requests answered.", of_request, registry=r)
        self.seconds = Histogram(
            "scqfaiss_request_seconds",
            "Seconds: of each request wait and total, of each batch encode and search (with the lookup of items).",
            ("gallery", "part"),
            buckets=SECONDS,
            registry=r,
        )
        self.batch = Histogram(
            "scqfaiss_batch_queries", "Queries searched together.", ("gallery",), buckets=ROWS, registry=r
        )
        self.queries = Counter("scqfaiss_queries", "Queries searched.", ("gallery",), registry=r)
        self.short = Counter("scqfaiss_short_answers", "Queries with fewer hits than k.", ("gallery",), registry=r)
        mode: Literal["livemax"] = "livemax"
        self.waiting = Gauge(
            "scqfaiss_waiting_requests", "Requests that wait for a thread.", registry=r, multiprocess_mode=mode
        )
        self.vectors = Gauge("scqfaiss_gallery_vectors", "Vectors.", ("gallery",), registry=r, multiprocess_mode=mode)
        self.loaded = Gauge(
            "scqfaiss_gallery_loaded_timestamp_seconds",
            "When the open file was opened; `version` is the beginning of its checksum.",
            ("gallery", "version"),
            registry=r,
            multiprocess_mode=mode,
        )
        self.bad = Gauge(
            "scqfaiss_gallery_reload_failing",
            "1 while the file under the gallery's name cannot be opened, and the one before serves on.",
            ("gallery",),
            registry=r,
            multiprocess_mode=mode,
        )
        self.failures = Counter(
            "scqfaiss_gallery_reload_failures", "Files that could not be opened.", ("gallery",), registry=r
        )
        self._known: dict[str, tuple[str, int]] = {}
        self._of: dict[str, tuple[Any, ...]] = {}  # figures of a gallery's searches

    def searched(self, name: str, job: Job, answer: Answer, queries: int, seconds: float) -> None:
        """Take down a search that was answered."""
        own = self._of.get(name)
        if own is None:  # looking them up by labels every time would cost as much as a short search
            parts = [self.seconds.labels(name, part) for part in ("wait", "encode", "search", "total")]
            own = self._of[name] = (*parts, self.batch.labels(name), self.queries.labels(name), self.short.labels(name))
        wait, encode, search, total, batch, count, short = own
        wait.observe(job.waited)
        total.observe(seconds)
        if job.first:
            encode.observe(answer.encode)
            search.observe(job.searched - answer.encode)
            batch.observe(job.together)
        count.inc(queries)
        if found := answer.short:
            short.inc(found)

    def look(self, galleries: Iterable[OpenGallery], waiting: int) -> None:
        """Take down how the galleries stand now."""
        self.waiting.set(waiting)
        for g in galleries:
            version, failures = self._known.get(g.name, ("", 0))
            if version and version != g.version and FOLDER not in os.environ:
                self.loaded.remove(g.name, version)
            self.loaded.labels(g.name, g.version).set(g.loaded)
            self.vectors.labels(g.name).set(g.gallery.ntotal)
            self.bad.labels(g.name).set(float(bool(g.fault)))
            self.failures.labels(g.name).inc(g.failures - failures)
            self._known[g.name] = g.version, g.failures

    def text(self) -> bytes:
        """All figures in Prometheus's own form."""
        registry = self.registry
        if FOLDER in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
