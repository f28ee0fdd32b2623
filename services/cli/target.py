"""The way to the stamping node: its target, its stub, and its refusals as the command's one line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar

import grpc
import typer

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.stamping.v1 import stamping_pb2_grpc
from services.chassis.client import InvalidTarget, connect
from services.chassis.errors import KINDS, BridgeError, Unavailable
from services.cli.failure import USAGE, CommandError, Failed

Request = TypeVar("Request")
Response = TypeVar("Response")

Target = Annotated[
    str,
    typer.Option(
        "--target",
        envvar="OMNIBRIDGE_STAMPING_TARGET",
        metavar="HOST:PORT",
        help="Where the stamping node answers; several addresses are separated by commas.",
    ),
]
DEFAULT_TARGET = "127.0.0.1:50051"
NODE = "stamping"


@asynccontextmanager
async def stamping(target: str) -> AsyncIterator[stamping_pb2_grpc.StampingServiceStub]:
    """The stub of the stamping node at `target`. Whatever a call raises in this context is raised as CommandError."""
    try:
        async with connect(target) as channel:
            yield stamping_pb2_grpc.StampingServiceStub(channel)
    except InvalidTarget as error:
        raise CommandError(f"--target {target}: {error.message}", USAGE) from error
    except Unavailable as error:
        if error.reason != errors_pb2.ERROR_REASON_UNSPECIFIED:
            raise CommandError(f"{NODE}: {error.reason_name}: {error.message}") from error
        raise CommandError(f"{NODE}: no node answers at {target}; start one by: omnibridge up") from error
    except (BridgeError, grpc.aio.AioRpcError) as error:
        raise CommandError(f"{NODE}: {reason_of(error)}: {message_of(error)}") from error


def deadline(size: int) -> float:
    """Seconds that a call with `size` bytes may take: 30, as any call, and one more for each MiB, as the slowest link deserves."""
    return 30.0 + size / (1024 * 1024)


async def by_stream(
    call: Callable[[AsyncIterator[Request]], Awaitable[Response]], requests: AsyncIterator[Request]
) -> Response:
    """The response to a stream of requests. Raises the OSError that ended `requests`: gRPC makes a cancelled call of it."""
    broken: list[OSError] = []

    async def watched() -> AsyncIterator[Request]:
        try:
            async for request in requests:
                yield request
        except OSError as error:
            broken.append(error)
            raise

    try:
        return await call(watched())
    except asyncio.CancelledError:
        if broken:
            raise broken[0] from None
        raise


def failed(path: str, error: BridgeError | grpc.aio.AioRpcError) -> Failed:
    """The refusal as the failure of one path. Unavailable is none: it is raised, because the other paths would meet it too."""
    if isinstance(error, Unavailable):
        raise error
    return Failed(path, reason_of(error), message_of(error))


def refusal(error: errors_pb2.Error) -> BridgeError:
    """What a batch's item was refused with, as the call for that item alone would have raised it."""
    kind = KINDS.get(error.code, BridgeError)
    return kind(error.message or None, metadata=error.metadata, reason=error.reason)


def reason_of(error: BridgeError | grpc.aio.AioRpcError) -> str:
    """The error's reason; the canonical code's name where the other side gave none."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code().name
    if error.reason != errors_pb2.ERROR_REASON_UNSPECIFIED:
        return error.reason_name
    return next(
        (code.name for code in grpc.StatusCode if code.value[0] == getattr(type(error), "code", None)), "UNKNOWN"
    )


def message_of(error: BridgeError | grpc.aio.AioRpcError) -> str:
    """The error's message, for people."""
    return error.details() or "no details" if isinstance(error, grpc.aio.AioRpcError) else error.message
