"""Feeds over a log in memory: what every watcher is shown, whatever it missed and however slow it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.feed.v1 import feed_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from services.chassis.errors import InvalidArgument, Unavailable
from services.chassis.feed import Bounds, Feed, FeedMetrics, FeedSettings, Page, Position, TooManyWatchers
from services.chassis.token import Sealer

PARTITIONS = 3


@dataclass(frozen=True)
class Entry:
    partition: int
    offset: int
    index: int
    text: str = ""

    @property
    def size_bytes(self) -> int:
        return 100 + len(self.text)

    @property
    def name(self) -> str:
        return f"{self.partition}/{self.offset}/{self.index}"


@dataclass
class MemoryLog:
    """Rows that are all visible as soon as they are added."""

    rows: list[Entry] = field(default_factory=list)
    first: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(PARTITIONS), 0))
    next: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(PARTITIONS), 0))
    reads: int = 0
    away: bool = False

    def add(self, partition: int, actions: int = 1, text: str = "") -> list[str]:
        """One offset with as many rows; their names."""
        added = [Entry(partition, self.next[partition], index, text) for index in range(actions)]
        self.rows += added
        self.next[partition] += 1
        return [entry.name for entry in added]

    async def bounds(self) -> Mapping[int, Bounds]:
        self._answer()
        return {partition: Bounds(self.first[partition], self.next[partition]) for partition in range(PARTITIONS)}

    async def read(self, begin: Position, end: Position | None, rows: int, size_bytes: int) -> Page[Entry]:
        self._answer()
        self.reads += 1
        found: list[Entry] = []
        cut = set()
        for partition, first in begin.items():
            past = end[partition] if end else self.next[partition]
            there = [row for row in self.rows if row.partition == partition and first <= row.offset < past]
            kept = [row for row in there if len([r for r in there if r.offset <= row.offset]) <= rows]
            kept = kept or [row for row in there if row.offset == there[0].offset]
            if len(kept) < len(there):
                cut.add(partition)
            found += kept
        return Page(found, cut)

    def _answer(self) -> None:
        if self.away:
            raise Unavailable("the database is away")


@dataclass(frozen=True)
class View:
    """Shows every row's name, or those of some partitions only."""

    only: tuple[int, ...] = ()
    hidden: int = -1

    @property
    def filters(self) -> Mapping[str, object]:
        return {"feed": "test", "only": self.only, "hidden": self.hidden}

    @property
    def partitions(self) -> tuple[int, ...] | None:
        return self.only or None

    @property
    def response(self) -> type[pb.WatchCommitsResponse]:
        return pb.WatchCommitsResponse

    def items(self, rows: Sequence[Entry]) -> list[pb.CommittedAction]:
        return [pb.CommittedAction(key=row.name, state_json=row.text) for row in rows if row.partition != self.hidden]


def settings(**given: Any) -> FeedSettings:
    return FeedSettings.model_construct(**{**FeedSettings().model_dump(), "poll_seconds": 60.0, **given})


@asynccontextmanager
async def feed_of(log: MemoryLog, **given: Any) -> AsyncIterator[Feed[Entry]]:
    feed: Feed[Entry] = Feed("test", log, settings(**given), FeedMetrics(CollectorRegistry()))
    feed.start()
    try:
        async with asyncio.timeout(20):
            yield feed
    finally:
        await feed.aclose()


async def hear(watch: AsyncIterator[bytes]) -> pb.WatchCommitsResponse:
    return pb.WatchCommitsResponse.FromString(await anext(watch))


async def items_until(watch: AsyncIterator[bytes], notice: str) -> tuple[list[str], str]:
    """The names of all items before a notice of this kind, and the last cursor."""
    shown: list[str] = []
    cursor = ""
    while True:
        heard = await hear(watch)
        kind = heard.WhichOneof("notice")
        if kind == notice:
            return shown, getattr(heard, kind).position if kind != "reset" else heard.reset.oldest_cursor
        shown += [item.key for item in heard.items]
        cursor = heard.cursor or cursor


async def items(watch: AsyncIterator[bytes], count: int) -> tuple[list[str], str]:
    """The next items, at least as many, and the cursor behind them; notices are passed over."""
    shown: list[str] = []
    cursor = ""
    while len(shown) < count:
        heard = await hear(watch)
        shown += [item.key for item in heard.items]
        cursor = heard.cursor or cursor
    return shown, cursor


async def test_a_watcher_from_the_beginning_sees_all_then_hears_that_it_has_caught_up_then_what_comes() -> None:
    log = MemoryLog()
    old = [*log.add(0), *log.add(0, 3), *log.add(2)]
    async with feed_of(log) as feed, aclosing(feed.watch(View(), from_beginning=True)) as watch:
        shown, _ = await items_until(watch, "caught_up")
        assert shown == old
        new = log.add(1)
        feed.wake([1])
        assert (await items(watch, 1))[0] == new


async def test_a_watcher_from_now_on_sees_only_what_comes() -> None:
    log = MemoryLog()
    log.add(0)
    async with feed_of(log) as feed, aclosing(feed.watch(View())) as watch:
        shown, _ = await items_until(watch, "caught_up")
        assert shown == []
        new = log.add(0)
        feed.wake([0])
        assert (await items(watch, 1))[0] == new


@given(
    before=st.lists(st.tuples(st.integers(0, PARTITIONS - 1), st.integers(1, 3)), max_size=12),
    after=st.lists(st.tuples(st.integers(0, PARTITIONS - 1), st.integers(1, 3)), min_size=1, max_size=12),
    stops=st.lists(st.integers(1, 4), max_size=6),
    message_bytes=st.sampled_from([1, 60, 10_000]),
    read_rows=st.sampled_from([1, 3, 100]),
)
async def test_whoever_goes_on_from_its_cursor_sees_every_offset_and_none_twice_behind_it(
    before: list[tuple[int, int]],
    after: list[tuple[int, int]],
    stops: list[int],
    message_bytes: int,
    read_rows: int,
) -> None:
    """Law: cutting a watch anywhere and going on from the last cursor shows the log whole, in order, partition by partition."""
    log = MemoryLog()
    for partition, actions in before:
        log.add(partition, actions)
    async with feed_of(log, message_bytes=message_bytes, read_rows=read_rows) as feed:
        seen: list[str] = []
        cursor = ""
        for stop in stops:
            async with aclosing(feed.watch(View(), cursor, from_beginning=not cursor)) as watch:
                for _ in range(stop):
                    heard = await hear(watch)
                    if heard.WhichOneof("notice") == "caught_up":
                        cursor = heard.caught_up.position
                        break
                    seen += [item.key for item in heard.items]
                    cursor = heard.cursor
        for partition, actions in after:
            log.add(partition, actions)
        async with aclosing(feed.watch(View(), cursor, from_beginning=not cursor)) as watch:
            shown, _ = await items_until(watch, "caught_up")
            seen += shown
    whole = [entry.name for entry in log.rows]
    assert set(seen) == set(whole)
    if (
        message_bytes == 10_000
    ):  # A response that ends within an offset has the cursor before it: that offset comes again, whole.
        assert len(seen) == len(whole)
    for partition in range(PARTITIONS):
        first_seen = list(dict.fromkeys(name for name in seen if name.startswith(f"{partition}/")))
        assert first_seen == [name for name in whole if name.startswith(f"{partition}/")]


async def test_a_thousand_watchers_cost_one_reader() -> None:
    log = MemoryLog()
    async with feed_of(log) as feed:
        watches = [feed.watch(View()) for _ in range(1000)]
        for watch in watches:
            assert (await hear(watch)).WhichOneof("notice") == "caught_up"
        before = log.reads
        new = log.add(1)
        feed.wake([1])
        for watch in watches:
            assert (await items(watch, 1))[0] == new
        assert log.reads == before + 1
        for watch in watches:
            await watch.aclose()


async def test_watchers_with_equal_filters_are_sent_the_very_same_bytes() -> None:
    log = MemoryLog()
    async with feed_of(log) as feed:
        one, two, other = feed.watch(View()), feed.watch(View()), feed.watch(View(hidden=2))
        for watch in (one, two, other):
            await anext(watch)
        log.add(0)
        feed.wake(None)
        first, second, third = await anext(one), await anext(two), await anext(other)
        assert first is second
        assert first is not third
        for watch in (one, two, other):
            await watch.aclose()


async def test_a_watcher_that_is_too_slow_is_told_and_misses_nothing() -> None:
    log = MemoryLog()
    async with (
        feed_of(log, memory_bytes=1000) as feed,
        aclosing(feed.watch(View())) as slow,
        aclosing(feed.watch(View())) as quick,
    ):
        await items_until(slow, "caught_up")
        await items_until(quick, "caught_up")
        added = []
        for number in range(50):
            added += log.add(number % PARTITIONS)
            feed.wake([number % PARTITIONS])
            assert (await items(quick, 1))[0] == added[-1:]
        shown, _ = await items_until(slow, "fell_behind")
        more, _ = await items_until(slow, "caught_up")
        assert sorted([*shown, *more]) == sorted(added)


async def test_a_watcher_of_one_partition_that_is_too_slow_goes_on_in_that_partition() -> None:
    log = MemoryLog()
    async with feed_of(log, memory_bytes=1000) as feed, aclosing(feed.watch(View(only=(1,)))) as slow:
        await items_until(slow, "caught_up")
        added = log.add(1)
        feed.wake([1])
        assert (await items(slow, 1))[0] == added
        async with aclosing(feed.watch(View())) as quick:
            await items_until(quick, "caught_up")
            missed = []
            for number in range(60):
                name = log.add(number % PARTITIONS)
                missed += name if number % PARTITIONS == 1 else []
                feed.wake([number % PARTITIONS])
                await items(quick, 1)
        shown, _ = await items_until(slow, "fell_behind")
        more, _ = await items_until(slow, "caught_up")
        assert [*shown, *more] == missed


async def test_an_idle_log_still_checkpoints_and_the_checkpoint_is_a_cursor() -> None:
    log = MemoryLog()
    log.add(0)
    async with feed_of(log, checkpoint_seconds=0.01, poll_seconds=0.01) as feed:
        async with aclosing(feed.watch(View(hidden=1))) as watch:
            caught_up = (await hear(watch)).caught_up
            log.add(1)
            checkpoint = (await hear(watch)).checkpoint
            assert checkpoint.time.ToDatetime() >= caught_up.time.ToDatetime()
            while checkpoint.position == caught_up.position:
                checkpoint = (await hear(watch)).checkpoint
        new = log.add(0)
        async with aclosing(feed.watch(View(hidden=1), checkpoint.position)) as watch:
            assert (await items(watch, 1))[0] == new


async def test_a_feed_whose_database_is_away_goes_on_checkpointing_and_its_time_stands_still() -> None:
    log = MemoryLog()
    async with feed_of(log, checkpoint_seconds=0.01, poll_seconds=0.01) as feed, aclosing(feed.watch(View())) as watch:
        await items_until(watch, "caught_up")
        log.away = True
        # One more read may have been under way.
        await hear(watch)
        await hear(watch)
        first = (await hear(watch)).checkpoint
        second = (await hear(watch)).checkpoint
        assert first.time == second.time
        log.away = False
        new = log.add(2)
        assert (await items(watch, 1))[0] == new
        while (last := await hear(watch)).checkpoint.time.ToDatetime() <= first.time.ToDatetime():
            assert last.HasField("checkpoint")


async def test_the_poll_is_the_floor_where_no_wake_up_comes() -> None:
    log = MemoryLog()
    async with feed_of(log, poll_seconds=0.02) as feed, aclosing(feed.watch(View())) as watch:
        await items_until(watch, "caught_up")
        new = log.add(1)
        assert (await items(watch, 1))[0] == new


async def test_nothing_is_read_while_nobody_watches() -> None:
    log = MemoryLog()
    async with feed_of(log, poll_seconds=0.001) as feed:
        async with aclosing(feed.watch(View())) as watch:
            await hear(watch)
        reads = log.reads
        log.add(0)
        feed.wake([0])
        for _ in range(100):
            await asyncio.sleep(0)
        assert log.reads == reads


@pytest.mark.parametrize(
    ("offset", "reason"),
    [(0, feed_pb2.RESET_REASON_RETENTION), (9, feed_pb2.RESET_REASON_UNKNOWN_POSITION)],
    ids=["what follows it is gone", "the log never came so far"],
)
async def test_a_cursor_from_which_the_feed_cannot_go_on_is_reset(offset: int, reason: int) -> None:
    log = MemoryLog()
    added = [name for _ in range(5) for name in log.add(1)]
    grown = MemoryLog(next={**log.next, 1: 9})
    async with feed_of(grown) as feed, aclosing(feed.watch(View())) as watch:
        ahead = (await hear(watch)).caught_up.position
    async with feed_of(log) as feed:
        log.first[1] = 3
        async with aclosing(feed.watch(View(), ahead if offset == 9 else feed_cursor(offset))) as watch:
            reset = (await hear(watch)).reset
            assert reset.reason == reason
            with pytest.raises(StopAsyncIteration):
                await anext(watch)
        async with aclosing(feed.watch(View(), reset.oldest_cursor)) as watch:
            assert (await items_until(watch, "caught_up"))[0] == added[3:]


def feed_cursor(offset: int) -> str:
    """A cursor of a plain view at this offset of every partition."""
    return Sealer(View().filters).seal([offset] * PARTITIONS)


async def test_what_retention_takes_from_a_slow_read_ends_it_with_a_reset() -> None:
    log = MemoryLog()
    for _ in range(6):
        log.add(0)
    async with feed_of(log, read_rows=2) as feed, aclosing(feed.watch(View(), from_beginning=True)) as watch:
        assert [item.key for item in (await hear(watch)).items] == ["0/0/0", "0/1/0"]
        log.first[0] = 4
        log.rows = [row for row in log.rows if row.offset >= 4]
        assert (await hear(watch)).reset.reason == feed_pb2.RESET_REASON_RETENTION


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "AAAA",
        "",
        "other filters",
        *(
            Sealer({"feed": "test", "only": (), "hidden": -1}).seal(forged)
            for forged in ([], [1, 2], [1, 2, "3"], [-1, 0, 0])
        ),
    ],
    ids=["no token", "damaged", "a damaged one", "of other filters", "empty", "too short", "of text", "negative"],
)
async def test_a_cursor_that_the_feed_did_not_give_out_is_refused(cursor: str) -> None:
    log = MemoryLog()
    async with feed_of(log) as feed:
        async with aclosing(feed.watch(View())) as watch:
            good = (await hear(watch)).caught_up.position
        given = {"": good[:-1], "other filters": good}.get(cursor, cursor)
        view = View(hidden=1) if cursor == "other filters" else View()
        with pytest.raises(InvalidArgument) as caught:
            await anext(feed.watch(view, given))
        assert caught.value.reason == errors_pb2.ERROR_REASON_CURSOR_MISMATCH


async def test_a_cursor_beside_from_beginning_is_refused() -> None:
    async with feed_of(MemoryLog()) as feed:
        with pytest.raises(InvalidArgument) as caught:
            await anext(feed.watch(View(), feed_cursor(0), from_beginning=True))
        assert caught.value.metadata["field"] == "from_beginning"


async def test_one_watcher_more_than_the_limit_is_refused_until_another_leaves() -> None:
    async with feed_of(MemoryLog(), max_watchers=1) as feed:
        watch = feed.watch(View())
        await hear(watch)
        with pytest.raises(TooManyWatchers) as caught:
            await anext(feed.watch(View()))
        assert caught.value.metadata == {"limit": "1"}
        await watch.aclose()
        async with aclosing(feed.watch(View())) as again:
            await hear(again)


async def test_a_view_of_one_partition_sees_that_alone_and_its_cursor_minds_no_other() -> None:
    log = MemoryLog()
    log.add(0)
    mine = log.add(1)
    async with feed_of(log) as feed, aclosing(feed.watch(View(only=(1,)), from_beginning=True)) as watch:
        shown, cursor = await items_until(watch, "caught_up")
        assert shown == mine
        log.add(0)
        new = log.add(1)
        feed.wake([0, 1])
        assert (await items(watch, 1))[0] == new
        log.first[0] = 2
        async with aclosing(feed.watch(View(only=(1,)), cursor)) as later:
            assert (await items(later, 1))[0] == new


async def test_a_partition_that_the_log_does_not_have_is_refused() -> None:
    async with feed_of(MemoryLog()) as feed:
        with pytest.raises(InvalidArgument) as caught:
            await anext(feed.watch(View(only=(7,))))
        assert caught.value.metadata["field"] == "partition"


async def test_a_cursor_that_another_replica_gave_waits_for_this_ones_reader() -> None:
    log = MemoryLog()
    async with feed_of(log) as here, feed_of(log) as there, aclosing(here.watch(View())) as watch:
        await items_until(watch, "caught_up")
        log.add(0)
        async with aclosing(there.watch(View())) as ahead:
            cursor = (await hear(ahead)).caught_up.position
        async with aclosing(here.watch(View(), cursor)) as resumed:
            shown, _ = await items_until(resumed, "caught_up")
            assert shown == []


async def test_no_message_is_larger_than_its_bound_unless_by_one_item() -> None:
    log = MemoryLog()
    for _ in range(20):
        log.add(0, text="x" * 400)
    log.add(0, text="x" * 5000)
    async with feed_of(log, message_bytes=2000) as feed, aclosing(feed.watch(View(), from_beginning=True)) as watch:
        sizes = []
        while (raw := pb.WatchCommitsResponse.FromString(await anext(watch))).items:
            sizes.append((len(raw.items), sum(item.ByteSize() for item in raw.items)))
    assert sum(count for count, _ in sizes) == 21
    assert all(size <= 2000 or count == 1 for count, size in sizes)
