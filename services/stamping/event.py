"""What happens to stamps: the kinds of events, an event as it is read, and what a watcher may ask for. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from services.chassis.boundary import Digest, Name
from services.stamping.domain import Stamp

_ROW_BYTES = 1024
"""About what an event and its stamp take in memory beside the texts whose length is the callers'."""


class EventKind(StrEnum):
    """As the ledger has them."""

    CREATED = "created"
    REVOKED = "revoked"
    VALIDATED = "validated"
    BATCH_PROCESSED = "batch_processed"


class StampEvent(NamedTuple):
    """One event of the ledger, with its stamp as it was when the event was read."""

    offset: int
    kind: EventKind
    namespace: str
    stamp: Stamp | None
    """None for a batch."""
    occurred_at: datetime
    reason: str
    stamped_count: int
    refused_count: int

    @property
    def partition(self) -> int:
        """Always 0: the events are one sequence."""
        return 0

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        texts = len(self.reason)
        if self.stamp is not None:
            texts += len(self.stamp.intelligence_data) + len(self.stamp.file_path)
        return _ROW_BYTES + texts


class Note(NamedTuple):
    """An event that is noted as well as may be."""

    kind: EventKind
    namespace: str
    stamp_id: uuid.UUID | None = None
    stamped_count: int | None = None
    refused_count: int | None = None


class EventQuery(BaseModel):
    """Which events a watcher asks for; None and the empty collections leave a filter out."""

    model_config = ConfigDict(frozen=True)

    namespace: Name | None
    kinds: frozenset[EventKind]
    digest: Digest | None

    def fits(self, event: StampEvent) -> bool:
        """Whether the event is asked for."""
        if self.namespace is not None and event.namespace != self.namespace:
            return False
        if self.kinds and event.kind not in self.kinds:
            return False
        return self.digest is None or (event.stamp is not None and event.stamp.digest.hex() == self.digest)


_NAME = TypeAdapter(Name)


def batch_notes(outcomes: Iterable[tuple[str, bool]]) -> list[Note]:
    """The events of a batch from its items' namespaces and whether each was stamped: one for each namespace.

    So whoever follows one namespace hears of its own items alone. Items refused for a malformed namespace are in no event.
    """
    counts: dict[str, list[int]] = {}
    for namespace, stamped in outcomes:
        counts.setdefault(namespace, [0, 0])[0 if stamped else 1] += 1
    return [
        Note(EventKind.BATCH_PROCESSED, namespace, stamped_count=stamped, refused_count=refused)
        for namespace, (stamped, refused) in counts.items()
        if stamped or _is_name(namespace)
    ]


def _is_name(namespace: str) -> bool:
    try:
        _NAME.validate_python(namespace)
    except ValidationError:
        return False
    return True
