"""A mesh of nodes that only answer health checks, as a program: `python -m tests.chassis.mesh DATA GUARD|KERNEL PORT:BEHAVIOUR...`.

It writes `pids` with the pids of PostgreSQL and of the nodes once all is healthy, an event a line, `error` with a MeshError.
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvloop

from services.chassis.embedded import EmbeddedPostgres
from services.chassis.folder import MeshError
from services.chassis.supervisor import POSTGRES, NodeProcess, Supervisor
from tests.chassis import health_node


def node(name: str, port: int, behaviour: str = "serve") -> NodeProcess:
    return NodeProcess(name, (sys.executable, health_node.__file__, str(port), behaviour), port)


async def main(data: Path, guarded: bool, nodes: list[NodeProcess]) -> None:
    postgres = EmbeddedPostgres(data, durable=False, guarded=guarded)
    async with Supervisor(nodes, data, postgres=postgres, report=print, guarded=guarded) as supervisor:
        print("pids", postgres.pid, *(supervisor.pid_of(name) for name in (POSTGRES, *(node.name for node in nodes))))
        await supervisor.wait()
    print("stopped")


if __name__ == "__main__":
    folder, watch, *ports = sys.argv[1:]
    described = [(int(port), behaviour) for port, _, behaviour in (text.partition(":") for text in ports)]
    nodes = [node(f"node-{index}", port, behaviour or "serve") for index, (port, behaviour) in enumerate(described)]
    try:
        uvloop.run(main(Path(folder), watch == "GUARD", nodes))
    except MeshError as error:
        sys.exit(f"error {error}")
