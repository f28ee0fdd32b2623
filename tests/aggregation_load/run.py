"""One run: a load is fed by a writer's process while it, the store and the reducers are killed, and everything is compared."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from itertools import cycle
from pathlib import Path
from random import Random

import grpc

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from services.chassis import child
from services.chassis.child import Child
from services.chassis.client import connect
from services.chassis.errors import BridgeError
from services.chassis.folder import last_lines
from tests.aggregation_load.checker import check_answers, check_listed, check_session
from tests.aggregation_load.journal import Bug, Journal, last_acknowledged
from tests.aggregation_load.load import Load
from tests.aggregation_load.server import Node, Servers, servers
from tests.aggregation_load.total import totals_of

SESSION = "load"
PROGRESS_SECONDS = 60.0
"""Within which something more is to be acknowledged: far more than a restart takes."""
_ROOT = Path(__file__).resolve().parents[2]
_POLL_SECONDS = 0.02
_MOMENT_SECONDS = 0.1
_LAST = 0.9
"""The part of a load after which nothing is killed any more: each death is to be amid it."""
_PAGE = 1000


class Victim(Enum):
    """What is killed."""

    WRITER = "writer"
    STORE = "store"
    REDUCER = "reducer"
    """One of them; perhaps not the one that serves the writer."""
    REDUCERS = "all reducers"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does."""

    load: Load
    victims: Sequence[Victim]
    """Killed one after another."""
    gap: int
    """So many items are to be acknowledged from one's return to the next one's death, and a few more by chance."""
    again: bool = False
    """Whether to begin with the first again after the last, until the load comes to its end."""
    rate: int = 0
    """Items a second at most; 0 for as many as go."""
    reducers: int = 2


@dataclass(slots=True)
class Result:
    """What a run came to."""

    kills: Counter[Victim] = field(default_factory=Counter)
    streams: int = 0
    """How often a stream was opened."""
    groups: int = 0
    repeated: int = 0
    """Groups of answers that a writer got who had not taken them when they were committed."""
    panes: int = 0
    """Panes that are final, as they are listed at the end."""
    rejected: int = 0
    violations: list[str] = field(default_factory=list)


def silent(_: str) -> None:
    """No progress report."""


async def run(plan: Plan, folder: Path, report: Callable[[str], None] = silent) -> Result:
    """Carries the plan out, in a folder of its own. Whatever is wrong is among the result's violations."""
    result, path = Result(), folder / "journal"
    async with servers(folder, plan.reducers) as running:
        scene = _Scene(plan, running, folder, path)
        try:
            await _feed(plan, scene, result, report)
        except TimeoutError as error:
            result.violations.append(f"no progress: {error}")
        finally:
            await scene.end()
        report("the writer has ended; everything is compared")
        entries = list(Journal(path).new())
        _count(result, entries)
        totals = totals_of(plan.load)
        result.violations += map(str, check_answers(totals, entries))
        try:
            session, panes = await _listed(running.target)
        except (BridgeError, grpc.aio.AioRpcError) as error:
            result.violations.append(f"the session cannot be read: {error!r}")
        else:
            result.panes = len(panes)
            result.violations += map(str, (*check_session(totals, session), *check_listed(totals, panes)))
    return result


class _Scene:
    """The writer's process, and what else may be killed."""

    def __init__(self, plan: Plan, running: Servers, folder: Path, journal: Path) -> None:
        self._plan, self._servers, self._path = plan, running, journal
        self._log = folder / "writer.log"
        self._journal = Journal(journal)
        self._random = Random(plan.load.seed)
        self._writer: Child | None = None
        self._frail = True
        """Until it has died at the session's end, which nobody else can time."""
        self.acknowledged = 0

    def write(self) -> None:
        """Starts the writer, where its journal ends."""
        plan = self._plan
        load = json.dumps(asdict(plan.load))
        program = [sys.executable, "-m", "tests.aggregation_load", self._servers.target, SESSION, str(self._path)]
        with self._log.open("ab") as output:
            program += [str(plan.rate), load, *(["frail"] if self._frail else [])]
            self._writer = child.spawn(program, env=dict(os.environ), cwd=_ROOT, output=output)

    async def more(self, count: int) -> bool:
        """Returns when so many more items are acknowledged, or the writer has ended; whether it goes on."""
        self.acknowledged = max(self.acknowledged, last_acknowledged(self._journal.new()))
        return await self._until(self.acknowledged + count)

    async def _until(self, offset: int) -> bool:
        assert self._writer is not None
        loop = asyncio.get_running_loop()
        patience = loop.time() + PROGRESS_SECONDS
        while self._writer.status is None:
            # Another process is watched: there is no event to wait for.
            if entries := list(self._journal.new()):
                patience = loop.time() + PROGRESS_SECONDS
                self.acknowledged = max(self.acknowledged, last_acknowledged(entries))
            if self.acknowledged >= offset:
                return True
            if loop.time() > patience:
                raise TimeoutError(f"{self.acknowledged} acknowledged, nothing more in {PROGRESS_SECONDS:g} s")
            await asyncio.sleep(_POLL_SECONDS)
        if self._writer.status == -signal.SIGKILL and self._frail:
            self._frail = False
            self.write()
            return True
        if self._writer.status:
            raise TimeoutError(f"the writer ended: {last_lines(self._log.read_text())}")
        return False

    async def kill(self, victim: Victim) -> None:
        """kill -9, and a new start."""
        match victim:
            case Victim.WRITER:
                await self.end()
                self.write()
            case Victim.STORE:
                await _restart([self._servers.store])
            case Victim.REDUCER:
                await _restart([self._random.choice(self._servers.reducers)])
            case Victim.REDUCERS:
                await _restart(self._servers.reducers)

    async def end(self) -> None:
        """kill -9 of the writer; nothing if it has ended."""
        if self._writer is not None:
            self._writer.signal(signal.SIGKILL)
            await self._writer.ended()


async def _restart(nodes: Sequence[Node]) -> None:
    await asyncio.gather(*(node.kill() for node in nodes))
    await asyncio.gather(*(node.start() for node in nodes))


async def _feed(plan: Plan, scene: _Scene, result: Result, report: Callable[[str], None]) -> None:
    """Raises TimeoutError where nothing is acknowledged any more."""
    loop = asyncio.get_running_loop()
    begin, chance = loop.time(), Random(plan.load.seed)
    scene.write()
    for victim in cycle(plan.victims) if plan.again else plan.victims:
        if not await scene.more(plan.gap):
            result.violations.append(f"the load was over before the kill of {victim.value}")
            return
        if plan.again and scene.acknowledged > plan.load.count * _LAST:
            break
        # Not always right after an acknowledgement.
        await asyncio.sleep(chance.uniform(0, _MOMENT_SECONDS))
        began = loop.time()
        await scene.kill(victim)
        result.kills[victim] += 1
        report(
            f"{began - begin:6.1f} s  kill -9 of {victim.value} ({loop.time() - began:.1f} s), "
            f"{scene.acknowledged:,} items acknowledged"
        )
    while await scene.more(1):
        pass


def _count(result: Result, entries: Sequence[pb.AggregateResponse | Bug]) -> None:
    answers = [entry for entry in entries if isinstance(entry, pb.AggregateResponse)]
    result.streams = sum(answer.HasField("opened") for answer in answers)
    result.groups = sum(answer.HasField("acknowledgement") for answer in answers)
    counted = 0
    for answer in answers:
        if answer.HasField("opened"):
            counted = answer.opened.next_offset - 1
        elif answer.HasField("acknowledgement"):
            result.repeated += answer.acknowledgement.offset <= counted
            result.rejected += len(answer.rejected)


async def _listed(target: str) -> tuple[pb.Session, list[pb.Pane]]:
    """The session, and all its panes."""
    panes: list[pb.Pane] = []
    token: str | None = None
    async with connect(target) as channel:
        stub = ReducerServiceStub(channel)
        session = (await stub.GetSession(pb.GetSessionRequest(session=SESSION))).session
        while token != "":
            page = await stub.GetAggregates(
                pb.GetAggregatesRequest(session=SESSION, page_size=_PAGE, page_token=token or "")
            )
            panes += page.panes
            token = page.next_page_token
    return session, panes
