"""A node's gRPC server: its contract, health, reflection, metrics over HTTP, and an end that loses no call.

What the contract does is the node's; a node adds its servicer and awaits `run`.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeAlias, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry
from pydantic import ConfigDict, Field, model_validator

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.errors import FailedPrecondition, NotFound
from services.chassis.port import MAX_PORT, METRICS_OFFSET
from services.chassis.server_interceptor import CallSettings, ServerInterceptor
from services.chassis.telemetry import CallMetrics, metrics_endpoint

_log = logging.getLogger(__name__)
Servicer = TypeVar("Servicer")
_HealthContext: TypeAlias = grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]


_GC_THRESHOLDS = (10_000, 20, 100)
"""Objects made and not freed until the garbage collector looks at the young ones, looks until the next generation, and so on."""
_STUCK_SECONDS = 1.0
"""How long a watcher has to take its end."""
_HUNG_SECONDS = 10.0
"""A stop that takes longer than its bounds by this hangs; until then it may be closing connections on a busy machine."""


class PortInUse(FailedPrecondition):
    """Another process listens on the port."""


class ServiceUnknown(NotFound):
    """The node has no service of this name."""

    reason = errors_pb2.ERROR_REASON_SERVICE_UNKNOWN


class ServerSettings(CallSettings):
    """Where a node listens, what it takes, and how it stops."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Loopback unless an operator says otherwise: the mesh has no authentication of its own."""
    port: int = Field(0, ge=0, le=MAX_PORT)
    """0 takes a free one."""
    metrics_port: int | None = Field(None, ge=0, le=MAX_PORT)
    """Prometheus metrics over HTTP; by default the port + 1000."""
    max_message_bytes: int = Field(16 * 1024 * 1024, gt=0)
    """Both ways; the contracts' bound. gRPC itself refuses more, with RESOURCE_EXHAUSTED."""
    max_pending_calls: int = Field(20_000, gt=0)
    """Calls that arrived and were not begun yet. gRPC's own bound, of about a thousand, answers a burst with CANCELLED and no
    reason; this one is as long as the queue before the database, which refuses with one."""
    max_connection_age_seconds: float | None = Field(None, gt=0)
    """After this a connection is asked to be made anew, so that clients find replicas added behind one name; by default never."""
    max_connection_age_grace_seconds: float = Field(60.0, gt=0)
    """How long calls on an aged connection may go on."""
    drain_notice_seconds: float = Field(0.1, ge=0)
    """From NOT_SERVING to the closed listener: the time for health watchers to look elsewhere; balancers that poll need more."""
    drain_seconds: float = Field(20.0, ge=0)
    """How long running calls may take to finish; below Kubernetes' 30 seconds before it kills."""
    min_ping_interval_seconds: float = Field(10.0, gt=0)
    """A client that pings more often is cut off; the bridge's own clients ping every 20 s."""
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    """The least severe log line that is written."""

    @model_validator(mode="after")
    def _metrics_port_is_one(self) -> Self:
        if self.metrics_port is None and self.port + METRICS_OFFSET > MAX_PORT:
            raise ValueError(f"metrics_port must be set where the port is above {MAX_PORT - METRICS_OFFSET}")
        return self


class _Health(health.aio.HealthServicer):
    """grpc.health.v1, with a typed refusal of an unknown service."""

    def __init__(self, services: Collection[str]) -> None:
        super().__init__()
        self._services = services

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: _HealthContext
    ) -> health_pb2.HealthCheckResponse:
        if request.service and request.service not in self._services:
            raise ServiceUnknown(metadata={"service": request.service[:255]})
        return await super().Check(request, context)

    async def List(self, request: Any, context: _HealthContext) -> Any:
        # The package's asyncio servicer leaves this one out, and its stubs leave out the messages.
        answers: Any = health_pb2
        statuses = {
            service: await super(_Health, self).Check(health_pb2.HealthCheckRequest(service=service), context)
            for service in ("", *self._services)
        }
        return answers.HealthListResponse(statuses=statuses)


class Server:
    """One node's server. `add` its services, then `run` until SIGTERM or SIGINT, or `start` and `stop` by hand in a test."""

    def __init__(self, settings: ServerSettings, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._registry = registry
        self._interceptor = ServerInterceptor(CallMetrics(registry), settings)
        self._server = grpc.aio.server(interceptors=[self._interceptor], options=_options(settings))
        self._services: list[str] = []
        self._stop_waiting: list[Callable[[], None]] = []
        self._health = _Health(self._services)
        self.port = 0
        """The port that the server listens on, once it has started."""

    def add(
        self, add: Callable[[Servicer, grpc.aio.Server], None], servicer: Servicer, service: ServiceDescriptor
    ) -> None:
        """Serves `service` with `servicer`, by the generated `add` function."""
        add(servicer, self._server)
        self._services.append(service.full_name)

    async def start(self) -> None:
        """Listens and answers. Raises PortInUse."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for service in self._services:
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        reflection.enable_server_reflection(
            [*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        address = f"{self._settings.host}:{self._settings.port}"
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise PortInUse(
                f"cannot listen on {address}: is the port in use?", metadata={"address": address}
            ) from error
        await self._server.start()

    def on_stop(self, stop_waiting: Callable[[], None]) -> None:
        """Has `stop_waiting` called at the stop: it ends what running calls only wait for."""
        self._stop_waiting.append(stop_waiting)

    async def stop(self) -> None:
        """NOT_SERVING, then no new calls, then the end of watches, then of running calls within the bound."""
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._settings.drain_notice_seconds)
        for stop_waiting in self._stop_waiting:
            stop_waiting()
        self._interceptor.end_watches()
        draining = asyncio.ensure_future(self._server.stop(self._settings.drain_seconds))
        while not (await asyncio.wait([draining], timeout=_STUCK_SECONDS))[0]:
            # A watcher that reads nothing does not hear its end, either.
            if self._interceptor.has_only_watches():
                await self._server.stop(None)
        await draining

    async def run(self) -> None:
        """Serves, metrics included, until SIGTERM or SIGINT, then stops. Raises PortInUse."""
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, asked.set)
        await self.start()
        thresholds = gc.get_threshold()
        try:
            with metrics_endpoint(self._registry, self._settings.host, self._metrics_port()) as metrics_port:
                # What is there now stays: a full collection would walk it all, 40 ms in which nobody is answered.
                gc.collect()
                gc.freeze()
                # By default every 700th object is a reason to look for cycles, of which our calls make next to none.
                gc.set_threshold(*_GC_THRESHOLDS)
                _log.info(
                    "serving", extra={"port": self.port, "metrics_port": metrics_port, "services": self._services}
                )
                await asked.wait()
                _log.info("stopping")
                with self._exit_at_last():
                    await self.stop()
        except OSError as error:
            await self._server.stop(None)
            raise PortInUse(
                f"cannot serve metrics on {self._settings.host}:{self._metrics_port()}: {error.strerror}",
                metadata={"address": f"{self._settings.host}:{self._metrics_port()}"},
            ) from error
        finally:
            gc.set_threshold(*thresholds)
        _log.info("stopped")

    @contextmanager
    def _exit_at_last(self) -> Iterator[None]:
        """Ends the process, with a trace of what it hung in, where the stop takes far longer than its bounds: no orphan stays."""
        bounds = self._settings.drain_notice_seconds + self._settings.drain_seconds
        faulthandler.dump_traceback_later(bounds + _HUNG_SECONDS, exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _metrics_port(self) -> int:
        if self._settings.metrics_port is not None:
            return self._settings.metrics_port
        return self._settings.port + METRICS_OFFSET if self._settings.port else 0


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    options = [
        # A port in use is an error, not a second server that takes every other connection.
        ("grpc.so_reuseport", 0),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.server.max_pending_requests", settings.max_pending_calls),
        ("grpc.server.max_pending_requests_hard_limit", settings.max_pending_calls),
        ("grpc.http2.min_ping_interval_without_data_ms", round(settings.min_ping_interval_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_connection_age_grace_ms", round(settings.max_connection_age_grace_seconds * 1000)),
    ]
    if settings.max_connection_age_seconds is not None:
        options.append(("grpc.max_connection_age_ms", round(settings.max_connection_age_seconds * 1000)))
    return options
