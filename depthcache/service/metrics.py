"""What the service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

EXPOSITION_TYPE = CONTENT_TYPE_LATEST


class ServiceMetrics:
    """The counters of one service; each has its own registry, so that two can run in one process.

    Route labels are classes of routes (`object`, `lookup`, …), never paths, to bound their number.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "depthcache_requests",
            "Requests answered",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "depthcache_request_seconds",
            "Time from the request's head to the end of the answer",
            ["route"],
            buckets=(0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60),
            registry=self.registry,
        )
        self.sent_bytes = Counter(
            "depthcache_sent_bytes", "Body bytes sent", ["route"], registry=self.registry
        )
        self.received_bytes = Counter(
            "depthcache_received_bytes", "Body bytes received", registry=self.registry
        )
        self.looked_up = Counter(
            "depthcache_looked_up_digests",
            "Digests looked up",
            ["result"],
            registry=self.registry,
        )
        self.published = Counter(
            "depthcache_published_segments", "Segments published", registry=self.registry
        )
        self.refused_uploads = Counter(
            "depthcache_refused_uploads",
            "Uploads that failed validation or clashed with a published segment",
            registry=self.registry,
        )
        self.evicted = Counter(
            "depthcache_evicted_segments", "Segments evicted", registry=self.registry
        )
        self.corrupt_reads = Counter(
            "depthcache_corrupt_reads",
            "Map reads that failed their checksum",
            registry=self.registry,
        )
        self.stored_bytes = Gauge(
            "depthcache_stored_bytes", "Bytes in sealed segments", registry=self.registry
        )
        self.stored_segments = Gauge(
            "depthcache_stored_segments", "Sealed segments", registry=self.registry
        )
        self.open_uploads = Gauge(
            "depthcache_open_uploads", "Upload requests being received", registry=self.registry
        )

    def exposition(self) -> bytes:
        """The text that `/metrics` answers with."""
        text: bytes = generate_latest(self.registry)
        return text
