"""The processes under measurement: our nodes, and the bare handler that only builds its answers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from services.chassis.embedded import EmbeddedPostgres
from services.chassis.migration import upgrade
from services.chassis.port import free_ports
from services.cli.mesh import NODES, NodeAddress, environment_of


@dataclass(frozen=True, slots=True)
class Measured:
    """Server processes that serve one contract together: where it is called, and what they have used."""

    target: str
    processes: tuple[psutil.Process, ...]

    def cpu_seconds(self) -> float:
        """User and system time of the processes so far."""
        times = [process.cpu_times() for process in self.processes]
        return float(sum(time.user + time.system for time in times))

    def resident_bytes(self) -> int:
        """Their resident memory now."""
        return sum(int(process.memory_info().rss) for process in self.processes)


@dataclass(frozen=True, slots=True)
class Mesh:
    """Nodes on a PostgreSQL of their own."""

    database_url: str
    addresses: Mapping[str, NodeAddress]
    processes: Mapping[str, psutil.Process]

    @property
    def targets(self) -> Mapping[str, str]:
        """Where each node is called."""
        return {node: address.target for node, address in self.addresses.items()}

    def measured(self, called: str, *behind: str) -> Measured:
        """The node that is called, with the processes of those that work behind it."""
        return Measured(self.targets[called], tuple(self.processes[node] for node in (called, *behind)))


@contextmanager
def bare() -> Iterator[Measured]:
    """The bare handler as a process of its own."""
    (port,) = free_ports(1)
    with _running([sys.executable, "-m", "benchmarks.bare", str(port)], {}) as process:
        yield Measured(f"127.0.0.1:{port}", (process,))


@asynccontextmanager
async def mesh(*nodes: str) -> AsyncIterator[Mesh]:
    """These nodes on an embedded PostgreSQL of their own, fsync on, each a process."""
    ports = iter(free_ports(2 * len(NODES)))
    addresses = [NodeAddress(node, next(ports), next(ports)) for node in NODES]
    with (
        tempfile.TemporaryDirectory(prefix="omnibridge-bench-") as folder,
        EmbeddedPostgres(Path(folder)) as postgres,
        ExitStack() as running,
    ):
        await asyncio.to_thread(upgrade, postgres.url)
        processes = {
            address.node: running.enter_context(
                _running(address.argv, {"DATABASE_URL": postgres.url, **environment_of(address, addresses)})
            )
            for address in addresses
            if address.node in nodes
        }
        yield Mesh(postgres.url, {address.node: address for address in addresses}, processes)


@contextmanager
def another(node: str, nodes: Mesh) -> Iterator[tuple[NodeAddress, psutil.Process]]:
    """A further replica of a node of the mesh."""
    address = NodeAddress(node, *free_ports(2))
    others = [other for name, other in nodes.addresses.items() if name != node]
    environment = {"DATABASE_URL": nodes.database_url, **environment_of(address, others)}
    with _running(address.argv, environment) as process:
        yield address, process


@contextmanager
def _running(command: Sequence[str], env: Mapping[str, str]) -> Iterator[psutil.Process]:
    process = subprocess.Popen(command, env={**os.environ, **env}, stderr=subprocess.DEVNULL)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)
