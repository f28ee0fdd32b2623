"""A writer that feeds a load to a session to its end, whatever is killed, itself too: it goes on where its journal ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from services.chassis.errors import Aborted, BridgeError, DeadlineExceeded, ResourceExhausted, Unavailable
from tests.aggregation_load.journal import Journal
from tests.aggregation_load.load import Load, to_columns

RETRY_SECONDS = 0.1
"""From the end of a stream to the next one."""


def nothing() -> None:
    """Of a writer that nothing befalls."""


async def feed(
    stub: ReducerServiceStub,
    session: str,
    load: Load,
    journal: Journal,
    rate: int = 0,
    *,
    at_end: Callable[[], None] = nothing,
) -> None:
    """Returns when the session's end is acknowledged. `rate` bounds the items sent a second; 0 leaves that to the node.

    `at_end` is called when the writer is told of the end, before it has taken that.
    """
    journal.mend()
    acknowledged = journal.acknowledged()
    while True:
        answers = _Answers(journal, acknowledged, at_end)
        try:
            await _stream(stub, session, load, answers, rate)
        # Aborted: a stream of its own that was cut off is still there, or another replica has committed for it meanwhile.
        except (Unavailable, DeadlineExceeded, ResourceExhausted, Aborted):
            pass
        except BridgeError as error:
            journal.complain(repr(error))
            raise
        except grpc.aio.AioRpcError as error:
            journal.complain(f"{error.code().name}: {error.details()}")
            raise
        finally:
            answers.lose()
        if answers.finished:
            return
        acknowledged = answers.acknowledged
        await asyncio.sleep(RETRY_SECONDS)


class _Answers:
    """What one stream answers, gathered up to each acknowledgement."""

    def __init__(self, journal: Journal, acknowledged: int, at_end: Callable[[], None]) -> None:
        self.acknowledged = acknowledged
        self.finished = False
        self.opened: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """The offset to go on with."""
        self._journal = journal
        self._at_end = at_end
        self._group = pb.AggregateResponse()
        self._more = asyncio.Event()

    def take(self, answer: pb.AggregateResponse) -> None:
        """Keeps what the answer completes."""
        if answer.HasField("opened"):
            self._journal.append(pb.AggregateResponse(opened=answer.opened))
            self.opened.set_result(answer.opened.next_offset)
        self._group.panes.extend(pane for pane in answer.panes if pane.timing != pb.PANE_TIMING_EARLY)
        self._group.rejected.extend(answer.rejected)
        if answer.HasField("acknowledgement"):
            if answer.acknowledgement.finished:
                self._at_end()
            self._group.acknowledgement.CopyFrom(answer.acknowledgement)
            self._journal.append(self._group)
            self.acknowledged, self.finished = answer.acknowledgement.offset, answer.acknowledgement.finished
            self._group = pb.AggregateResponse()
            self._more.set()

    async def up_to(self, offset: int) -> None:
        """Returns when so much is acknowledged."""
        while self.acknowledged < offset:
            self._more.clear()
            await self._more.wait()

    def lose(self) -> None:
        """Keeps what was seen and not acknowledged, as that."""
        if self._group.panes or self._group.rejected:
            self._journal.append(self._group)
        self.opened.cancel()


async def _stream(stub: ReducerServiceStub, session: str, load: Load, answers: _Answers, rate: int) -> None:
    """One stream, to its end or its failure."""
    call = stub.Aggregate(_requests(session, load, answers, rate))
    async for answer in call:
        answers.take(answer)


async def _requests(session: str, load: Load, answers: _Answers, rate: int) -> AsyncIterator[pb.AggregateRequest]:
    yield pb.AggregateRequest(
        open=pb.OpenSession(session=session, config=load.config(), acknowledged_offset=answers.acknowledged)
    )
    loop = asyncio.get_running_loop()
    first = await answers.opened
    begin, sent = loop.time(), 0
    for items in load.items(first):
        yield pb.AggregateRequest(columns=to_columns(items))
        sent += len(items)
        # Also without a rate: answers are to be read while items are made.
        await asyncio.sleep(begin + sent / rate - loop.time() if rate else 0)
    # Apart from the items: the end's own answers are to be lost, too.
    if sent:
        await answers.up_to(load.count)
    yield pb.AggregateRequest(finish=pb.Finish())
