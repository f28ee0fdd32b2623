"""A TCP proxy that does what networks do: it cuts connections in mid-statement, stalls, and loses answers."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from socket import AF_INET, SO_LINGER, SOL_SOCKET
from typing import TypeAlias

from services.chassis.port import LOOPBACK

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect: TypeAlias = Callable[[], Awaitable[Streams]]
_CHUNK_BYTES = 64 * 1024


class Proxy:
    """Connections of clients to one upstream. All of its faults are asked for; without them every byte passes."""

    def __init__(self, connect: Connect, port: int) -> None:
        self.port = port
        self.cuts = 0
        """Connections that were cut."""
        self._connect = connect
        self._open: set[_Connection] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._left: int | None = None
        self._cut = asyncio.Event()
        self._swallowing = False
        self._swallowed = asyncio.Event()

    def cut(self) -> int:
        """Resets every connection now; how many there were."""
        for connection in tuple(self._open):
            self._abort(connection)
        return self.cuts

    async def cut_after(self, size: int) -> None:
        """Lets `size` more bytes of clients pass, and resets the connection in whose bytes the count ends. Returns when it has.

        Cancelled, it lets everything pass again.
        """
        self._cut.clear()
        self._left = size
        try:
            await self._cut.wait()
        finally:
            self._left = None

    @asynccontextmanager
    async def stalled(self) -> AsyncIterator[None]:
        """Nothing passes, either way, and nothing is lost: a network that hangs."""
        self._flowing.clear()
        try:
            yield
        finally:
            self._flowing.set()

    @asynccontextmanager
    async def swallowing(self) -> AsyncIterator[asyncio.Event]:
        """What clients send passes, and no answer comes back. Yields what is set at the first answer that was lost.

        The connections that missed answers are cut at the end: nobody could read what follows.
        """
        self._swallowed.clear()
        self._swallowing = True
        try:
            yield self._swallowed
        finally:
            self._swallowing = False
            for connection in tuple(self._open):
                if connection.incomplete:
                    self._abort(connection)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, to its end."""
        try:
            upstream_reader, upstream_writer = await self._connect()
        except OSError:
            _reset(writer)
            return
        connection = _Connection(writer, upstream_writer)
        self._open.add(connection)
        ways = [
            asyncio.ensure_future(self._requests(connection, reader, upstream_writer)),
            asyncio.ensure_future(self._answers(connection, upstream_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._open.discard(connection)
            # Whichever side ended, the other's last bytes are on their way: a close sends them, an abort would not.
            writer.close()
            upstream_writer.close()

    async def _requests(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._flowing.wait()
                left = self._left
                if left is None or len(data) < left:
                    self._left = None if left is None else left - len(data)
                    writer.write(data)
                    await writer.drain()
                else:
                    self._left = None
                    writer.write(data[:left])
                    # The beginning of the statement is to arrive before the connection ends.
                    await writer.drain()
                    self._abort(connection, flush=True)
                    self._cut.set()
                    return

    async def _answers(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._flowing.wait()
                if self._swallowing or connection.incomplete:
                    connection.incomplete = True
                    self._swallowed.set()
                else:
                    writer.write(data)
                    await writer.drain()

    def _abort(self, connection: _Connection, *, flush: bool = False) -> None:
        self.cuts += 1
        self._open.discard(connection)
        _reset(connection.client)
        if flush:
            connection.upstream.close()
        else:
            _reset(connection.upstream)


class _Connection:
    def __init__(self, client: asyncio.StreamWriter, upstream: asyncio.StreamWriter) -> None:
        self.client, self.upstream = client, upstream
        self.incomplete = False
        """True once an answer was lost."""


def _reset(writer: asyncio.StreamWriter) -> None:
    # Without lingering the close of a TCP socket is a reset, as of a host that is gone, and not a polite end.
    socket = writer.get_extra_info("socket")
    if socket is not None and socket.family == AF_INET:
        socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def proxy(connect: Connect) -> AsyncIterator[Proxy]:
    """A proxy that listens on a free port of this machine; every connection ends with it."""
    serving: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await made.serve(reader, writer)
        finally:
            serving.discard(task)

    server = await asyncio.start_server(accept, LOOPBACK, 0)
    made = Proxy(connect, server.sockets[0].getsockname()[1])
    try:
        yield made
    finally:
        server.close()
        made.cut()
        for task in tuple(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


def to_port(port: int) -> Connect:
    """Upstream is a TCP port of this machine."""
    return lambda: asyncio.open_connection(LOOPBACK, port)


def to_socket(path: str) -> Connect:
    """Upstream is a unix socket."""
    return lambda: asyncio.open_unix_connection(path)
