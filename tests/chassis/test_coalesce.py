"""The coalescer's laws over random schedules, and each promise in a story of its own. The write is a fake that keeps books."""

import asyncio
import contextvars
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.coalesce import Coalescer, QueueFull, Stopped
from services.chassis.errors import (
    Aborted,
    BridgeError,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)

BOUND = 10.0
"""Seconds after which a wait has failed."""


@dataclass(frozen=True)
class Row:
    """`poison` makes the whole statement fail, `refused` is the row's own refusal among the answers."""

    serial: int
    key: str = ""
    poison: bool = False
    refused: bool = False
    weight: int = 0


def answer(row: Row) -> str:
    return f"written {row.serial}"


@dataclass
class Ledger:
    """An atomic write that keeps books; `hold` keeps each statement under way until it is released, `turns` delays it."""

    turns: int = 0
    batches: list[list[Row]] = field(default_factory=list)
    written: list[Row] = field(default_factory=list)
    in_flight: list[list[Row]] = field(default_factory=list)
    most_in_flight: int = 0
    gate: asyncio.Event | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, rows: Sequence[Row]) -> list[str | BridgeError]:
        batch = list(rows)
        self.batches.append(batch)
        self.in_flight.append(batch)
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        keys = [row.key for flying in self.in_flight for row in flying]
        assert len(keys) == len(set(keys)), "two items of one key in flight at once"
        self.begun.set()
        try:
            for _ in range(self.turns):
                await asyncio.sleep(0)
            if self.gate is not None:
                await self.gate.wait()
            if any(row.poison for row in batch):
                raise ValueError("a row that no statement takes")
            self.written += [row for row in batch if not row.refused]
            return [NotFound(str(row.serial)) if row.refused else answer(row) for row in batch]
        finally:
            self.in_flight.remove(batch)

    def hold(self) -> asyncio.Event:
        self.gate = asyncio.Event()
        return self.gate


def coalescer(
    ledger: Ledger,
    *,
    max_batch: int = 500,
    max_weight: int | None = None,
    max_waiting: int = 1_000,
    max_in_flight: int = 1,
) -> Coalescer[Row, str]:
    return Coalescer(
        ledger.write,
        key=lambda row: row.key,
        max_batch=max_batch,
        weight=None if max_weight is None else lambda row: row.weight,
        max_weight=max_weight or 0,
        max_waiting=max_waiting,
        max_in_flight=max_in_flight,
    )


def fits(batch: Sequence[Row], max_weight: int | None) -> bool:
    return max_weight is None or len(batch) == 1 or sum(row.weight for row in batch) <= max_weight


def distinct(count: int, first: int = 0) -> list[Row]:
    return [Row(serial, key=f"k{serial}") for serial in range(first, first + count)]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Bounded by turns and not by seconds, so that a schedule that hangs is shrunk in no time."""
    for _ in range(3_000):
        if all(task.done() for task in tasks):
            return
        await asyncio.sleep(0)
    pytest.fail("somebody waits for ever")


@dataclass(frozen=True)
class Caller:
    """One caller of a schedule: its rows as (key, kind, weight), the turns before it comes and, if it is cancelled, until then."""

    rows: list[tuple[str, str, int]]
    alone: bool
    comes_after: int
    cancelled_after: int | None


CALLERS = st.lists(
    st.builds(
        Caller,
        rows=st.lists(
            st.tuples(
                st.sampled_from("aabcdef"), st.sampled_from(["good"] * 8 + ["poison", "refused"]), st.integers(0, 12)
            ),
            max_size=6,
        ),
        alone=st.booleans(),
        comes_after=st.integers(0, 12),
        cancelled_after=st.none() | st.none() | st.integers(0, 12),
    ),
    max_size=12,
)


@settings(max_examples=250, deadline=None)
@given(
    callers=CALLERS,
    delay=st.integers(0, 4),
    max_batch=st.sampled_from([1, 2, 3, 500]),
    max_weight=st.sampled_from([None, 0, 5, 10, 20]),
    max_in_flight=st.sampled_from([1, 1, 2, 3]),
)
async def test_whatever_the_schedule_the_laws_hold(
    callers: list[Caller], delay: int, max_batch: int, max_weight: int | None, max_in_flight: int
) -> None:
    ledger = Ledger(turns=delay)
    writer = coalescer(ledger, max_batch=max_batch, max_weight=max_weight, max_in_flight=max_in_flight, max_waiting=100)
    submitted: list[Row] = []

    def row(key: str, kind: str, weight: int) -> Row:
        made = Row(len(submitted), key, poison=kind == "poison", refused=kind == "refused", weight=weight)
        submitted.append(made)
        return made

    async def call(caller: Caller) -> list[tuple[Row, str | Exception]]:
        await turns(caller.comes_after)
        if not caller.alone:
            rows = [row(*each) for each in caller.rows]
            return list(zip(rows, await writer.submit_many(rows), strict=True))
        outcomes: list[tuple[Row, str | Exception]] = []
        for each in caller.rows:
            one = row(*each)
            try:
                outcomes.append((one, await writer.submit(one)))
            except (ValueError, BridgeError) as error:
                outcomes.append((one, error))
        return outcomes

    async def cancel(task: asyncio.Task[list[tuple[Row, str | Exception]]], after: int) -> None:
        await turns(after)
        task.cancel()

    tasks = [asyncio.create_task(call(caller)) for caller in callers]
    cancels = [
        asyncio.create_task(cancel(task, caller.comes_after + caller.cancelled_after))
        for task, caller in zip(tasks, callers, strict=True)
        if caller.cancelled_after is not None
    ]
    await end(*tasks, *cancels)
    results = await asyncio.gather(*tasks, return_exceptions=True)

    answered: list[Row] = []
    for caller, result in zip(callers, results, strict=True):
        if isinstance(result, BaseException):
            assert isinstance(result, asyncio.CancelledError)
            assert caller.cancelled_after is not None
            continue
        for one, outcome in result:
            if one.poison:
                assert isinstance(outcome, ValueError), "a bad item's caller hears of it"
            elif one.refused:
                assert isinstance(outcome, NotFound)
                assert outcome.message == str(one.serial)
            else:
                assert outcome == answer(one), "every caller gets its own answer, whatever stood beside it"
                answered.append(one)

    assert max(Counter(ledger.written).values(), default=1) == 1, "nothing is written twice"
    assert set(answered) <= set(ledger.written), "what was answered was written"
    assert all(len(batch) <= max_batch for batch in ledger.batches)
    assert all(fits(batch, max_weight) for batch in ledger.batches), "a heavier batch is one item alone"
    assert ledger.most_in_flight <= max_in_flight
    for key in "abcdef":
        serials = [one.serial for one in ledger.written if one.key == key]
        assert serials == sorted(serials), "a key's items are written in the order of their submission"

    # Whatever happened before leaves no trace: the whole queue is free, and every key works.
    left = [Row(1000 + index, key="abcdef"[index % 6], weight=index % 13) for index in range(100)]
    last = asyncio.create_task(writer.submit_many(left))
    await end(last)
    assert last.result() == [answer(one) for one in left]
    await asyncio.wait_for(writer.aclose(), BOUND)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 15), max_size=12), st.integers(0, 20), st.integers(1, 6))
async def test_what_weighs_too_much_for_a_batch_begins_the_next_so_nobody_is_passed_over(
    weights: list[int], max_weight: int, max_batch: int
) -> None:
    ledger = Ledger()
    rows = [Row(serial, key=f"k{serial}", weight=weight) for serial, weight in enumerate(weights)]
    await coalescer(ledger, max_batch=max_batch, max_weight=max_weight).submit_many(rows)
    assert [row for batch in ledger.batches for row in batch] == rows
    assert all(len(batch) <= max_batch and fits(batch, max_weight) for batch in ledger.batches)
    for batch, later in pairwise(ledger.batches):
        assert len(batch) == max_batch or not fits([*batch, later[0]], max_weight), "a batch is as full as it may be"


async def test_an_item_heavier_than_a_batch_may_be_goes_alone_in_its_turn() -> None:
    ledger = Ledger()
    weights = [4, 6, 11, 1, 10, 0, 3]
    rows = [Row(serial, key=f"k{serial}", weight=weight) for serial, weight in enumerate(weights)]
    assert await coalescer(ledger, max_weight=10).submit_many(rows) == [answer(row) for row in rows]
    assert [[row.weight for row in batch] for batch in ledger.batches] == [[4, 6], [11], [1], [10, 0], [3]]


async def test_callers_of_one_turn_share_a_statement() -> None:
    ledger = Ledger()
    writer = coalescer(ledger)
    rows = distinct(20)
    assert await asyncio.gather(*(writer.submit(row) for row in rows)) == [answer(row) for row in rows]
    assert ledger.batches == [rows]


async def test_while_one_batch_is_in_flight_the_next_gathers() -> None:
    ledger = Ledger()
    gate = ledger.hold()
    writer = coalescer(ledger)
    rows = distinct(4)
    tasks = [asyncio.create_task(writer.submit(rows[0]))]
    await asyncio.wait_for(ledger.begun.wait(), BOUND)
    for row in rows[1:]:
        tasks.append(asyncio.create_task(writer.submit(row)))
        await turns()
    assert ledger.batches == [rows[:1]]
    gate.set()
    await asyncio.gather(*tasks)
    assert ledger.batches == [rows[:1], rows[1:]]


async def test_five_hundred_items_of_one_call_are_one_statement_and_one_more_is_another() -> None:
    ledger = Ledger()
    rows = distinct(501)
    assert await coalescer(ledger).submit_many(rows) == [answer(row) for row in rows]
    assert [len(batch) for batch in ledger.batches] == [500, 1]


async def test_no_items_are_no_statement() -> None:
    ledger = Ledger()
    assert await coalescer(ledger).submit_many([]) == []
    assert ledger.batches == []


async def test_a_hot_key_with_a_long_queue_delays_no_other_key() -> None:
    ledger = Ledger()
    gate = ledger.hold()
    writer = coalescer(ledger, max_batch=10)
    hot = [Row(serial, key="hot") for serial in range(300)]
    others = distinct(5, first=1000)
    crowd = asyncio.create_task(writer.submit_many(hot))
    await asyncio.wait_for(ledger.begun.wait(), BOUND)
    late = asyncio.create_task(writer.submit_many(others))
    await turns()
    gate.set()
    await asyncio.wait_for(asyncio.gather(late, crowd), BOUND)
    assert ledger.batches[:2] == [hot[:1], [*others, hot[1]]]
    assert [row for row in ledger.written if row.key == "hot"] == hot


async def test_keys_take_turns_so_that_none_starves() -> None:
    ledger = Ledger()
    rows = [Row(serial, key="abc"[serial // 4]) for serial in range(12)]
    await coalescer(ledger, max_batch=2).submit_many(rows)
    assert ["".join(row.key for row in batch) for batch in ledger.batches] == ["ab", "ca", "bc"] * 2


async def test_one_bad_item_harms_only_its_caller_and_costs_few_statements() -> None:
    ledger = Ledger()
    rows = distinct(500)
    rows[321] = Row(321, key="k321", poison=True)
    outcomes = await coalescer(ledger).submit_many(rows)
    assert isinstance(outcomes[321], ValueError)
    assert [outcome for index, outcome in enumerate(outcomes) if index != 321] == [
        answer(row) for row in rows if not row.poison
    ]
    assert len(ledger.batches) <= 19, "one whole and two a halving: 1 + 2 * 9"
    assert ledger.written == [row for row in rows if not row.poison], "halves go in order"


Failure = Callable[[], Exception]


@pytest.mark.parametrize(
    ("failure", "statements"),
    [
        pytest.param(Unavailable, 1, id="a database that is away is asked once"),
        pytest.param(ResourceExhausted, 1, id="a full pool is asked once"),
        pytest.param(DeadlineExceeded, 1, id="a slow database is asked once"),
        pytest.param(Aborted, 15, id="a conflict is tried again in halves"),
        pytest.param(InvalidArgument, 15, id="a refusal is tried again in halves"),
        pytest.param(RuntimeError, 15, id="a bug is tried again in halves"),
    ],
)
async def test_only_failures_that_smaller_batches_may_avoid_are_tried_in_halves(
    failure: Failure, statements: int
) -> None:
    calls = 0

    async def write(rows: Sequence[Row]) -> list[str | BridgeError]:
        nonlocal calls
        calls += 1
        raise failure()

    writer: Coalescer[Row, str] = Coalescer(write, key=lambda row: row.key)
    outcomes = await writer.submit_many(distinct(8))
    assert all(type(outcome) is failure for outcome in outcomes)
    assert calls == statements


async def test_a_failure_that_a_batch_shares_has_each_callers_own_short_trace() -> None:
    async def write(rows: Sequence[Row]) -> list[str | BridgeError]:
        raise Unavailable

    writer: Coalescer[Row, str] = Coalescer(write, key=lambda row: row.key)

    async def trace(row: Row) -> int:
        with pytest.raises(Unavailable) as failure:
            await writer.submit(row)
        return len(failure.traceback)

    assert set(await asyncio.gather(*(trace(row) for row in distinct(50)))) == {2}


async def test_a_write_that_answers_for_too_few_is_a_bug_that_is_not_written_again() -> None:
    calls = 0

    async def write(rows: Sequence[Row]) -> list[str | BridgeError]:
        nonlocal calls
        calls += 1
        return [answer(row) for row in rows[1:]]

    writer: Coalescer[Row, str] = Coalescer(write, key=lambda row: row.key)
    outcomes = await writer.submit_many(distinct(4))
    assert all(isinstance(outcome, RuntimeError) for outcome in outcomes)
    assert calls == 1


async def test_a_caller_cancelled_before_its_item_was_taken_is_never_written() -> None:
    ledger = Ledger()
    gate = ledger.hold()
    writer = coalescer(ledger)
    first, dropped, kept = Row(0, "a"), Row(1, "a"), Row(2, "a")
    tasks = [asyncio.create_task(writer.submit(row)) for row in (first, dropped, kept)]
    await asyncio.wait_for(ledger.begun.wait(), BOUND)
    tasks[1].cancel()
    await turns()
    gate.set()
    assert await tasks[0] == answer(first)
    assert await tasks[2] == answer(kept)
    assert tasks[1].cancelled()
    assert ledger.written == [first, kept]


async def test_a_caller_cancelled_after_its_item_was_taken_leaves_the_batch_alone() -> None:
    ledger = Ledger()
    gate = ledger.hold()
    writer = coalescer(ledger)
    rows = distinct(3)
    tasks = [asyncio.create_task(writer.submit(row)) for row in rows]
    await asyncio.wait_for(ledger.begun.wait(), BOUND)
    tasks[0].cancel()
    await turns()
    gate.set()
    assert await asyncio.gather(*tasks[1:]) == [answer(row) for row in rows[1:]]
    assert ledger.written == rows


async def test_a_queue_that_is_full_by_weight_refuses_and_a_lone_heavy_item_is_taken() -> None:
    ledger = Ledger()
    gate = ledger.hold()
    writer: Coalescer[Row, str] = Coalescer(
        ledger.write,
        lambda row: row.key,
        weight=lambda row: row.serial,
        max_weight=10,
        max_waiting_weight=100,
        max_in_flight=1,
    )
    flying = asyncio.create_task(writer.submit(Row(1, "flying")))
    await asyncio.wait_for(ledger.begun.wait(), BOUND)
    heavy = asyncio.create_task(writer.submit(Row(1000, "heavy")))
    await turns()
    with pytest.raises(QueueFull) as refusal:
        await writer.submit(Row(2, "refused"))
    assert refusal.value.metadata == {"limit_bytes": "100"}
    gate.set()
    assert (await flying, await heavy) == ("written 1", "written 1000")
    assert await writer.submit_many([Row(60, "a"), Row(40, "b")]) == ["written 60", "written 40"]


async def test_a_full_queue_refuses_at_once_and_a_cancelled_caller_makes_room() -> None:
    ledger = Ledger()
    gate = ledger.hold()
    writer = coalescer(ledger, max_waiting=3)
    flying = asyncio.create_task(writer.submit(Row(0)))
    await asyncio.wait_for(ledger.begun.wait(), BOUND)
    waiting = asyncio.create_task(writer.submit_many(distinct(2)))
    await turns()
    with pytest.raises(QueueFull) as refusal:
        await writer.submit_many(distinct(2, first=10))
    assert refusal.value.reason == errors_pb2.ERROR_REASON_QUEUE_FULL
    assert refusal.value.metadata == {"limit": "3"}
    assert refusal.value.retry_delay is not None
    waiting.cancel()
    await turns()
    more = asyncio.create_task(writer.submit_many(distinct(3, first=20)))
    await turns()
    gate.set()
    assert len(await more) == 3
    await flying
    assert {row.serial for row in ledger.written} == {0, 20, 21, 22}


async def test_a_stop_drains_what_was_taken_in_and_refuses_what_comes_later() -> None:
    ledger = Ledger(turns=2)
    writer = coalescer(ledger, max_batch=2)
    rows = distinct(7)
    crowd = asyncio.create_task(writer.submit_many(rows))
    await turns(1)
    await asyncio.wait_for(writer.aclose(), BOUND)
    assert ledger.written == rows
    assert await crowd == [answer(row) for row in rows]
    with pytest.raises(Stopped) as refusal:
        await writer.submit(Row(99))
    assert refusal.value.reason == errors_pb2.ERROR_REASON_SHUTTING_DOWN


async def test_a_batch_is_sorted_so_that_two_processes_lock_rows_in_one_order() -> None:
    ledger = Ledger()
    writer: Coalescer[Row, str] = Coalescer(ledger.write, key=lambda row: row.key, order=lambda row: row.key)
    rows = [Row(0, "c"), Row(1, "a"), Row(2, "b")]
    assert await writer.submit_many(rows) == [answer(row) for row in rows]
    assert ledger.batches == [[rows[1], rows[2], rows[0]]]


async def test_a_batch_does_not_run_in_its_first_callers_context() -> None:
    correlation = contextvars.ContextVar("correlation", default="nobody's")
    seen: list[str] = []

    async def write(rows: Sequence[Row]) -> list[str | BridgeError]:
        seen.append(correlation.get())
        return [answer(row) for row in rows]

    writer: Coalescer[Row, str] = Coalescer(write, key=lambda row: row.key)
    correlation.set("the first caller's")
    await writer.submit(Row(0))
    assert seen == ["nobody's"]


@pytest.mark.parametrize("max_in_flight", [1, 3])
async def test_as_many_batches_as_allowed_are_in_flight_at_once(max_in_flight: int) -> None:
    ledger = Ledger()
    gate = ledger.hold()
    writer = coalescer(ledger, max_batch=2, max_in_flight=max_in_flight)
    crowd = asyncio.create_task(writer.submit_many(distinct(20)))
    await turns(10)
    assert len(ledger.in_flight) == max_in_flight
    gate.set()
    assert len(await asyncio.wait_for(crowd, BOUND)) == 20


async def test_a_further_batch_goes_out_beside_another_only_when_it_is_full() -> None:
    ledger = Ledger()
    gate = ledger.hold()
    writer = coalescer(ledger, max_batch=4, max_in_flight=2)
    rows = distinct(6)
    callers = [asyncio.create_task(writer.submit(rows[0]))]
    await turns(10)
    callers += [asyncio.create_task(writer.submit(row)) for row in rows[1:4]]
    await turns(10)
    assert [len(batch) for batch in ledger.in_flight] == [1]
    callers += [asyncio.create_task(writer.submit(row)) for row in rows[4:]]
    await turns(10)
    assert [len(batch) for batch in ledger.in_flight] == [1, 4]
    gate.set()
    assert len(await asyncio.wait_for(asyncio.gather(*callers), BOUND)) == 6


@pytest.mark.parametrize("statement", [1, 2, 3], ids=["whole", "in the first half", "in the second half"])
async def test_a_write_that_was_cancelled_answers_its_callers_and_those_who_wait_are_served(statement: int) -> None:
    statements = 0
    begun = asyncio.Event()

    async def write(rows: Sequence[Row]) -> list[str | BridgeError]:
        nonlocal statements
        statements += 1
        begun.set()
        await turns()
        if statements == statement:
            raise asyncio.CancelledError
        if statements == 1:
            raise ValueError
        return [answer(row) for row in rows]

    writer: Coalescer[Row, str] = Coalescer(write, key=lambda row: row.key)
    unlucky = asyncio.create_task(writer.submit_many(distinct(4)))
    await asyncio.wait_for(begun.wait(), BOUND)
    waiting = asyncio.create_task(writer.submit(Row(7)))
    outcomes = await asyncio.wait_for(unlucky, BOUND)
    assert any(isinstance(outcome, Stopped) for outcome in outcomes)
    assert all(isinstance(outcome, (Stopped, str)) for outcome in outcomes)
    assert await asyncio.wait_for(waiting, BOUND) == answer(Row(7))


async def test_a_submission_right_after_the_last_answer_is_not_left_behind() -> None:
    ledger = Ledger()
    writer = coalescer(ledger)

    async def chain(submit: Callable[[Row], Awaitable[str]]) -> None:
        for serial in range(200):
            assert await submit(Row(serial)) == answer(Row(serial))

    await asyncio.wait_for(chain(writer.submit), BOUND)
    assert len(ledger.batches) == 200
