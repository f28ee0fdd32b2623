"""A refusal as gRPC carries it: BridgeError -> google.rpc.Status in the trailers, and back."""

from __future__ import annotations

from typing import TypeAlias

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from services.chassis.errors import DOMAIN, KINDS, BridgeError, FieldViolation, reason_of

Trailers: TypeAlias = tuple[tuple[str, str | bytes], ...]

_DETAILS = "grpc-status-details-bin"
"""The trailer in which every gRPC language looks for a serialized google.rpc.Status."""

CODES = {code.value[0]: code for code in grpc.StatusCode}
"""Canonical number -> grpc.StatusCode."""

_PUSHBACK = ("grpc-retry-pushback-ms", "-1")
"""gRPC's word from a server that the client's retry policy must not act on this refusal."""


def to_trailers(error: BridgeError) -> Trailers:
    """The trailing metadata of a call that ends with `error`."""
    status = _status(error.code, error.message, error.reason_name, error.metadata)
    if error.violations:
        bad_request = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad_request.field_violations.add(field=violation.field, description=violation.description)
        status.details.add().Pack(bad_request)
    if error.retry_delay is not None:
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_delay * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    trailers: Trailers = ((_DETAILS, status.SerializeToString()),)
    return trailers if error.client_may_retry else (*trailers, _PUSHBACK)


def internal_trailers(message: str, correlation_id: str) -> Trailers:
    """The trailing metadata of a call that met a bug: nothing of it but where its log line is found."""
    metadata = {"correlation_id": correlation_id}
    status = _status(grpc.StatusCode.INTERNAL.value[0], message, "INTERNAL_ERROR", metadata)
    return ((_DETAILS, status.SerializeToString()),)


def from_rpc_error(error: grpc.aio.AioRpcError) -> BridgeError | None:
    """The refusal that the other side raised; None for a code that is none of the eight kinds (a bug there, a cancellation)."""
    kind = KINDS.get(error.code().value[0])
    if kind is None:
        return None
    raised = kind(error.details() or None)
    raised.retry_delay = None
    trailers = error.trailing_metadata() or ()
    for key, value in trailers:
        if key == _DETAILS and isinstance(value, bytes):
            _read_details(raised, value)
        elif key == _PUSHBACK[0]:
            raised.client_may_retry = False
    return raised


def has_details(error: grpc.aio.AioRpcError) -> bool:
    """Whether a node wrote the refusal; gRPC itself, and a proxy, give a code and a text alone."""
    return any(key == _DETAILS for key, _ in error.trailing_metadata() or ())


def _status(code: int, message: str, reason: str, metadata: dict[str, str]) -> status_pb2.Status:
    status = status_pb2.Status(code=code, message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata))
    return status


def _read_details(raised: BridgeError, serialized: bytes) -> None:
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    try:
        for detail in status_pb2.Status.FromString(serialized).details:
            if detail.Unpack(info):
                raised.reason = reason_of(info.reason)
                raised.metadata = dict(info.metadata)
            elif detail.Unpack(bad_request):
                raised.violations = tuple(
                    FieldViolation(item.field, item.description) for item in bad_request.field_violations
                )
            elif detail.Unpack(retry):
                raised.retry_delay = retry.retry_delay.ToTimedelta().total_seconds()
    except DecodeError:
        # A server or proxy that is not ours wrote the key; the code and the message still hold.
        return
