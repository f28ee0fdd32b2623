"""Routing by key: each key's calls go to one replica of a service while it is there, and to the next one while it is not.

What is called is the owner's; how a channel is made is client.py's. A key that changes its replica is a matter of speed alone:
replicas that meet on it must get along.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Generic, NamedTuple, Protocol, TypeVar

import grpc
from blake3 import blake3

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.client import ClientSettings, connect, resolve
from services.chassis.client_interceptor import NodeUnavailable
from services.chassis.errors import Unavailable

_log = logging.getLogger(__name__)
RESOLVE_SECONDS = 15.0
"""Between two look-ups of a name: a replica that was added gets its keys, and one that is gone is forgotten, within this."""


class Closing(Protocol):
    """What is made of a replica's channel."""

    async def aclose(self) -> None:
        """Takes no more calls, and returns when those under way have their answers."""


Client = TypeVar("Client", bound=Closing)
Answer = TypeVar("Answer")


class Replica(NamedTuple, Generic[Client]):
    client: Client
    channel: grpc.aio.Channel | None
    ending: AsyncExitStack

    @property
    def fails(self) -> bool:
        """Whether gRPC tries in vain to connect; a channel that was never used does not."""
        return self.channel is not None and self.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE


class Router(Generic[Client]):
    """The replicas of a service, by address.

    Guarantees: routers that know the same addresses send a key to the same replica; where one is added or gone, no key moves but
    those that come to it or were its own.
    """

    def __init__(self, replicas: Mapping[str, Replica[Client]]) -> None:
        self._replicas = dict(replicas)

    @classmethod
    def of(cls, client: Client) -> Router[Client]:
        """Of a single replica."""
        return cls({"": Replica(client, None, AsyncExitStack())})

    async def call(self, key: str, use: Callable[[Client], Awaitable[Answer]]) -> Answer:
        """What `use` makes of the key's replica, or where that cannot be reached, of the next one.

        A call that found no node is made again, and may have taken effect: it must be one that can be repeated. Raises what `use`
        raises; NodeUnavailable where no replica is left.
        """
        tried: set[str] = set()
        while True:
            address = self.address(key, tried)
            tried.add(address)
            try:
                return await use(self._replicas[address].client)
            except Unavailable as error:
                # Not where it speaks of a node behind it: that is as far from every replica.
                if not _is_gone(error) or tried.issuperset(self._replicas):
                    raise

    def address(self, key: str, tried: Iterable[str] = ()) -> str:
        """The address of the key's replica among those that were not tried, one of which there must be."""
        left = [address for address in self._replicas if address not in tried]
        if len(left) == 1:
            return left[0]
        sound = [address for address in left if not self._replicas[address].fails]
        return max(sound or left, key=lambda address: blake3(f"{address}\0{key}".encode()).digest())

    async def aclose(self) -> None:
        """Closes every client, and then its channel."""
        await self._drop(list(self._replicas))

    async def update(self, addresses: Iterable[str], add: Callable[[str], Awaitable[Replica[Client]]]) -> None:
        """Makes these the replicas; what was called of another goes on to its end."""
        wanted = set(addresses)
        for address in sorted(wanted - self._replicas.keys()):
            self._replicas[address] = await add(address)
        await self._drop([address for address in self._replicas if address not in wanted])

    async def _drop(self, addresses: Iterable[str]) -> None:
        for replica in [self._replicas.pop(address) for address in addresses]:
            await replica.client.aclose()
            await replica.ending.aclose()


@asynccontextmanager
async def routed(
    target: str, settings: ClientSettings, make: Callable[[grpc.aio.Channel], Client], *, every: float = RESOLVE_SECONDS
) -> AsyncIterator[Router[Client]]:
    """A router over a target as services.chassis.client takes it: a channel for each IP address, or for each that a name has now.

    A name is looked up at once and `every` so many seconds; until it could be, its calls are left to gRPC. Raises InvalidTarget.
    """

    async def replica(address: str) -> Replica[Client]:
        ending = AsyncExitStack()
        channel = await ending.enter_async_context(connect(address, settings))
        return Replica(make(channel), channel, ending)

    addresses, name = _parts(target)
    router = Router({address: await replica(address) for address in addresses})
    following = asyncio.create_task(_follow(router, name, replica, every)) if name else None
    try:
        yield router
    finally:
        if following is not None:
            following.cancel()
            await asyncio.wait([following])
        await router.aclose()


def _is_gone(error: Unavailable) -> bool:
    return isinstance(error, NodeUnavailable) or error.reason == errors_pb2.ERROR_REASON_SHUTTING_DOWN


async def _follow(
    router: Router[Client],
    name: tuple[str, int],
    add: Callable[[str], Awaitable[Replica[Client]]],
    every: float,
) -> None:
    while True:
        try:
            if addresses := await _looked_up(*name):
                await router.update(addresses, add)
        except Exception:
            _log.exception("the addresses of %s are not followed", name[0])
        await asyncio.sleep(every)


def _parts(target: str) -> tuple[Sequence[str], tuple[str, int] | None]:
    """The addresses of a target, and the host and port to look up where it is a name; until then the name is its address."""
    scheme, _, rest = resolve(target).partition(":")
    if scheme in ("ipv4", "ipv6"):
        return [address.strip() for address in rest.split(",")], None
    host, _, port = rest.removeprefix("///").rpartition(":")
    # What asks a name server of its own, `dns://1.1.1.1/name`, is left to gRPC.
    if scheme == "dns" and host and "/" not in host and port.isdecimal():
        return [target], (host, int(port))
    return [target], None


async def _looked_up(host: str, port: int) -> list[str]:
    """The addresses of a name; none where it has none now, which is most often a matter of time."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        _log.warning("name not resolved", extra={"host": host, "error": str(error)})
        return []
    families = {family for family, *_ in found}
    # A host of both families is one replica, not two.
    family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
    hosts = sorted({str(address[0]) for of, _, _, _, address in found if of == family})
    return [f"{host}:{port}" if family == socket.AF_INET else f"[{host}]:{port}" for host in hosts]
