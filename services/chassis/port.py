"""TCP ports of this machine: free ones, and whether given ones can be listened on."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from itertools import chain, cycle, islice

from services.chassis.folder import MeshError

LOOPBACK = "127.0.0.1"
MAX_PORT = 65535
METRICS_OFFSET = 1000
"""A node's metrics are served on its port and this, unless a port is set for them."""


_UNTAKEN = range(20_000, 32_000)
"""Below the ports that systems give to outgoing connections, one of which may take a free port before its owner listens."""
# Each process begins elsewhere, and gives each port once in a round: many may start meshes at the same time.
_candidates = cycle(chain(_UNTAKEN[os.getpid() * 97 % len(_UNTAKEN) :], _UNTAKEN[: os.getpid() * 97 % len(_UNTAKEN)]))


class PortRefused(MeshError):
    """A port cannot be listened on; `port` says which."""

    def __init__(self, host: str, port: int, why: str) -> None:
        self.host, self.port = host, port
        super().__init__(f"port {port} on {host}: {why}")


def free_ports(count: int, host: str = LOOPBACK) -> tuple[int, ...]:
    """`count` different ports on which nothing listens now. Nothing reserves them: take them soon."""
    with contextlib.ExitStack() as held:
        found: list[int] = []
        for port in islice(_candidates, len(_UNTAKEN)):
            with contextlib.suppress(OSError):
                held.enter_context(_listener(host, port))
                found.append(port)
            if len(found) == count:
                return tuple(found)
    raise PortRefused(host, _UNTAKEN.start, f"no {count} ports are free up to {_UNTAKEN.stop - 1}")


def check_free(addresses: Iterable[tuple[str, int]]) -> None:
    """Raise PortRefused for the first (host, port) that cannot be listened on."""
    for host, port in addresses:
        try:
            _listener(host, port).close()
        except OSError as error:
            raise PortRefused(host, port, error.strerror or str(error)) from error


def _listener(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # A port whose last connections are still in TIME_WAIT is free all the same.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener
