"""A writer over a store in memory: what is committed, in how many parts, and what stays of a commit that failed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from services.chassis.errors import InvalidArgument
from services.reducer.aggregation import durable
from services.reducer.aggregation.config import SECOND, Strategy
from services.reducer.aggregation.contract import Terms
from services.reducer.aggregation.durable import Delta, Head, Progress
from services.reducer.aggregation.error import SessionTakenOver
from services.reducer.aggregation.item import Columns
from services.reducer.aggregation.pane import Pane
from services.reducer.aggregation.session import Part
from services.reducer.aggregation.writer import Committed, Writer
from tests.reducer.aggregation.writing import terms_of

KEY = "aggregate/s"


class Memory:
    """What a writer asks of its storage, in memory; `failing` makes commits fail, after their blobs were stored or not."""

    def __init__(self) -> None:
        self.part: Part | None = None
        self.blobs: dict[str, bytes] = {}
        self.referred: set[str] = set()
        self.failing = False
        self.heads: list[Head] = []

    async def find(self, _key: str) -> Part | None:
        return self.part

    async def blob(self, digest: str) -> bytes:
        assert digest in self.referred, "what is referred to by nothing may be gone"
        return self.blobs[digest]

    async def commit(
        self,
        _key: str,
        expected: int,
        head: Head,
        *,
        blobs: Mapping[str, bytes],
        released: Sequence[str] = (),
        **_: Any,
    ) -> Part:
        await asyncio.sleep(0)
        if self.failing:
            raise InvalidArgument("the store refuses")
        if expected != (self.part.version if self.part else 0):
            raise SessionTakenOver
        self.blobs |= blobs
        self.referred = (self.referred | blobs.keys()) - set(released)
        self.heads.append(head)
        self.part = Part(expected + 1, head, datetime(2026, 1, 1, tzinfo=UTC))
        return self.part


async def opened(memory: Memory, terms: Terms | None = None, clock: list[float] | None = None, **config: Any) -> Writer:
    terms = terms or terms_of()
    storage: Any = memory
    head = replace(terms.sessions, early_period=0, **config)
    return await Writer.open(
        storage,
        KEY,
        lambda part: part.head if part else Head("s", head, "one", False, 0, Progress(), "", 0, ()),
        fold_of=lambda _config: None,
        terms=terms,
        now=lambda: (clock or [0.0])[0],
        bound=lambda: terms.session_bytes,
    )


async def add(writer: Writer, seconds: Sequence[float], workflows: Sequence[str] = ()) -> None:
    count = len(seconds)
    names = list(workflows) or [""] * count
    columns = Columns(
        [round(second * SECOND) for second in seconds],
        [1] * count,
        ["a"] * count,
        [""] * count,
        names,
        [""] * count,
        [""] * count,
    )
    first = writer.offset + 1
    await writer.add(columns, range(first, first + count), first + count - 1)


async def whole(writer: Writer, **asked: bool) -> tuple[list[Pane], list[Committed]]:
    """Commits until nothing is left; the panes, and the commits."""
    commits = [await writer.commit(**asked)]
    while commits[-1].is_part:
        commits.append(await writer.commit(**asked))
    return [pane for committed in commits for pane in committed.panes], commits


async def test_a_commit_that_failed_releases_nothing_of_what_the_session_needs() -> None:
    memory = Memory()
    writer = await opened(memory, terms_of(checkpoint_commits=2))
    for second in range(4):
        await add(writer, [second])
        await writer.commit()
    memory.failing = True
    await add(writer, [4])
    with pytest.raises(InvalidArgument):
        await writer.commit()
    memory.failing = False
    await writer.leave()
    again = await opened(memory)
    await add(again, [4])
    panes, _ = await whole(again, finish=True)
    assert [pane.item_count for pane in panes if pane.final] == [5]


async def test_what_was_refused_does_not_grow_the_head_for_ever() -> None:
    memory = Memory()
    writer = await opened(memory, terms_of(checkpoint_commits=4), allowed_lateness=0)
    await add(writer, [100])
    for _ in range(40):
        await add(writer, [1])
        await writer.commit()
    assert max(len(head.deltas) for head in memory.heads) <= 9
    assert writer.head.progress.late_count == 40


async def test_more_windows_than_memory_holds_come_due_in_parts_and_each_once() -> None:
    memory = Memory()
    clock = [0.0]
    terms = terms_of(session_bytes=20_000)
    writer = await opened(memory, terms, clock, allowed_lateness=10**12, strategies=(Strategy.WORKFLOW_GROUPING,))
    for window in range(40):
        await add(writer, [5 * window] * 5, [f"w{number}" * 20 for number in range(5)])
        clock[0] += 2
        await writer.commit()
    assert writer.size_bytes <= terms.session_bytes * 1.5
    panes, commits = await whole(writer, finish=True, leave=True)
    assert len(commits) > 2
    assert len([pane for pane in panes if pane.final]) == 200
    assert len({pane.cell for pane in panes if pane.final}) == 200
    assert writer.head.finished
    assert not writer.head.writer
    # Whoever has seen the last item acknowledged is answered all of it again.
    repeated = [pane async for committed in writer.answers_after(writer.head.offset) for pane in committed.panes]
    assert {pane.cell for pane in repeated if pane.final} >= {pane.cell for pane in commits[-1].panes}


async def test_a_large_delta_and_a_large_window_are_in_several_blobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_PIECE_RECORDS", 10)
    memory = Memory()
    writer = await opened(memory, terms_of(checkpoint_commits=1), strategies=(Strategy.WORKFLOW_GROUPING,))
    await add(writer, [1] * 35, [f"w{number}" for number in range(35)])
    await writer.commit()
    assert len(writer.head.pending(0)) == 4
    assert {len(Delta.from_bytes(memory.blobs[delta.digest]).records) for delta in writer.head.deltas} == {10, 5}
    await writer.leave()
    again = await opened(memory, strategies=(Strategy.WORKFLOW_GROUPING,))
    await add(again, [2] * 35, [f"w{number}" for number in range(35)])
    panes, _ = await whole(again, finish=True)
    assert [pane.item_count for pane in panes if pane.final] == [2] * 35
