"""Which nodes there are, and how each is started on this machine. What starts and watches them is the chassis's supervisor."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.chassis.port import METRICS_OFFSET

HOST = "127.0.0.1"
"""A mesh on one machine is for that machine: nothing outside of it reaches the nodes."""
NODES: Mapping[str, int] = {"stamping": 50051, "store": 50054, "reducer": 50053, "orchestrator": 50052}
"""Each node with its port; `services.<node>.node` runs it. A node comes after those that it calls: it is stopped before them."""
CALLS: Mapping[str, Sequence[str]] = {"reducer": ("store",), "orchestrator": ("stamping", "reducer", "store")}
"""The nodes that a node calls; where each answers is the setting `target` of a section of its name."""


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """Where a node of this machine answers."""

    node: str
    port: int
    metrics_port: int

    @property
    def target(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{HOST}:{self.metrics_port}/metrics"

    @property
    def argv(self) -> tuple[str, ...]:
        """The node's process. -P: a folder `services` where the command was typed is not ours."""
        return (sys.executable, "-P", "-m", "services.cli.main", "serve", self.node)

    @property
    def env(self) -> dict[str, str]:
        """The settings that make the node answer here."""
        return {
            _variable(self.node, "SERVER", "HOST"): HOST,
            _variable(self.node, "SERVER", "PORT"): str(self.port),
            _variable(self.node, "SERVER", "METRICS_PORT"): str(self.metrics_port),
        }


def environment_of(node: NodeAddress, mesh: Iterable[NodeAddress]) -> dict[str, str]:
    """The settings that make `node` answer at its address, and find those of `mesh` that it calls."""
    called = CALLS.get(node.node, ())
    targets = {_variable(node.node, other.node, "TARGET"): other.target for other in mesh if other.node in called}
    return node.env | targets


def configured_addresses(environment: Mapping[str, str]) -> list[NodeAddress]:
    """Every node at the ports that the environment sets for it, else at its own. Raises ValueError with the name of a bad one."""
    addresses = []
    for node, default in NODES.items():
        port = _port(environment, _variable(node, "SERVER", "PORT"), default)
        addresses.append(
            NodeAddress(
                node, port, _port(environment, _variable(node, "SERVER", "METRICS_PORT"), port + METRICS_OFFSET)
            )
        )
    _check_different(addresses)
    return addresses


def _check_different(addresses: Sequence[NodeAddress]) -> None:
    taken: dict[int, str] = {}
    for address in addresses:
        for field, port in (("PORT", address.port), ("METRICS_PORT", address.metrics_port)):
            name = _variable(address.node, "SERVER", field)
            if port in taken:
                raise ValueError(f"{name}={port}: the port of {taken[port]}")
            taken[port] = name


def _variable(node: str, section: str, field: str) -> str:
    return f"OMNIBRIDGE_{node.upper()}__{section.upper()}__{field}"


def _port(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name) or str(default)
    if not (value.isascii() and value.isdecimal()) or not 0 < int(value) < 65536:
        raise ValueError(f"{name}={value}: a port is a number from 1 to 65535")
    return int(value)
