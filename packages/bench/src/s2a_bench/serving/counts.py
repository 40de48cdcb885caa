"""What a service counts, for Prometheus."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_FORGET_SECONDS = 300.0


class Counts:
    """Requests, images, times and loaded tasks since the service's front started."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._seen: dict[str, float] = {}
        self._requests = Counter(
            "s2a_requests", "Requests by task and HTTP status.", ("task", "status"), registry=self._registry
        )
        self._images = Counter("s2a_images", "Images that were answered, by task.", ("task",), registry=self._registry)
        self._retries = Counter("s2a_retries", "Requests that lost their replica.", registry=self._registry)
        self._seconds = Histogram(
            "s2a_request_seconds", "Time of an answered request.", buckets=_SECONDS, registry=self._registry
        )
        self._batches = Histogram(
            "s2a_batch_images",
            "Size of the pass that an image was in, once for each image.",
            buckets=_SIZES,
            registry=self._registry,
        )
        self._loaded = Gauge("s2a_tasks_loaded", "Tasks in a replica's memory.", ("replica",), registry=self._registry)
        self._bytes = Gauge("s2a_task_bytes", "Memory of a replica's tasks.", ("replica",), registry=self._registry)

    def answered(self, task: str, seconds: float, batches: tuple[int, ...]) -> None:
        """Counts an answered request."""
        self._requests.labels(task, "200").inc()
        self._images.labels(task).inc(len(batches))
        self._seconds.observe(seconds)
        for size in batches:
            self._batches.observe(size)

    def refused(self, task: str, status: int) -> None:
        """Counts another one; ``task`` is empty where there is none of that name."""
        self._requests.labels(task, str(status)).inc()

    def retried(self) -> None:
        """Counts a request that is given to another replica, since its own has died."""
        self._retries.inc()

    def replica(self, name: str, loaded: int, size: int) -> None:
        """Notes what a replica holds."""
        self._seen[name] = time.monotonic()
        self._loaded.labels(name).set(loaded)
        self._bytes.labels(name).set(size)

    def text(self) -> bytes:
        """In Prometheus' text format; without replicas that have not answered for a while."""
        for name in [name for name, when in self._seen.items() if time.monotonic() - when > _FORGET_SECONDS]:
            del self._seen[name]
            self._loaded.remove(name)
            self._bytes.remove(name)
        return generate_latest(self._registry)
