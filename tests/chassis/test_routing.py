"""Routing by key: laws of the choice over addresses, and real servers that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.client import ClientSettings, InvalidTarget
from services.chassis.client_interceptor import NodeUnavailable
from services.chassis.errors import Unavailable
from services.chassis.port import free_ports
from services.chassis.routing import Replica, Router, routed

BOUND = 20.0
QUICK = ClientSettings(attempts=1, initial_backoff_seconds=0.02, max_backoff_seconds=0.05)
KEYS = [f"workflow/{number}" for number in range(40)]
ADDRESSES = st.lists(st.from_regex(r"10\.0\.0\.[1-9]:[1-9]", fullmatch=True), min_size=2, max_size=6, unique=True)


class Client:
    """Asks a server who it is, or fails as a test says."""

    def __init__(self, channel: Any = None, failure: Exception | None = None) -> None:
        self._who: Any = channel and channel.unary_unary("/test.Naming/Who")
        self._failure = failure
        self._under_way: set[asyncio.Task[str]] = set()
        self.closed = False

    async def who(self) -> str:
        if self._failure is not None:
            raise self._failure
        call = asyncio.create_task(self._ask())
        self._under_way.add(call)
        call.add_done_callback(self._under_way.discard)
        return await call

    async def aclose(self) -> None:
        self.closed = True
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def _ask(self) -> str:
        answer: bytes = await self._who(b"")
        return answer.decode()


def router(clients: dict[str, Client]) -> Router[Client]:
    return Router({address: Replica(client, None, AsyncExitStack()) for address, client in clients.items()})


def routes(addresses: Iterable[str]) -> dict[str, str]:
    made = router({address: Client() for address in addresses})
    return {key: made.address(key) for key in KEYS}


@settings(max_examples=50)
@given(addresses=ADDRESSES)
def test_routers_that_know_the_same_addresses_agree_in_whatever_order_they_know_them(addresses: list[str]) -> None:
    assert routes(addresses) == routes(reversed(addresses))


@settings(max_examples=50)
@given(addresses=ADDRESSES)
def test_where_a_replica_is_gone_no_key_moves_but_its_own(addresses: list[str]) -> None:
    before, after = routes(addresses), routes(addresses[1:])
    assert {key for key in KEYS if before[key] != after[key]} == {key for key in KEYS if before[key] == addresses[0]}


def test_keys_are_spread_over_the_replicas() -> None:
    found = list(routes(["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"]).values())
    assert all(found.count(address) >= 6 for address in set(found))
    assert len(set(found)) == 3


@asynccontextmanager
async def serving(port: int) -> AsyncIterator[str]:
    """A server that says its own address."""
    address = f"127.0.0.1:{port}"

    async def who(_request: bytes, _context: object) -> bytes:
        return address.encode()

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers: Any = {"Who": grpc.unary_unary_rpc_method_handler(who)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Naming", handlers),))
    server.add_insecure_port(address)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)


async def test_a_keys_calls_go_to_one_replica_to_the_next_while_that_is_away_and_back() -> None:
    ports = free_ports(2)
    async with AsyncExitStack() as ending:
        up = [await ending.enter_async_context(serving(ports[0]))]
        async with serving(ports[1]) as other:
            target = f"ipv4:{up[0]},{other}"
            routing = await ending.enter_async_context(routed(target, QUICK, Client))
            theirs = {key: await routing.call(key, Client.who) for key in KEYS}
            assert theirs == routes([*up, other])
            key = next(key for key, address in theirs.items() if address == other)
            own = next(key for key, address in theirs.items() if address != other)
        assert await routing.call(key, Client.who) == up[0], "the first call finds it out"
        async with asyncio.timeout(BOUND):
            while routing.address(key) != up[0]:
                await routing.call(key, Client.who)
        assert routing.address(own) == up[0]
        async with serving(ports[1]):
            async with asyncio.timeout(BOUND):
                while await routing.call(key, Client.who) != other:
                    pass


async def test_a_name_is_looked_up_and_its_calls_go_on_meanwhile() -> None:
    (port,) = free_ports(1)
    async with serving(port) as address, routed(f"localhost:{port}", QUICK, Client, every=60) as routing:
        assert await routing.call("workflow/a", Client.who) == address
        async with asyncio.timeout(BOUND):
            while routing.address("workflow/a") != address:
                await routing.call("workflow/a", Client.who)
        assert await routing.call("workflow/a", Client.who) == address


async def test_replicas_are_added_and_those_that_are_gone_are_closed() -> None:
    one, two = Client(), Client()
    made = router({"10.0.0.1:1": one})

    async def add(_address: str) -> Replica[Client]:
        return Replica(two, None, AsyncExitStack())

    await made.update(["10.0.0.2:1"], add)
    assert {made.address(key) for key in KEYS} == {"10.0.0.2:1"}
    assert (one.closed, two.closed) == (True, False)
    await made.aclose()
    assert two.closed


async def test_only_a_replica_that_is_gone_gives_its_call_to_the_next_one() -> None:
    gone, stopping, behind = (
        NodeUnavailable(),
        Unavailable(reason=errors_pb2.ERROR_REASON_SHUTTING_DOWN),
        Unavailable(reason=errors_pb2.ERROR_REASON_NODE_UNAVAILABLE),
    )
    asked: list[str] = []

    async def ask(made: Router[Client], key: str) -> Exception:
        async def who(client: Client) -> str:
            asked.append(key)
            return await client.who()

        with pytest.raises(Unavailable) as refusal:
            await made.call(key, who)
        return refusal.value

    for failure, count in ((gone, 2), (stopping, 2), (behind, 1)):
        asked.clear()
        made = router({address: Client(failure=failure) for address in ("10.0.0.1:1", "10.0.0.2:1")})
        assert await ask(made, "workflow/a") is failure
        assert len(asked) == count, failure


@pytest.mark.parametrize("target", ["127.0.0.1", "a:1,b:2", "127.0.0.1:0"])
async def test_what_is_no_target_is_refused(target: str) -> None:
    with pytest.raises(InvalidTarget):
        async with routed(target, QUICK, Client):
            pass
