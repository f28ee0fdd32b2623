"""Notes what is worth knowing and not worth waiting for: validations and batches. Behind the answer, as well as may be."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter
from pydantic import BaseModel, ConfigDict, Field

from services.stamping.event import Note
from services.stamping.repository.event import EventRepository

_log = logging.getLogger(__name__)


class JournalSettings(BaseModel):
    """How much is noted of what is not worth waiting for."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    queue_events: int = Field(10_000, gt=0)
    """Validations and batches that wait to be noted, some MiB; beyond it the newest are dropped and counted."""
    batch_events: int = Field(500, gt=0)
    """Of one statement: it holds the numbers of all events, for which creations and revocations wait."""


class Journal:
    """Writes notes in the background. What does not fit, or meets no database, is dropped and counted: it never fails a call."""

    def __init__(self, events: EventRepository, settings: JournalSettings, registry: CollectorRegistry) -> None:
        self._events = events
        self._settings = settings
        self._waiting: deque[Note] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._closed = False
        self._dropped = Counter(
            "stamping_events_dropped", "Validations and batches that no event was written of.", registry=registry
        )

    def note(self, notes: Iterable[Note]) -> None:
        """Takes notes to be written; returns at once."""
        for note in notes:
            if self._closed or len(self._waiting) >= self._settings.queue_events:
                self._dropped.inc()
            else:
                self._waiting.append(note)
        if self._waiting and self._writing is None:
            # A task of nobody's call: a caller's deadline and correlation id are not the journal's.
            self._writing = asyncio.get_running_loop().create_task(self._write(), context=contextvars.Context())

    async def aclose(self) -> None:
        """Takes no more, and returns when what it took is written, or dropped for want of a database."""
        self._closed = True
        if self._writing is not None:
            await asyncio.wait([self._writing])

    async def _write(self) -> None:
        try:
            await self._write_all()
        finally:
            self._writing = None

    async def _write_all(self) -> None:
        failing = False
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._settings.batch_events))]
            try:
                await self._events.add_many(batch)
                failing = False
            except Exception as error:
                self._dropped.inc(len(batch))
                if not failing:
                    _log.warning("events of validations and batches are dropped: %s", error)
                failing = True
                if self._closed:
                    # A stop waits out one outage, not one for each batch.
                    self._dropped.inc(len(self._waiting))
                    self._waiting.clear()
