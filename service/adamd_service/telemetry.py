"""Metrics for Prometheus, and structured logs. One registry per server: no globals."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TextIO, cast

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from adamd_service.engine import Engine
from adamd_service.engine.rounds import Tally

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class Telemetry:
    """Counts what a server does."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        labels = ("method", "route", "status")
        self._seconds = Histogram(
            "adamd_request_seconds", "Time to answer", labels, buckets=BUCKETS, registry=self._registry
        )
        self._problems = Counter("adamd_problems", "Answers of 4xx and 5xx", labels, registry=self._registry)
        self._gauge("adamd_in_flight_bytes", "Bodies and answers in flight", lambda: engine.in_flight.used)
        self._gauge("adamd_waiting_requests", "Requests that wait for what comes", lambda: engine.waiting.taken)
        self._gauge("adamd_hot_bytes", "State of durable sessions in memory", lambda: engine.hot.used)
        self._gauge("adamd_memory_session_bytes", "State of memory sessions", lambda: engine.hot.memory_used)
        self._gauge("adamd_leased_buffer_bytes", "Buffers that someone can see", lambda: engine.pool.leased_bytes)
        self._gauge("adamd_idle_buffer_bytes", "Buffers that wait for reuse", lambda: engine.pool.idle_bytes)

        self._registry.register(RoundMetrics(engine.rounds.tally))
        self._gauge("adamd_bulk_bytes", "Files in the bulk directory", lambda: engine.bulk_bytes[0])
        self._gauge("adamd_bulk_free_bytes", "Such files that wait for new vectors", lambda: engine.bulk_bytes[1])

    def _gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        Gauge(name, description, registry=self._registry).set_function(read)

    def request(self, method: str, route: str, status: int | str, seconds: float) -> None:
        """Count one request. ``status`` is HTTP's, or the name of gRPC's."""
        labels = (method, route, str(status))
        self._seconds.labels(*labels).observe(seconds)
        if status >= 400 if isinstance(status, int) else status != "OK":
            self._problems.labels(*labels).inc()

    def render(self) -> bytes:
        """Return the text that Prometheus scrapes."""
        return generate_latest(self._registry)


class RoundMetrics(Collector):
    """What the engine has counted of rounds, as Prometheus asks for it."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they stand."""
        given = CounterMetricFamily("adamd_contributions", "Contributions to rounds", labels=["outcome"])
        for outcome, count in sorted(self._tally.contributions.items()):
            given.add_metric([outcome], count)
        closed = CounterMetricFamily("adamd_rounds_closed", "Rounds that this process closed", labels=["by"])
        for by, count in sorted(self._tally.closed.items()):
            closed.add_metric([by], count)
        failed = CounterMetricFamily("adamd_rounds_failed", "Rounds that began again", labels=["code"])
        for code, count in sorted(self._tally.failed.items()):
            failed.add_metric([code], count)
        yield from (given, closed, failed)
        yield SummaryMetricFamily(
            "adamd_aggregation_seconds",
            "Time to make one gradient of a round's contributions",
            self._tally.aggregations,
            self._tally.aggregation_seconds,
        )


class Unfailing:
    """A stream that ignores its failures: a log that nobody reads any more must not end the server."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or not."""
        with suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or not."""
        with suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.flush()


def configure_logging(level: str) -> None:
    """Log to stderr, one line an event, always as text: JSON would hide errors from people."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, Unfailing(sys.stderr))),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Plain tracebacks: the pretty ones print every local variable, headers and all.
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        cache_logger_on_first_use=False,
    )
