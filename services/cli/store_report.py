"""The tables and sentences of what the store answers; pure, from its messages to what is printed."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table

from omninode.bridge.store.v1 import store_pb2 as pb
from services.cli.report import ABSENT, counted, folding, moment, span, table_of, text


def commit(action: pb.CommittedAction) -> str:
    """An action of the log as a line; with the state, where it holds one."""
    place = f"{action.partition}:{action.offset}"
    parts = [moment(action.commit_time, "milliseconds"), action.key, f"v{action.version}", action.type]
    parts += [action.provenance.actor or ABSENT, place, *(["final"] if action.final else []), action.state_json]
    return "  ".join(filter(None, parts))


def event(item: pb.OutboxEvent) -> str:
    """An event of the outbox as a line."""
    kind = "intent" if item.event.kind == pb.EVENT_KIND_INTENT else "event"
    place = f"{item.partition}:{item.offset}.{item.index}"
    told = item.event
    moment_ = moment(item.commit_time, "milliseconds")
    return "  ".join((moment_, kind, told.event_type, told.topic, told.partition_key, place, told.event_id))


def history(actions: Sequence[pb.CommittedAction]) -> Table:
    """The actions of one key, one a row."""
    table = table_of("version", "type", "actor", "effect", "correlation id", "time")
    for action in actions:
        told = action.provenance
        texts = (action.type, told.actor, told.effect_id, told.correlation_id)
        table.add_row(str(action.version), *map(text, texts), moment(action.commit_time, "milliseconds"))
    return folding(table, 1, 2, 3, 4)


def projections(listed: Sequence[pb.Projection]) -> Table:
    """Projections, one a row."""
    table = table_of("key", "version", "tag", "last action", "namespace", "created", "updated", "indices")
    for item in listed:
        indices = " ".join(f"{name}={value}" for name, value in sorted(item.indices.items()))
        table.add_row(
            text(item.key),
            str(item.version),
            *map(text, (item.tag, item.last_action, item.namespace)),
            _when(item, "create_time"),
            _when(item, "update_time"),
            text(indices),
        )
    return folding(table, 0, 7)


def groups(what: str, counts: Sequence[pb.ProjectionCount]) -> Table:
    """How many projections have each value."""
    table = table_of(what, "projections", numbers_from=1)
    for item in counts:
        table.add_row(text(item.value), f"{item.count:,}")
    return folding(table, 0)


def watermarks(listed: Sequence[pb.Watermark]) -> Table:
    """How far each partition is."""
    headings = ("partition", "log from", "events from", "log to", "projected to", "commits behind", "time behind")
    table = table_of(*headings, numbers_from=0)
    for item in listed:
        # A partition's end is the offset of what comes next, which is how many there ever were.
        numbers = (item.partition, item.first_offset, item.first_event_offset, item.next_offset, item.watermark)
        table.add_row(*map(str, numbers), str(item.lag.commits), span(item.lag.time))
    return table


def consumers(listed: Sequence[pb.Consumer]) -> Table:
    """Consumers of the outbox, one a row."""
    table = table_of("consumer", "lag", "registered", "last acknowledgement")
    for item in listed:
        acknowledged = [part.ack_time for part in item.partitions if part.HasField("ack_time")]
        last = max(acknowledged, key=lambda time: (time.seconds, time.nanos), default=None)
        table.add_row(
            text(item.consumer),
            f"{item.lag:,}",
            _when(item, "register_time"),
            moment(last) if last is not None else "never",
        )
    return folding(table, 0)


def consumer_partitions(listed: Sequence[pb.Consumer]) -> Table:
    """Consumers of the outbox, a row for each partition of each."""
    table = table_of("consumer", "partition", "next offset", "lag", "last acknowledgement")
    for item in listed:
        for part in item.partitions:
            acknowledged = moment(part.ack_time) if part.HasField("ack_time") else "never"
            numbers = map(str, (part.partition, part.next_offset, part.lag))
            table.add_row(text(item.consumer), *numbers, acknowledged)
    return folding(table, 0)


def retention(counts: Sequence[pb.RetentionCount]) -> Table:
    """What retention would delete."""
    table = table_of("kind", "kept for", "would go", "held back", numbers_from=1)
    for item in counts:
        name = pb.RetentionKind.Name(item.kind).removeprefix("RETENTION_KIND_").lower()
        table.add_row(name, span(item.retention), f"{item.count:,}", f"{item.held_count:,}")
    return table


def behind(lag: pb.ProjectionLag) -> str:
    """How far projections are behind, as the end of a sentence."""
    if not lag.commits:
        return "nothing behind the log"
    return f"{counted(lag.commits, 'commit')} ({span(lag.time)}) behind the log"


def _when(message: pb.Projection | pb.Consumer, field: str) -> str:
    time: Timestamp = getattr(message, field)
    return moment(time) if time.ByteSize() else ABSENT
