"""The servers that are killed: a store and reducer replicas as processes, on a PostgreSQL of their own with its data on disk."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.chassis import child
from services.chassis.child import Child
from services.chassis.folder import last_lines
from services.chassis.port import free_ports
from services.cli.mesh import NodeAddress, environment_of
from tests.chaos.server import START_SECONDS, Postgres, serving


class Node:
    """A node's process, at one address over all its lives."""

    def __init__(self, address: NodeAddress, environment: Mapping[str, str], log: Path) -> None:
        self.target = address.target
        self._address, self._environment, self._log = address, environment, log
        self._child: Child | None = None

    async def start(self) -> None:
        """Returns when it serves."""
        with self._log.open("ab") as output:
            self._child = child.spawn(self._address.argv, env={**os.environ, **self._environment}, output=output)
        async with asyncio.timeout(START_SECONDS):
            if not await serving(self.target, self._child):
                raise AssertionError(
                    f"{self._address.node} ended before it served: {last_lines(self._log.read_text())}"
                )

    async def kill(self) -> None:
        """kill -9."""
        assert self._child is not None, "start comes first"
        self._child.signal(signal.SIGKILL)
        await self._child.ended()

    async def stop(self) -> None:
        """Ends it as an operator does; that is to be clean."""
        assert self._child is not None, "start comes first"
        status = await asyncio.to_thread(self._child.stop, ((signal.SIGTERM, 40.0),))
        assert status == 0, f"{self._address.node} ended with {child.describe(status)}"


@dataclass(frozen=True, slots=True)
class Servers:
    """All that is killed but the writer."""

    store: Node
    reducers: Sequence[Node]

    @property
    def target(self) -> str:
        """All reducers as one target."""
        return ",".join(reducer.target for reducer in self.reducers)


@asynccontextmanager
async def servers(folder: Path, reducers: int = 2) -> AsyncIterator[Servers]:
    """PostgreSQL, a store and reducers that serve; stopped at the end. Their logs are in the folder."""
    ports = iter(free_ports(2 * (1 + reducers)))
    store, *others = (NodeAddress(name, next(ports), next(ports)) for name in ("store", *["reducer"] * reducers))
    async with AsyncExitStack() as ending:
        postgres = Postgres(folder / "data")
        await ending.enter_async_context(postgres.running())
        nodes = [
            Node(address, {**environment_of(address, [store]), "DATABASE_URL": postgres.url}, folder / f"{number}.log")
            for number, address in enumerate([store, *others])
        ]
        await asyncio.gather(*(node.start() for node in nodes))
        for node in nodes:
            ending.push_async_callback(node.stop)
        yield Servers(nodes[0], nodes[1:])
