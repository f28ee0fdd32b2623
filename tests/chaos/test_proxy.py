"""The proxy passes every byte but for the faults that are asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.chassis.port import LOOPBACK
from tests.chaos.proxy import Proxy, Streams, proxy, to_port, to_socket

BOUND = 10.0


class Upstream:
    """Answers every byte with itself, and remembers what came."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.ended = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(4096):
                self.received += data
                writer.write(data)
        except OSError:
            pass
        finally:
            self.ended.set()
            writer.close()


@asynccontextmanager
async def between() -> AsyncIterator[tuple[Upstream, Proxy, Streams]]:
    """An upstream, a proxy before it, and one client's connection through that."""
    upstream = Upstream()
    async with asyncio.timeout(BOUND):
        server = await asyncio.start_server(upstream.serve, LOOPBACK, 0)
        upstream.port = server.sockets[0].getsockname()[1]
        async with server, proxy(to_port(upstream.port)) as made:
            reader, writer = await asyncio.open_connection(LOOPBACK, made.port)
            try:
                yield upstream, made, (reader, writer)
            finally:
                writer.close()


async def test_bytes_pass_both_ways() -> None:
    async with between() as (upstream, _, (reader, writer)):
        writer.write(b"statement")
        assert await reader.readexactly(9) == b"statement"
        assert upstream.received == b"statement"


async def test_a_unix_socket_is_an_upstream_too(tmp_path: Path) -> None:
    upstream = Upstream()
    server = await asyncio.start_unix_server(upstream.serve, tmp_path / "socket")
    async with asyncio.timeout(BOUND), server, proxy(to_socket(str(tmp_path / "socket"))) as made:
        reader, writer = await asyncio.open_connection(LOOPBACK, made.port)
        writer.write(b"statement")
        assert await reader.readexactly(9) == b"statement"
        writer.close()


async def test_an_upstream_that_is_away_ends_the_connection() -> None:
    async with asyncio.timeout(BOUND), proxy(to_socket("/nowhere")) as made:
        reader, writer = await asyncio.open_connection(LOOPBACK, made.port)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()


async def test_a_statement_that_is_cut_arrives_in_part_and_both_sides_are_cut_off() -> None:
    async with between() as (upstream, made, (reader, writer)):
        cutting = asyncio.ensure_future(made.cut_after(4))
        await asyncio.sleep(0)
        writer.write(b"statement")
        await cutting
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(9)
        await upstream.ended.wait()
        assert upstream.received == b"stat"
        assert made.cuts == 1


async def test_a_cut_that_was_given_up_cuts_nothing() -> None:
    async with between() as (_, made, (reader, writer)):
        cutting = asyncio.ensure_future(made.cut_after(4))
        await asyncio.sleep(0)
        cutting.cancel()
        await asyncio.wait({cutting})
        writer.write(b"statement")
        assert await reader.readexactly(9) == b"statement"


async def test_what_waits_in_a_stall_passes_after_it() -> None:
    async with between() as (upstream, made, (reader, writer)):
        async with made.stalled():
            writer.write(b"statement")
            reading = asyncio.ensure_future(reader.readexactly(9))
            direct_reader, direct = await asyncio.open_connection(LOOPBACK, upstream.port)
            # As many round trips beside the proxy as are time enough for one through it.
            for _ in range(20):
                direct.write(b"-")
                await direct_reader.readexactly(1)
            direct.close()
            assert upstream.received == b"-" * 20
        assert await reading == b"statement"


async def test_an_answer_that_is_swallowed_is_to_what_arrived() -> None:
    async with between() as (upstream, made, (reader, writer)):
        async with made.swallowing() as lost:
            writer.write(b"statement")
            await lost.wait()
            assert upstream.received == b"statement"
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)


async def test_a_connection_that_missed_nothing_outlives_the_swallowing() -> None:
    async with between() as (_, made, (reader, writer)):
        async with made.swallowing():
            pass
        writer.write(b"statement")
        assert await reader.readexactly(9) == b"statement"
