"""A real mesh for a test: `omnibridge up` as a user runs it, on free ports and a folder of its own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.chassis.port import free_ports
from services.cli.mesh import NODES, NodeAddress

START_SECONDS = 60.0
"""A first start runs initdb and the migrations; on a busy machine that takes ten seconds."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """A running mesh."""

    process: subprocess.Popen[str]
    data: Path
    nodes: Mapping[str, NodeAddress]
    printed: str
    """What `up` printed until it was ready."""

    @property
    def addresses(self) -> dict[str, str]:
        """Each node's target."""
        return {name: node.target for name, node in self.nodes.items()}


@contextmanager
def running_mesh(data: Path) -> Iterator[Mesh]:
    """A mesh that is ready, stopped at the end as by Ctrl-C; its exit status is 0 unless the test killed it."""
    ports = iter(free_ports(2 * len(NODES)))
    nodes = {name: NodeAddress(name, next(ports), next(ports)) for name in NODES}
    process = start_up(data, nodes)
    try:
        yield Mesh(process, data, nodes, _read_until(process, "Ctrl-C stops the mesh"))
    finally:
        killed = process.poll() is not None
        if not killed:
            process.send_signal(signal.SIGINT)
        status = process.wait(60)
        assert process.stdout is not None
        process.stdout.close()
    assert killed or status == 0, f"`omnibridge up` ended with {status}"


def start_up(data: Path, nodes: Mapping[str, NodeAddress]) -> subprocess.Popen[str]:
    """`omnibridge up` with these nodes' ports; stdout and stderr in one pipe."""
    settings = {name: value for node in nodes.values() for name, value in node.env.items()}
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    return subprocess.Popen(
        [sys.executable, "-m", "services.cli.main", "up", "--data", str(data)],
        env={**environment, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _read_until(process: subprocess.Popen[str], sign: str) -> str:
    assert process.stdout is not None
    printed = ""
    deadline = time.monotonic() + START_SECONDS
    while sign not in printed:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        line = os.read(process.stdout.fileno(), 65536).decode() if ready else ""
        assert line, f"the mesh did not come up: {printed}"
        printed += line
    return printed
