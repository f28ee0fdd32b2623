"""The part of the demo in which a node is killed while workflows run, and the count of what came through.

What the workflows are is workflow.py's; what starts the node again is the chassis's supervisor.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from signal import SIGKILL

from omninode.bridge.reducer.v1 import aggregation_pb2
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from omninode.bridge.stamping.v1 import stamping_pb2
from omninode.bridge.stamping.v1.stamping_pb2_grpc import StampingServiceStub
from services.chassis.boundary import DEFAULT_NAMESPACE
from services.chassis.keeper import Died, Event, Healthy, Started
from services.cli import console, report
from services.cli.failure import CommandError
from services.cli.page import walk
from services.cli.tree import File
from services.cli.workflow import Completed, Outcome, Submitted, Workflows

_SESSION = "workflows"
COUNT_SECONDS = 30.0
"""Within this the session of the mesh has counted what has ended; it takes a second, and a reducer that was killed five."""
_LOOK_SECONDS = 0.2
MEND_SECONDS = 60.0
"""Within this the supervisor has the node healthy again; it takes a second or two."""


class Crash:
    """The kill -9 of one node of a supervised mesh, once."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.time: float | None = None
        """When it was killed, as time.time(); None before."""
        self._pid: int | None = None
        self._mended = asyncio.Event()

    def notice(self, event: Event) -> None:
        """To be told of every event of the supervisor: it learns the node's pid from them, and that it is back."""
        if event.name != self.node:
            return
        match event:
            case Started(pid=pid):
                self._pid = pid
            case Died():
                self._pid = None
            case Healthy() if self.time is not None:
                self._mended.set()

    def caused(self, event: Event) -> bool:
        """Whether the event is the death that the kill was to be."""
        return self.time is not None and isinstance(event, Died) and (event.name, event.status) == (self.node, -SIGKILL)

    async def amid(self, workflows: Workflows, files: Sequence[File]) -> AsyncGenerator[Outcome, None]:
        """What becomes of each file as a workflow, in order. Raises CommandError where the node does not run.

        The node is killed when half of them have ended and more are taken in: their input is durable, and little of it is done.
        """
        half = len(files) // 2
        async with aclosing(self._first(workflows, files[:half])) as outcomes:
            async for outcome in outcomes:
                yield outcome
        async with aclosing(workflows.submit(files[half:])) as batches:
            async for submissions in batches:
                if self.time is None:
                    taken_in = sum(isinstance(submission, Submitted) for submission in submissions)
                    console.say(f"acknowledged: {report.counted(taken_in, 'further workflow')}")
                    self._strike()
                async with aclosing(workflows.wait(submissions)) as outcomes:
                    async for outcome in outcomes:
                        yield outcome

    async def _first(self, workflows: Workflows, files: Sequence[File]) -> AsyncGenerator[Outcome, None]:
        """The workflows before the kill, and how fast they were."""
        began = time.monotonic()
        async with aclosing(workflows.run(files)) as outcomes:
            async for outcome in outcomes:
                yield outcome
        if files:
            seconds = time.monotonic() - began
            ended = report.counted(len(files), "workflow")
            console.say(f"{ended} ended in {seconds:.1f} s, {len(files) / seconds:,.0f} workflows/s")

    def _strike(self) -> None:
        if self._pid is None:
            raise CommandError(f"demo: the {self.node} node does not run, so it cannot be killed")
        self.time = time.time()
        os.kill(self._pid, SIGKILL)
        console.say(f"kill -9 of the {self.node} node, pid {self._pid}")

    async def mended(self) -> None:
        """Returns once the node is healthy again. Raises CommandError."""
        try:
            async with asyncio.timeout(MEND_SECONDS):
                await self._mended.wait()
        except TimeoutError:
            raise CommandError(f"demo: the {self.node} node was not healthy again within {MEND_SECONDS:g} s") from None

    def say_what_came_through(self, completed: Sequence[Completed], seconds: float) -> None:
        """The run in words; it took `seconds`."""
        killed = self.time or 0.0
        after = sum(item.workflow.end_time.ToNanoseconds() / 1e9 > killed for item in completed)
        console.say(f"the {self.node} node is back, and {report.counted(after, 'workflow')} ended after the kill")
        every_one = report.counted(len(completed), "workflow")
        console.say(f"COMPLETED: every one of {every_one}, in {seconds:.1f} s with the crash in it")


async def check_ledger(stub: StampingServiceStub, completed: Sequence[Completed]) -> None:
    """Count the ledger, which held nothing before: one stamp for each digest of the workflows. Raises CommandError."""
    query = stamping_pb2.ListStampsRequest(namespace=DEFAULT_NAMESPACE)
    held = Counter([stamp.digest async for stamp in walk(stub.ListStamps, query, lambda page: page.stamps)])
    told = {item.workflow.stamp.digest for item in completed}
    lost, doubled = len(told - held.keys()), sum(count > 1 for count in held.values())
    foreign = len(held.keys() - told)
    if lost or doubled or foreign:
        raise CommandError(f"demo: in the ledger {lost:,} stamps are lost, {doubled:,} doubled, {foreign:,} nobody's")
    stamps, contents = report.counted(held.total(), "stamp"), report.counted(len(told), "distinct content")
    console.say(f"the ledger holds {stamps} for {contents}: nothing is lost, nothing doubled")


async def check_count(stub: ReducerServiceStub, ended: int) -> None:
    """Wait until the session of the mesh has counted so many workflows, and see that it counts no more. Raises CommandError."""
    request = aggregation_pb2.GetSessionRequest(session=_SESSION)
    deadline = time.monotonic() + COUNT_SECONDS
    while True:
        session = (await stub.GetSession(request)).session
        if session.item_count >= ended or time.monotonic() > deadline:
            break
        await asyncio.sleep(_LOOK_SECONDS)
    if session.item_count != ended:
        raise CommandError(
            f"demo: of {ended:,} workflows that ended the session {_SESSION} counted {session.item_count:,}"
        )
    console.say(f"the session {_SESSION} counted {report.counted(ended, 'workflow')}: each once")
