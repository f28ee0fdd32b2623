"""What one WatchStamps shows of the stamps' events. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from omninode.bridge.stamping.v1 import stamping_pb2
from services.stamping.event import EventQuery, StampEvent
from services.stamping.message import of_event


class StampView:
    """The events that a query asks for, each with its stamp as it was when the event was read."""

    partitions: Collection[int] | None = None
    response = stamping_pb2.WatchStampsResponse

    def __init__(self, query: EventQuery) -> None:
        self._query = query
        self.filters: Mapping[str, object] = {
            "feed": "stamps",
            "namespace": query.namespace,
            "kinds": sorted(query.kinds),
            "digest": query.digest,
        }

    def items(self, rows: Sequence[StampEvent]) -> Iterator[stamping_pb2.StampEvent]:
        """Messages of those rows that fit the query."""
        return (of_event(event) for event in rows if self._query.fits(event))
