"""What a node says of itself: structured logs with the call's correlation id, and Prometheus metrics over HTTP."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)

from services.chassis.call_context import correlation_id

_RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, node, correlation_id, whatever `extra` holds, and the trace."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "node": self._node,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if call := correlation_id.get():
            line["correlation_id"] = call
        line.update((key, value) for key, value in vars(record).items() if key not in _RECORD_FIELDS)
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(node: str, level: str) -> None:
    """Sends this process's logs to stderr as JSON lines, from `level` (a logging name) up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(node))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def new_registry() -> CollectorRegistry:
    """A registry with the process's own figures (CPU, memory, descriptors, garbage collections)."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


@contextmanager
def metrics_endpoint(registry: CollectorRegistry, host: str, port: int) -> Iterator[int]:
    """Serves `registry` at http://host:port/metrics while the context lasts; yields the port, which matters for port 0.

    Raises OSError where the port is in use.
    """
    server, thread = start_http_server(port, addr=host, registry=registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class CallMetrics:
    """Rate, errors and duration of the calls that a server handles, under the names that gRPC's own ecosystem uses."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._started = Counter(
            "grpc_server_started", "RPCs begun.", ["grpc_type", "grpc_service", "grpc_method"], registry=registry
        )
        self._handled = Counter(
            "grpc_server_handled",
            "RPCs ended, by the code that they ended with.",
            ["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "From a call's arrival to its end; of watches, how long they stayed.",
            ["grpc_type", "grpc_service", "grpc_method"],
            # From a hash of a few bytes to a batch that waits for a busy database.
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=registry,
        )

    def of(self, rpc_type: str, method: str) -> MethodMetrics:
        """The figures of one method, `/package.Service/Method`."""
        service, name = method.removeprefix("/").rsplit("/", 1)
        return MethodMetrics(self._started, self._handled, self._seconds, (rpc_type, service, name))


class MethodMetrics:
    """The figures of one method, with the label look-ups done once."""

    def __init__(self, started: Counter, handled: Counter, seconds: Histogram, labels: tuple[str, str, str]) -> None:
        self._started = started.labels(*labels)
        self._seconds = seconds.labels(*labels)
        self._handled = handled
        self._labels = labels
        self._by_code: dict[str, Counter] = {}

    def start(self) -> None:
        """Counts a call that begins."""
        self._started.inc()

    def end(self, code: str, seconds: float) -> None:
        """Counts a call that ended with `code` (a canonical name, `OK`) after `seconds`."""
        counter = self._by_code.get(code)
        if counter is None:
            counter = self._by_code[code] = self._handled.labels(*self._labels, code)
        counter.inc()
        self._seconds.observe(seconds)
