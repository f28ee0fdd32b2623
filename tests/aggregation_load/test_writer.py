"""The writer loses and doubles nothing by itself, wherever its streams end; and if a node did, it would show."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from services.chassis.errors import InvalidArgument, Unavailable
from tests.aggregation_load import writer
from tests.aggregation_load.checker import Kind, check_answers
from tests.aggregation_load.journal import Bug, Journal
from tests.aggregation_load.load import BATCH, Fate
from tests.aggregation_load.test_checker import LOAD as FAULTLESS
from tests.aggregation_load.test_checker import final
from tests.aggregation_load.total import Total, cells_of, totals_of
from tests.aggregation_load.writer import feed

LOAD = replace(FAULTLESS, seed=2, count=5 * BATCH - 3)
TOTALS = totals_of(LOAD)


class Session:
    """As a node would keep it: a commit for every second message. Each stream ends a response later than the one before.

    All windows become final with the end of the session; its own watermark does not move.
    """

    def __init__(self, *, forgets: bool = False, lasting: bool = False) -> None:
        self.streams = 0
        self._forgets, self._lasting = forgets, lasting
        self._items = {item.offset: item for batch in LOAD.items() for item in batch}
        self._totals = {cell: Total() for cell in TOTALS.cells}
        self._offset = 0
        self._finished = False
        self._groups: list[pb.AggregateResponse] = []

    async def Aggregate(self, requests: AsyncIterator[pb.AggregateRequest]) -> AsyncIterator[pb.AggregateResponse]:
        self.streams += 1
        left = self.streams
        async for response in self._responses(requests):
            yield response
            left -= 1
            if not left and not self._lasting:
                raise Unavailable

    async def _responses(self, requests: AsyncIterator[pb.AggregateRequest]) -> AsyncIterator[pb.AggregateResponse]:
        asked = (await anext(requests)).open
        assert asked.config == LOAD.config()
        first = asked.acknowledged_offset + 1
        yield pb.AggregateResponse(opened=pb.Opened(next_offset=self._offset + 1, repeated_from_offset=first))
        for group in [] if self._forgets else list(self._groups):
            if group.acknowledgement.offset >= first or group.acknowledgement.finished:
                for response in parts(group):
                    yield response
        waiting: list[pb.ItemColumns] = []
        async for request in requests:
            if request.HasField("columns"):
                waiting.append(request.columns)
            last = request.columns.first_offset + len(request.columns.event_times_us) > LOAD.count
            if len(waiting) == 2 or last or not request.HasField("columns"):
                for response in parts(self._commit(waiting, finish=not request.HasField("columns"))):
                    yield response
                waiting = []

    def _commit(self, messages: list[pb.ItemColumns], *, finish: bool) -> pb.AggregateResponse:
        group = pb.AggregateResponse()
        for message in messages:
            for offset in range(message.first_offset, message.first_offset + len(message.event_times_us)):
                self._count(offset, group)
            self._offset = offset
        if finish and not self._finished:
            group.panes.extend(final(cell, total) for cell, total in self._totals.items())
        self._finished |= finish
        group.acknowledgement.offset = self._offset
        group.acknowledgement.finished = self._finished
        self._groups.append(group)
        return group

    def _count(self, offset: int, group: pb.AggregateResponse) -> None:
        item = self._items[offset]
        if item.fate is Fate.COUNTED:
            for cell in cells_of(LOAD, item):
                self._totals[cell].add(item)
        else:
            late = item.fate is Fate.LATE
            group.rejected.add(offset=offset, rejection=pb.REJECTION_LATE if late else pb.REJECTION_INVALID)


def parts(group: pb.AggregateResponse) -> list[pb.AggregateResponse]:
    """A group as several responses, an early pane among them."""
    early = pb.Pane(timing=pb.PANE_TIMING_EARLY, key="not to be looked at")
    half = len(group.panes) // 2
    return [
        pb.AggregateResponse(panes=[*group.panes[:half], early]),
        pb.AggregateResponse(panes=group.panes[half:], rejected=group.rejected),
        pb.AggregateResponse(acknowledgement=group.acknowledgement),
    ]


async def fed(session: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[pb.AggregateResponse | Bug]:
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0)
    await feed(session, "session", LOAD, Journal(path))
    return list(Journal(path).new())


async def test_a_writer_takes_everything_once_wherever_its_streams_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session()
    entries = await fed(session, tmp_path / "journal", monkeypatch)
    assert check_answers(TOTALS, entries) == []
    # Each stream goes a response further, or it would never have come to the end.
    assert session.streams > 3
    assert any(
        isinstance(entry, pb.AggregateResponse)
        and not entry.HasField("opened")
        and not entry.HasField("acknowledgement")
        for entry in entries
    )


async def test_a_writer_that_dies_when_the_session_ends_takes_its_end_later(tmp_path: Path) -> None:
    class DeadError(Exception):
        pass

    def die() -> None:
        raise DeadError

    session: Any = Session(lasting=True)
    journal = Journal(tmp_path / "journal")
    with pytest.raises(DeadError):
        await feed(session, "session", LOAD, journal, at_end=die)
    assert Kind.NOT_FINISHED in {violation.kind for violation in check_answers(TOTALS, journal.new())}
    await feed(session, "session", LOAD, journal)
    assert check_answers(TOTALS, Journal(tmp_path / "journal").new()) == []


async def test_a_node_that_repeats_no_answers_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = await fed(Session(forgets=True), tmp_path / "journal", monkeypatch)
    assert Kind.NOT_REJECTED in {violation.kind for violation in check_answers(TOTALS, entries)}


async def test_a_refusal_that_no_fault_explains_ends_the_writer_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        async def Aggregate(self, requests: AsyncIterator[pb.AggregateRequest]) -> AsyncIterator[pb.AggregateResponse]:
            raise InvalidArgument("no")
            yield pb.AggregateResponse()

    with pytest.raises(InvalidArgument):
        await fed(Refusing(), tmp_path / "journal", monkeypatch)
    assert list(Journal(tmp_path / "journal").new()) == [Bug("InvalidArgument('no')")]
