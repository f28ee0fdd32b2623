"""The ways to the nodes: their targets, their stubs, and their refusals as the command's one line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import grpc
import typer

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.orchestrator.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from omninode.bridge.stamping.v1.stamping_pb2_grpc import StampingServiceStub
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.client import InvalidTarget, connect, resolve
from services.chassis.errors import BridgeError, Unavailable
from services.cli.failure import USAGE, CommandError, Failed
from services.cli.mesh import HOST, NODES

Request = TypeVar("Request")
Response = TypeVar("Response")
Stub = TypeVar("Stub")


@dataclass(frozen=True, slots=True)
class Peer(Generic[Stub]):
    """A node that the command calls."""

    node: str
    option: str
    """The option that says where it answers; OMNIBRIDGE_<NODE>_TARGET says it too."""
    stub: Callable[[grpc.aio.Channel], Stub]

    @property
    def default(self) -> str:
        """Where `up` has it."""
        return f"{HOST}:{NODES[self.node]}"

    def target(self) -> Any:
        """The option as a verb declares it."""
        return typer.Option(
            self.option,
            envvar=f"OMNIBRIDGE_{self.node.upper()}_TARGET",
            metavar="HOST:PORT",
            parser=self._checked,
            help=f"Where the {self.node} node answers; several addresses are separated by commas.",
        )

    def _checked(self, target: str) -> str:
        """The option's value, also where the verb then has no use for it."""
        try:
            resolve(target)
        except InvalidTarget as error:
            raise CommandError(f"{self.option} {target}: {error.message}", USAGE) from error
        return target

    @asynccontextmanager
    async def at(self, target: str) -> AsyncIterator[Stub]:
        """The node's stub. Whatever a call raises in this context is raised as CommandError in this node's name, so no context of
        another node may enclose or be enclosed.
        """
        try:
            async with connect(target) as channel:
                yield self.stub(channel)
        except (BridgeError, grpc.aio.AioRpcError) as error:
            if is_nobody_there(error):
                raise CommandError(f"{self.node}: no node answers at {target}; start one by: omnibridge up") from error
            raise CommandError(f"{self.node}: {reason_of(error)}: {message_of(error)}") from error


STAMPING = Peer("stamping", "--target", StampingServiceStub)
ORCHESTRATOR = Peer("orchestrator", "--orchestrator", OrchestratorServiceStub)
STORE = Peer("store", "--store", StoreServiceStub)
REDUCER = Peer("reducer", "--reducer", ReducerServiceStub)

StampingTarget = Annotated[str, STAMPING.target()]
OrchestratorTarget = Annotated[str, ORCHESTRATOR.target()]
StoreTarget = Annotated[str, STORE.target()]
ReducerTarget = Annotated[str, REDUCER.target()]


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


def is_nobody_there(error: BaseException) -> bool:
    """Whether the call reached no node. A node may be unavailable too, for want of another; then it answered, with trailers."""
    cause = error.__cause__
    return isinstance(error, Unavailable) and isinstance(cause, grpc.aio.AioRpcError) and not cause.trailing_metadata()


def is_transient(error: BridgeError) -> bool:
    """Whether the same call may succeed later: the node says so, or cannot be reached now."""
    return isinstance(error, Unavailable) or error.retry_delay is not None


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
