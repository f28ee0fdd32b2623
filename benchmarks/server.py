"""The processes under measurement: our node, and the bare handler that only builds its answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from services.chassis.port import free_ports


@dataclass(frozen=True, slots=True)
class Measured:
    """A server process: where it listens, and what it has used."""

    target: str
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def resident_bytes(self) -> int:
        """Its resident memory now."""
        return int(self.process.memory_info().rss)


@contextmanager
def bare() -> Iterator[Measured]:
    """The bare handler as a process of its own."""
    with _running([sys.executable, "-m", "benchmarks.bare"], {}) as (port, process):
        yield Measured(f"127.0.0.1:{port}", process)


@contextmanager
def stamping_node(database_url: str) -> Iterator[Measured]:
    """The stamping node as a process of its own, on a migrated database."""
    command = [sys.executable, "-m", "services.cli.main", "serve", "stamping"]
    with _running(command, {"DATABASE_URL": database_url}) as (port, process):
        yield Measured(f"127.0.0.1:{port}", process)


@contextmanager
def _running(command: list[str], env: Mapping[str, str]) -> Iterator[tuple[int, psutil.Process]]:
    port, metrics_port = free_ports(2)
    ports = {
        "OMNIBRIDGE_STAMPING__SERVER__PORT": str(port),
        "OMNIBRIDGE_STAMPING__SERVER__METRICS_PORT": str(metrics_port),
    }
    process = subprocess.Popen(command, env={**os.environ, **ports, **env}, stderr=subprocess.DEVNULL)
    try:
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)
