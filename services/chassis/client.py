"""The one place where channels are made: addresses, keepalive, retries, deadlines, and typed refusals."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from pydantic import BaseModel, ConfigDict, Field

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.client_interceptor import client_interceptors
from services.chassis.errors import InvalidArgument


class InvalidTarget(InvalidArgument):
    """A target is `host:port`, one `dns:///name:port`, or several IP addresses with ports, separated by commas."""

    reason = errors_pb2.ERROR_REASON_INVALID_FIELD


class ClientSettings(BaseModel):
    """How a channel keeps its connections and retries."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    timeout_seconds: float = Field(30.0, gt=0)
    """The deadline of a unary call that names none; longer than any call of ours should take, short enough to see a hang."""
    max_message_bytes: int = Field(16 * 1024 * 1024, gt=0)
    """Both ways; the contracts' bound."""
    keepalive_seconds: float = Field(20.0, gt=0)
    """A ping on a quiet connection; a node gone without a word is noticed within this and the next setting."""
    keepalive_timeout_seconds: float = Field(5.0, gt=0)
    """How long a ping may stay unanswered."""
    attempts: int = Field(4, ge=1, le=5)
    """Tries of a call that meets UNAVAILABLE; gRPC itself takes at most 5."""
    initial_backoff_seconds: float = Field(0.1, gt=0)
    """The first wait between tries of a call, and between tries to connect; jittered and doubled by gRPC."""
    max_backoff_seconds: float = Field(1.0, gt=0)
    """The longest wait between either: a restarted node is back in about a second."""


@asynccontextmanager
async def connect(target: str, settings: ClientSettings | None = None) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to `target`, closed when the context ends. Its calls raise the kinds of services.chassis.errors.

    `target` is one `host:port` or `dns:///name:port`, or several IP addresses with ports separated by commas; calls go round robin
    over all addresses. Raises InvalidTarget. Nothing is dialled before the first call.
    """
    settings = settings or ClientSettings()
    async with grpc.aio.insecure_channel(
        resolve(target), options=_options(settings), interceptors=client_interceptors(settings.timeout_seconds)
    ) as channel:
        yield channel


def resolve(target: str) -> str:
    """The target in gRPC's own syntax. Raises InvalidTarget."""
    if target.startswith(("dns:", "unix:", "ipv4:", "ipv6:")):
        return target
    addresses = [address.strip() for address in target.split(",")]
    if len(addresses) == 1:
        host, _port = _split(addresses[0])
        return target.strip() if _version(host) else f"dns:///{addresses[0]}"
    versions = {_version(_split(address)[0]) for address in addresses}
    if versions not in ({4}, {6}):
        raise InvalidTarget(metadata={"target": target})
    return f"ipv{versions.pop()}:{','.join(addresses)}"


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidTarget(metadata={"target": address})
    return host.strip("[]"), int(port)


def _version(host: str) -> int | None:
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return None


def _options(settings: ClientSettings) -> list[tuple[str, str | int]]:
    retry = {
        "maxAttempts": settings.attempts,
        "initialBackoff": f"{settings.initial_backoff_seconds}s",
        "maxBackoff": f"{settings.max_backoff_seconds}s",
        "backoffMultiplier": 2,
        # Nothing else is safe to send again without asking: UNAVAILABLE alone says that trying later helps.
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    service_config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        # A method config that names no method holds for all.
        "methodConfig": [{"name": [{}], **({"retryPolicy": retry} if settings.attempts > 1 else {})}],
    }
    return [
        ("grpc.service_config", json.dumps(service_config)),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        # A peer that was killed is back within a second or two; gRPC's own waits grow from one second to two minutes.
        ("grpc.initial_reconnect_backoff_ms", round(settings.initial_backoff_seconds * 1000)),
        ("grpc.max_reconnect_backoff_ms", round(settings.max_backoff_seconds * 1000)),
        ("grpc.keepalive_time_ms", round(settings.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", round(settings.keepalive_timeout_seconds * 1000)),
        # A node may be restarted while its client is quiet; without this the first call after it would find a dead connection.
        ("grpc.keepalive_permit_without_calls", 1),
    ]
