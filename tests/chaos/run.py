"""One run: servers, writers and watchers, faults one after another, and at the end the comparison of everything with everything."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.client import ClientSettings, connect
from tests.chaos.checker import (
    Database,
    LogRow,
    Shown,
    StateRow,
    check_database,
    check_line,
    check_projections,
    commits_of,
    outbox_of,
)
from tests.chaos.fault import Fault, Scene
from tests.chaos.history import History, Outcome
from tests.chaos.server import Servers, servers
from tests.chaos.watcher import RESTLESS, SLOW, STEADY, Commits, Habit, Line, Outbox, Source, watch
from tests.chaos.writer import COLLECTION, Sending, Writer, tag_of
from tests.store.sample import milliseconds

_LOG = "SELECT partition, commit_offset, action_index, action_id::text, key, version, state FROM workflow_commits ORDER BY 1, 2, 3"
_STATES = "SELECT key, version, state FROM workflow_state"
_OFFSETS = "SELECT partition, next_offset FROM store_partitions"
PROGRESS_SECONDS = 60.0
"""From a fault's end to the next acknowledged commits, and from the writers' end to that of the feeds: far more than they take."""
WATCHED_PARTITIONS = (0, 1, 2, 3, 5, 8, 13)
"""What the watcher with a filter follows."""
_ONE_ATTEMPT = ClientSettings(attempts=1)
"""gRPC does not send again by itself: every attempt is in the history."""
PROJECTIONS_ASKED = 200
"""Keys whose projections are asked for one by one; all are listed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does."""

    faults: Sequence[Fault]
    seed: int
    seconds: float = 0.0
    """How long it lasts at least; when all faults are done it begins with them again."""
    writers: int = 8
    holders: int = 3
    """Rivals for each of the two leases that guard a key."""
    replicas: int = 2
    timeout: float = 2.0
    """Of a writer's call, in seconds."""
    pause: float = 0.03
    """The longest pause of a writer, in seconds."""
    feeds: bool = True
    """Whether feeds and projections are followed, too."""
    commits_between: int = 100
    """Commits that are to be acknowledged between two faults, at most."""


@dataclass(slots=True)
class Result:
    """What a run came to."""

    history: History
    faults: Counter[str] = field(default_factory=Counter)
    lines: list[Line] = field(default_factory=list)
    log_rows: int = 0
    keys: int = 0
    violations: list[str] = field(default_factory=list)


def silent(_: str) -> None:
    """No progress report."""


class _Watcher(NamedTuple):
    line: Line
    source: Source
    habit: Habit


async def run(plan: Plan, folder: Path, report: Callable[[str], None] = silent) -> Result:
    """Carries the plan out, in a folder of its own. Whatever is wrong is among the result's violations."""
    random = Random(plan.seed)
    async with servers(folder, plan.replicas) as running, connect(running.targets, _ONE_ATTEMPT) as channel:
        stub, result = StoreServiceStub(channel), Result(History())
        partitions = (await stub.DescribeStore(pb.DescribeStoreRequest())).partition_count
        watchers = _watchers(stub, partitions) if plan.feeds else []
        result.lines = [watcher.line for watcher in watchers]
        async with _background(watch(source, line, habit, Random(plan.seed)) for line, source, habit in watchers):
            scene = Scene(running, stub, result.history, random)
            try:
                await _write_under_faults(plan, stub, scene, result, report)
            except* TimeoutError as error:
                result.violations.append(f"no progress: {error.exceptions}")
            report("the writers have ended; everything is read back")
            await _compare(plan, stub, running, result)
    result.violations += result.history.bugs
    return result


def _watchers(stub: StoreServiceStub, partitions: int) -> list[_Watcher]:
    some = [partition for partition in WATCHED_PARTITIONS if partition < partitions]
    commits, outbox = Commits(stub), [Outbox(stub, "chaos", partition) for partition in range(partitions)]
    return [
        _Watcher(Line("steady"), commits, STEADY),
        _Watcher(Line("slow"), commits, SLOW),
        _Watcher(Line("restless"), commits, RESTLESS),
        _Watcher(Line("of some partitions", some), commits, RESTLESS),
        *(
            _Watcher(
                Line(f"outbox {source.partition}", [source.partition]), source, (STEADY, RESTLESS, SLOW)[number % 3]
            )
            for number, source in enumerate(outbox)
        ),
    ]


@asynccontextmanager
async def _background(works: Iterable[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """The works run until the block's end; one that fails fails the block."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
        yield
        for task in tasks:
            task.cancel()


async def _write_under_faults(
    plan: Plan, stub: StoreServiceStub, scene: Scene, result: Result, report: Callable[[str], None]
) -> None:
    """Raises TimeoutError where nothing is acknowledged any more."""
    stop = asyncio.Event()
    shared = [f"{COLLECTION}/shared-{number}" for number in range(4)]
    sending = Sending(stub, result.history, scene.random, shared, plan.timeout, plan.pause, plan.feeds)
    async with asyncio.timeout(None) as bound, asyncio.TaskGroup() as group:
        for number in range(plan.writers):
            group.create_task(Writer(f"writer-{number}", sending).write(stop))
        for number in range(plan.holders):
            for lease in ("red", "blue"):
                group.create_task(Writer(f"holder-{lease}-{number}", sending).hold(lease, stop))
        await _do_faults(plan, scene, result, report)
        stop.set()
        bound.reschedule(asyncio.get_running_loop().time() + PROGRESS_SECONDS)


async def _do_faults(plan: Plan, scene: Scene, result: Result, report: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    faults = list(plan.faults)
    while faults or loop.time() - begin < plan.seconds:
        fault = faults.pop(0) if faults else scene.random.choice(plan.faults)
        name = fault.__name__.replace("_", " ")
        await _bounded(
            f"before {name}", scene.history.more(Outcome.COMMITTED, scene.random.randint(1, plan.commits_between))
        )
        began = loop.time()
        await _bounded(name, fault(scene))
        result.faults[name] += 1
        report(
            f"{loop.time() - begin:6.1f} s  {name} ({loop.time() - began:.1f} s), "
            f"{scene.history.acknowledged:,} commits acknowledged"
        )
    await _bounded("after the last fault", scene.history.more(Outcome.COMMITTED, plan.commits_between))


async def _bounded(what: str, work: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(PROGRESS_SECONDS):
            await work
    except TimeoutError:
        raise TimeoutError(f"{what}: not within {PROGRESS_SECONDS:g} s") from None


async def _compare(plan: Plan, stub: StoreServiceStub, running: Servers, result: Result) -> None:
    database, changes = await _read(running), result.history.changes
    result.log_rows, result.keys = len(database.log), len(database.states)
    result.violations += map(str, check_database(changes, database))
    if not plan.feeds:
        return
    commits, outbox = commits_of(changes, database), outbox_of(changes, database)
    for line in result.lines:
        wanted = _of(outbox if line.name.startswith("outbox") else commits, line)
        try:
            async with asyncio.timeout(PROGRESS_SECONDS):
                await line.length(len(wanted))
        except TimeoutError:
            # What is missing is found below, by name.
            pass
        result.violations += map(str, check_line(line.name, wanted, line.shown))
        result.violations += line.refusals
    tags = {key: StateRow(state.version, tag_of(state.state)) for key, state in database.states.items()}
    result.violations += map(str, check_projections(tags, await _listed(stub)))
    asked = dict(sorted(tags.items())[-PROJECTIONS_ASKED:])
    result.violations += map(str, check_projections(asked, await _asked(stub, asked)))


def _of(items: Sequence[Shown], line: Line) -> list[Shown]:
    return [item for item in items if line.partitions is None or item.partition in line.partitions]


async def _read(running: Servers) -> Database:
    connection = await running.connect()
    try:
        async with connection.transaction(isolation="repeatable_read"):
            return Database(
                [LogRow(*row) for row in await connection.fetch(_LOG)],
                {key: StateRow(version, state) for key, version, state in await connection.fetch(_STATES)},
                {row["partition"]: row["next_offset"] for row in await connection.fetch(_OFFSETS)},
            )
    finally:
        await connection.close()


async def _listed(stub: StoreServiceStub) -> dict[str, StateRow]:
    """Every projection, once all are there."""
    async with asyncio.timeout(PROGRESS_SECONDS):
        while True:
            shown: dict[str, StateRow] = {}
            token: str | None = None
            lagging = False
            while token != "":
                request = pb.ListProjectionsRequest(
                    filter=pb.ProjectionFilter(collection=COLLECTION), page_size=1000, page_token=token or ""
                )
                page = await stub.ListProjections(request)
                lagging |= page.lag.commits > 0
                shown |= {item.key: StateRow(item.version, item.tag) for item in page.projections}
                token = page.next_page_token
            if not lagging:
                return shown
            await asyncio.sleep(0.1)


async def _asked(stub: StoreServiceStub, states: Mapping[str, StateRow]) -> dict[str, StateRow]:
    shown = {}
    for key, state in states.items():
        answer = await stub.GetProjection(
            pb.GetProjectionRequest(key=key, min_version=state.version, max_wait=milliseconds(5000))
        )
        shown[key] = StateRow(answer.projection.version, answer.projection.tag)
    return shown
