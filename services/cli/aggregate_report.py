"""The tables and sentences of sessions and panes; pure, from the reducer's messages to what is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import StrEnum

from google.protobuf.duration_pb2 import Duration
from rich.table import Table

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from services.cli.report import ABSENT, folding, moment, readable_bytes, span, table_of, text


class Strategy(StrEnum):
    """By what items are put together."""

    NAMESPACE_GROUPING = "namespace_grouping"
    TIME_WINDOW = "time_window"
    FILE_TYPE_GROUPING = "file_type_grouping"
    SIZE_BUCKETS = "size_buckets"
    WORKFLOW_GROUPING = "workflow_grouping"
    CUSTOM = "custom"


STRATEGIES: Mapping[Strategy, pb.AggregationStrategy.ValueType] = {
    each: pb.AggregationStrategy.Value(f"AGGREGATION_STRATEGY_{each.name}") for each in Strategy
}
_NAMES = {number: str(name) for name, number in STRATEGIES.items()}


def sessions(listed: Sequence[pb.Session]) -> Table:
    """Sessions, one a row."""
    headings = ("session", "state", "watermark", "items", "late", "invalid", "open windows", "offset", "committed")
    table = table_of(*headings)
    for item in listed:
        counts = (item.item_count, item.late_count, item.invalid_count, item.open_window_count, item.offset)
        table.add_row(
            text(item.session),
            state(item),
            watermark(item),
            *(f"{count:,}" for count in counts),
            moment(item.commit_time) if item.HasField("commit_time") else ABSENT,
        )
    return folding(_numbers(table, 3, 8), 0)


def state(session: pb.Session) -> str:
    """What a session does, in a word."""
    if session.finished:
        return "finished"
    return pb.SessionState.Name(session.state).removeprefix("SESSION_STATE_").lower()


def watermark(session: pb.Session) -> str:
    """How far a session's event time has come."""
    return moment(session.watermark, "milliseconds") if session.HasField("watermark") else ABSENT


def panes(listed: Sequence[pb.Pane]) -> Table:
    """Panes, one a row."""
    headings = ["window", "length", "strategy", "namespace", "key", "items", "bytes", "mean", "file types", "workflows"]
    table = table_of(*headings, "states", "revision", "timing")
    for item in listed:
        states = " ".join(f"{name}={count}" for name, count in sorted(item.workflow_states.items()))
        table.add_row(
            moment(item.window_start_time, _timespec(item)),
            length(item),
            strategy(item),
            *map(text, (item.namespace, item.key)),
            f"{item.count:,}",
            readable_bytes(item.total_bytes),
            readable_bytes(item.mean_bytes),
            _distinct(item.distinct_file_types),
            _distinct(item.distinct_workflows),
            text(" ".join(filter(None, (states, item.custom_json)))),
            str(item.revision),
            timing(item),
        )
    return folding(_numbers(table, 5, 10), 3, 4, 10)


def pane(item: pb.Pane) -> str:
    """A pane as a line."""
    window = f"{moment(item.window_start_time, _timespec(item))} +{length(item).replace(' ', '')}"
    counts = (f"{item.count:,} item{'' if item.count == 1 else 's'}", readable_bytes(item.total_bytes))
    texts = (item.namespace or ABSENT, item.key or ABSENT)
    parts = (window, strategy(item), *texts, *counts, f"r{item.revision}", timing(item), item.custom_json)
    return "  ".join(filter(None, parts))


def rejection(item: pb.RejectedItem) -> str:
    """Why an item was not counted, as the rest of a line that names it."""
    at = f"the watermark was at {moment(item.watermark, 'milliseconds')}"
    match item.rejection:
        case pb.REJECTION_LATE:
            return f"late: {at}"
        case pb.REJECTION_PARTLY_LATE:
            return f"partly late: {at}; it is counted in its other windows"
        case _:
            return refusal(item.error)


def refusal(error: errors_pb2.Error) -> str:
    """What is wrong with an item, field by field; its place in its message is of no use to who knows its line."""
    faults = (f"{fault.field.rpartition('].')[2]} {fault.description}" for fault in error.field_violations)
    return "; ".join(faults) or error.message


def strategy(item: pb.Pane) -> str:
    """A pane's strategy; its number where this build does not know it."""
    return _NAMES.get(item.strategy, str(item.strategy))


def timing(item: pb.Pane) -> str:
    """Why a pane is shown, and whether it is final."""
    known = item.timing in pb.PaneTiming.values()
    word = pb.PaneTiming.Name(item.timing).removeprefix("PANE_TIMING_").lower() if known else str(item.timing)
    return "final" if item.is_final else word.replace("_", " ")


def length(item: pb.Pane) -> str:
    """How long a pane's window is."""
    nanoseconds = item.window_end_time.ToNanoseconds() - item.window_start_time.ToNanoseconds()
    time = Duration()
    time.FromTimedelta(timedelta(microseconds=nanoseconds // 1000))
    return span(time)


def _timespec(item: pb.Pane) -> str:
    return "milliseconds" if item.window_start_time.nanos else "seconds"


def _distinct(count: pb.DistinctCount) -> str:
    return f"{'~' if count.estimated else ''}{count.count:,}"


def _numbers(table: Table, begin: int, end: int) -> Table:
    for column in table.columns[begin:end]:
        column.justify = "right"
    return table
