"""A mesh on one machine, for real: up, healed after kill -9 of any part, stopped, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import pytest

from services.chassis.embedded import EmbeddedPostgres
from services.chassis.folder import FolderInUse
from services.chassis.keeper import Died, Event, Healthy, Restarting, Started, Timing
from services.chassis.port import LOOPBACK, PortRefused, free_ports
from services.chassis.supervisor import POSTGRES, NodeFailed, NodeProcess, StopAsked, Supervisor
from tests.chassis.mesh import node
from tests.chassis.process import BOUND, ended, line_of, runs, started

MESH = ("-m", "tests.chassis.mesh")
WATCHES = [
    pytest.param(
        "KERNEL", id="kernel", marks=pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
    ),
    pytest.param("GUARD", id="guard"),
]


class Events:
    """What a supervisor reports, to be waited for."""

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self._changed = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.seen.append(event)
        self._changed.set()

    async def have(self, kind: type[Event], name: str, count: int = 1) -> None:
        async with asyncio.timeout(BOUND):
            while len(self.of(kind, name)) < count:
                self._changed.clear()
                await self._changed.wait()

    def of(self, kind: type[Event], name: str) -> list[Event]:
        return [event for event in self.seen if isinstance(event, kind) and event.name == name]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "with a space" / "data"


@pytest.fixture
def events() -> Events:
    return Events()


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


def pid_of(supervisor: Supervisor, name: str) -> int:
    pid = supervisor.pid_of(name)
    assert pid is not None
    return pid


async def test_all_is_healthy_inside_and_gone_outside(data: Path, events: Events) -> None:
    one, two = free_ports(2)
    postgres = EmbeddedPostgres(data, durable=False)
    async with Supervisor([node("one", one), node("two", two)], data, postgres=postgres, report=events) as supervisor:
        pids = [pid_of(supervisor, name) for name in (POSTGRES, "one", "two")]
        assert all(runs(pid) for pid in pids)
        for port in (one, two):
            socket.create_connection((LOOPBACK, port)).close()
        url = postgres.url
        async with connected(url):
            pass
        with pytest.raises(KeyError):
            supervisor.pid_of("three")
    assert all(ended(pid, 0) for pid in pids)
    assert f"url {url}" in (data / "log" / "one.log").read_text()
    assert [type(event) for event in events.seen if event.name == POSTGRES] == [Started, Healthy]


async def test_the_database_is_made_ready_before_any_node_starts(data: Path, events: Events) -> None:
    seen: list[list[str]] = []

    async def migrate(url: str) -> None:
        async with connected(url):
            seen.append([event.name for event in events.seen])

    postgres = EmbeddedPostgres(data, durable=False)
    async with Supervisor([node("one", free_ports(1)[0])], data, postgres=postgres, on_database=migrate, report=events):
        assert seen == [[POSTGRES, POSTGRES]]


async def test_a_failing_preparation_of_the_database_leaves_nothing(data: Path, events: Events) -> None:
    async def migrate(url: str) -> None:
        raise LookupError(url)

    postgres = EmbeddedPostgres(data, durable=False)
    with pytest.raises(LookupError):
        await Supervisor([], data, postgres=postgres, on_database=migrate, report=events).__aenter__()
    (start,) = events.of(Started, POSTGRES)
    assert isinstance(start, Started)
    assert ended(start.pid, 0)


async def test_a_killed_node_is_back_and_healthy(data: Path, events: Events) -> None:
    (port,) = free_ports(1)
    async with Supervisor([node("one", port)], data, report=events) as supervisor:
        before = pid_of(supervisor, "one")
        os.kill(before, signal.SIGKILL)
        await events.have(Healthy, "one", 2)
        assert pid_of(supervisor, "one") != before
        socket.create_connection((LOOPBACK, port)).close()
    assert isinstance(died := events.of(Died, "one")[0], Died)
    assert died.status == -signal.SIGKILL
    assert events.of(Restarting, "one") == [Restarting("one", 0.2)]


async def test_a_killed_postgres_is_back_at_the_same_url_with_what_was_committed(data: Path, events: Events) -> None:
    postgres = EmbeddedPostgres(data)
    async with Supervisor([node("one", free_ports(1)[0])], data, postgres=postgres, report=events) as supervisor:
        async with connected(postgres.url) as connection:
            await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        of_node = supervisor.pid_of("one")
        os.kill(pid_of(supervisor, POSTGRES), signal.SIGKILL)
        await events.have(Healthy, POSTGRES, 2)
        async with connected(postgres.url) as connection:
            assert await connection.fetchval("SELECT answer FROM kept") == 42
        assert supervisor.pid_of("one") == of_node


@pytest.mark.parametrize("watch", WATCHES)
def test_a_killed_supervisor_leaves_nobody(data: Path, watch: str) -> None:
    with started(*MESH, str(data), watch, *map(str, free_ports(2))) as mesh:
        pids = [int(pid) for pid in line_of(mesh, "pids ").split()]
        assert all(runs(pid) for pid in pids)
        mesh.kill()
        assert all(ended(pid) for pid in pids)
    with EmbeddedPostgres(data, durable=False):
        assert "not properly shut down" not in (data / "log" / "postgres.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_stops_all(data: Path, number: signal.Signals) -> None:
    with started(*MESH, str(data), "KERNEL" if sys.platform == "linux" else "GUARD", *map(str, free_ports(2))) as mesh:
        pids = [int(pid) for pid in line_of(mesh, "pids ").split()]
        mesh.send_signal(number)
        line_of(mesh, "stopped")
        assert mesh.wait(BOUND) == 0
        assert all(ended(pid, 0) for pid in pids)
    with EmbeddedPostgres(data, durable=False):
        assert "not properly shut down" not in (data / "log" / "postgres.log").read_text()


def test_the_last_node_stops_first_and_a_second_signal_hastens(data: Path) -> None:
    first, last = free_ports(2)
    with started(
        *MESH, str(data), "KERNEL" if sys.platform == "linux" else "GUARD", str(first), f"{last}:ignore-sigterm"
    ) as mesh:
        postgres, _, of_first, of_last = [int(pid) for pid in line_of(mesh, "pids ").split()]
        mesh.send_signal(signal.SIGINT)
        # As long as the last node takes its time, those before it stand.
        assert not ended(of_first, 0.3)
        assert runs(of_last)
        assert runs(postgres)
        mesh.send_signal(signal.SIGINT)
        assert ended(of_last, 5.0)
        assert mesh.wait(BOUND) == 0
        assert all(ended(pid, 0) for pid in (postgres, of_first, of_last))


async def test_a_node_that_does_not_stop_in_time_is_killed(data: Path) -> None:
    nodes = [node("stubborn", free_ports(1)[0], "ignore-sigterm")]
    async with Supervisor(nodes, data, timing=Timing(stop=0.1)) as supervisor:
        pid = pid_of(supervisor, "stubborn")
    assert ended(pid, 0)


async def test_waiting_ends_when_a_signal_asks_for_a_stop(data: Path) -> None:
    async with asyncio.timeout(BOUND), Supervisor([], data) as supervisor:
        os.kill(os.getpid(), signal.SIGTERM)
        await supervisor.wait()


async def test_a_second_supervisor_of_the_folder_is_refused_with_pid_folder_and_ports(data: Path) -> None:
    ports = free_ports(2)
    first = NodeProcess("one", node("one", ports[0]).argv, ports[0], metrics_port=ports[1])
    async with Supervisor([first], data):
        with pytest.raises(FolderInUse) as refused:
            await Supervisor([node("one", free_ports(1)[0])], data).__aenter__()
    named = f"{data} is in use by the mesh of pid {os.getpid()} (ports {ports[0]}, {ports[1]})"
    assert str(refused.value) == named


def test_a_second_supervisor_on_the_ports_exits_1_and_names_pid_folder_and_port(data: Path, tmp_path: Path) -> None:
    watch, port = "KERNEL" if sys.platform == "linux" else "GUARD", str(*free_ports(1))
    with started(*MESH, str(data), watch, port) as first:
        line_of(first, "pids ")
        with started(*MESH, str(tmp_path / "other"), watch, port) as second:
            refusal = line_of(second, "error ")
            assert second.wait(BOUND) == 1
        assert refusal == f"port {port} on {LOOPBACK}: in use by the mesh of pid {first.pid} (ports {port}) of {data}"
        assert not (tmp_path / "other" / "postgres").exists()


async def test_a_port_in_use_is_refused_before_anything_starts(data: Path, events: Events) -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortRefused, match=f"port {port} on {LOOPBACK}: Address already in use"):
            await Supervisor([node("one", port)], data, report=events).__aenter__()
    assert events.seen == []


async def test_a_node_that_ends_before_it_is_healthy_fails_the_start_by_its_last_lines(
    data: Path, events: Events
) -> None:
    good, bad = free_ports(2)
    with pytest.raises(NodeFailed, match=r"^bad ended with exit status 1 before it was healthy: .*no such table$"):
        await Supervisor([node("good", good), node("bad", bad, "fail")], data, report=events).__aenter__()
    assert all(ended(event.pid, 0) for event in events.seen if isinstance(event, Started))


async def test_a_node_that_is_never_healthy_fails_the_start_within_the_bound(data: Path, events: Events) -> None:
    (port,) = free_ports(1)
    with pytest.raises(NodeFailed, match=f"^slow was not healthy on port {port} within 1.5 s"):
        await Supervisor(
            [node("slow", port, "never-serving")], data, report=events, timing=Timing(healthy=1.5)
        ).__aenter__()
    assert all(ended(event.pid, 0) for event in events.seen if isinstance(event, Started))


async def test_a_stop_asked_for_during_the_start_ends_it(data: Path) -> None:
    seen: list[Event] = []

    def stop_at_once(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Started) and event.name == "slow":
            os.kill(os.getpid(), signal.SIGINT)

    nodes = [node("slow", free_ports(1)[0], "never-serving")]
    postgres = EmbeddedPostgres(data, durable=False)
    with pytest.raises(StopAsked):
        await Supervisor(nodes, data, postgres=postgres, report=stop_at_once).__aenter__()
    pids = [event.pid for event in seen if isinstance(event, Started)]
    assert len(pids) == 2
    assert all(ended(pid, 0) for pid in pids)


async def test_a_stop_asked_for_while_postgres_starts_ends_the_waiting(data: Path) -> None:
    pids: list[int] = []

    def stop_at_once(event: Event) -> None:
        if isinstance(event, Started):
            pids.append(event.pid)
            # Held back, it would never be ready.
            os.kill(event.pid, signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGINT)

    postgres = EmbeddedPostgres(data, durable=False)
    postgres.stop_steps = ((signal.SIGINT, 0.1),)
    with pytest.raises(StopAsked):
        async with asyncio.timeout(BOUND):
            await Supervisor([], data, postgres=postgres, report=stop_at_once).__aenter__()
    assert [ended(pid, 0) for pid in pids] == [True]


@pytest.mark.parametrize(
    "build",
    [
        lambda data: Supervisor([node("one", 1), node("one", 2)], data),
        lambda data: Supervisor([node("one", 1), node("two", 1)], data),
        lambda data: Supervisor([], data, postgres=EmbeddedPostgres(data / "other")),
    ],
    ids=["two nodes of one name", "two nodes on one port", "two folders"],
)
def test_a_mesh_that_cannot_be_is_a_mistake_of_the_caller(data: Path, build: Callable[[Path], Supervisor]) -> None:
    with pytest.raises(ValueError, match=r"share one data folder|have different names and ports"):
        build(data)
