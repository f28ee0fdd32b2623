"""The journal: events behind the answer, dropped and counted where they cannot be written, and never a call's concern."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from services.chassis.postgres_error import DatabaseUnavailable
from services.stamping.event import EventKind, Note, batch_notes
from services.stamping.journal import Journal, JournalSettings
from tests.stamping.sample import PATIENCE


class Ledger:
    """Takes notes when it is let, or refuses them."""

    def __init__(self) -> None:
        self.batches: list[list[Note]] = []
        self.begun = asyncio.Event()
        self.let = asyncio.Event()
        self.failure: Exception | None = None

    async def add_many(self, notes: Sequence[Note]) -> None:
        self.begun.set()
        await self.let.wait()
        if self.failure is not None:
            raise self.failure
        self.batches.append(list(notes))


def journal_of(ledger: Ledger, **settings: int) -> tuple[Journal, CollectorRegistry]:
    registry = CollectorRegistry()
    return Journal(cast(Any, ledger), JournalSettings(**settings), registry), registry


def dropped(registry: CollectorRegistry) -> float | None:
    return registry.get_sample_value("stamping_events_dropped_total")


def notes(*numbers: int) -> list[Note]:
    return [Note(EventKind.VALIDATED, "docs", uuid.UUID(int=number)) for number in numbers]


async def test_what_comes_while_a_batch_is_written_is_written_in_order_by_the_next() -> None:
    ledger = Ledger()
    journal, registry = journal_of(ledger, batch_events=2)
    async with asyncio.timeout(PATIENCE):
        journal.note(notes(1))
        await ledger.begun.wait()
        journal.note(notes(2, 3))
        journal.note(notes(4))
        ledger.let.set()
        await journal.aclose()
    assert ledger.batches == [notes(1), notes(2, 3), notes(4)]
    assert dropped(registry) == 0


async def test_a_full_queue_drops_the_newest_and_counts_them() -> None:
    ledger = Ledger()
    journal, registry = journal_of(ledger, queue_events=2)
    async with asyncio.timeout(PATIENCE):
        journal.note(notes(1))
        await ledger.begun.wait()
        journal.note(notes(2, 3, 4, 5))
        ledger.let.set()
        await journal.aclose()
    assert ledger.batches == [notes(1), notes(2, 3)]
    assert dropped(registry) == 2


async def test_notes_that_meet_no_database_are_dropped_and_later_ones_are_written() -> None:
    ledger = Ledger()
    ledger.let.set()
    ledger.failure = DatabaseUnavailable()
    journal, registry = journal_of(ledger)
    async with asyncio.timeout(PATIENCE):
        journal.note(notes(1, 2))
        await ledger.begun.wait()
        while dropped(registry) != 2:  # noqa: ASYNC110 (a counter tells nobody)
            await asyncio.sleep(0)
        ledger.failure = None
        journal.note(notes(3))
        await journal.aclose()
    assert ledger.batches == [notes(3)]
    assert dropped(registry) == 2


async def test_a_stop_without_a_database_tries_once_and_counts_what_is_lost() -> None:
    ledger = Ledger()
    ledger.failure = DatabaseUnavailable()
    journal, registry = journal_of(ledger, batch_events=1)
    async with asyncio.timeout(PATIENCE):
        journal.note(notes(1, 2, 3))
        await ledger.begun.wait()
        closing = asyncio.ensure_future(journal.aclose())
        await asyncio.sleep(0)
        ledger.let.set()
        await closing
    assert dropped(registry) == 3
    journal.note(notes(4))
    assert dropped(registry) == 4


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        pytest.param([("a", True), ("a", True), ("a", False)], [("a", 2, 1)], id="one namespace"),
        pytest.param([("b", False), ("a", True), ("b", True)], [("b", 1, 1), ("a", 1, 0)], id="two namespaces"),
        pytest.param([("", False), ("no name!", False)], [], id="no namespace at all"),
        pytest.param([("docs", False)], [("docs", 0, 1)], id="nothing stamped"),
    ],
)
def test_a_batch_is_counted_by_namespace(
    outcomes: list[tuple[str, bool]], expected: list[tuple[str, int, int]]
) -> None:
    found = [(note.namespace, note.stamped_count, note.refused_count) for note in batch_notes(outcomes)]
    assert found == expected
