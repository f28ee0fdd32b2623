"""What a Watch shows of the store's logs, by its request's filters. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import Field

from omninode.bridge.store.v1 import store_pb2
from services.chassis import timestamp
from services.chassis.boundary import Boundary, Key, Name
from services.chassis.feed.log import Position
from services.store.domain import Collection as CollectionName
from services.store.domain import EventKind, LeaseEvent, LeasePrefix, LoggedAction, PartitionNumber
from services.store.message import fill_event, fill_provenance
from services.store.stored import to_events, to_provenance


class CommitView(Boundary):
    """The commits, an item for each action."""

    collection: CollectionName | None
    keys: Annotated[tuple[Key, ...], Field(max_length=100)]
    types: Annotated[tuple[Name, ...], Field(max_length=100)]
    wanted: Annotated[tuple[PartitionNumber, ...], Field(max_length=1024, alias="partitions")]
    include_states: bool
    include_events: bool

    @property
    def filters(self) -> Mapping[str, object]:
        return {"feed": "commits", **self.model_dump(mode="json")}

    @property
    def partitions(self) -> Collection[int] | None:
        return sorted(set(self.wanted)) or None

    @property
    def response(self) -> type[store_pb2.WatchCommitsResponse]:
        return store_pb2.WatchCommitsResponse

    def items(self, rows: Sequence[LoggedAction]) -> Iterator[store_pb2.CommittedAction]:
        key = rows[0].key
        if key is None or (self.keys and key not in self.keys):
            return
        if self.collection and not key.startswith(f"{self.collection}/"):
            return
        for row in rows:
            if not self.types or row.type in self.types:
                yield to_committed_action(row, states=self.include_states, events=self.include_events)


def to_committed_action(row: LoggedAction, *, states: bool, events: bool) -> store_pb2.CommittedAction:
    """An action of the log."""
    assert row.key is not None
    message = store_pb2.CommittedAction(
        partition=row.partition,
        offset=row.offset,
        index=row.action_index,
        key=row.key,
        version=row.version,
        action_id=str(row.action_id),
        type=row.type,
        final=bool(row.final),
    )
    fill_provenance(message.provenance, to_provenance(row.provenance_text))
    timestamp.fill(message.commit_time, row.committed_at)
    if states and row.state_json is not None:
        message.state_json = row.state_json
        message.schema_version = row.schema_version or 0
    if events:
        for event in to_events(row.action_id, row.events_text):
            fill_event(message.events.add(), event)
    return message


class OutboxView(Boundary):
    """The events of one partition, for a consumer."""

    consumer: Name
    partition: PartitionNumber
    kind: EventKind | None
    event_types: Annotated[tuple[Name, ...], Field(max_length=100)]
    topics: Annotated[tuple[Name, ...], Field(max_length=100)]

    @property
    def filters(self) -> Mapping[str, object]:
        return {"feed": "outbox", **self.model_dump(mode="json")}

    @property
    def partitions(self) -> Collection[int]:
        return (self.partition,)

    @property
    def response(self) -> type[store_pb2.WatchOutboxResponse]:
        return store_pb2.WatchOutboxResponse

    def items(self, rows: Sequence[LoggedAction]) -> list[store_pb2.OutboxEvent]:
        shown: list[store_pb2.OutboxEvent] = []
        index = 0
        for row in rows:
            for event in to_events(row.action_id, row.events_text):
                if (
                    (self.kind is None or event.kind == self.kind)
                    and (not self.event_types or event.event_type in self.event_types)
                    and (not self.topics or event.topic in self.topics)
                ):
                    message = store_pb2.OutboxEvent(
                        partition=row.partition,
                        offset=row.offset,
                        index=index,
                        key=row.key or "",
                        version=row.version,
                    )
                    fill_event(message.event, event)
                    if row.key is not None:
                        fill_provenance(message.provenance, to_provenance(row.provenance_text))
                    timestamp.fill(message.commit_time, row.committed_at)
                    shown.append(message)
                index += 1
        return shown


def mark_outbox(response: store_pb2.WatchOutboxResponse, position: Position) -> None:
    """Says up to where a watcher has seen everything, whatever its filters left out: what it may acknowledge."""
    (response.next_offset,) = position.values()


_KINDS = {
    "acquired": store_pb2.LEASE_EVENT_KIND_ACQUIRED,
    "released": store_pb2.LEASE_EVENT_KIND_RELEASED,
    "expired": store_pb2.LEASE_EVENT_KIND_EXPIRED,
}


class LeaseView(Boundary):
    """What happens to leases."""

    prefix: LeasePrefix

    @property
    def filters(self) -> Mapping[str, object]:
        return {"feed": "leases", **self.model_dump(mode="json")}

    @property
    def partitions(self) -> None:
        return None

    @property
    def response(self) -> type[store_pb2.WatchLeasesResponse]:
        return store_pb2.WatchLeasesResponse

    def items(self, rows: Sequence[LeaseEvent]) -> Iterator[store_pb2.LeaseEvent]:
        for row in rows:
            if row.name.startswith(self.prefix):
                message = store_pb2.LeaseEvent(kind=_KINDS[row.kind], name=row.name, owner=row.owner, epoch=row.epoch)
                timestamp.fill(message.occur_time, row.occurred_at)
                yield message
