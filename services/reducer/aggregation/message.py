"""Panes, sessions and configurations as messages. Pure; the way back is `request`'s."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from services.chassis import timestamp
from services.reducer.aggregation.config import SECOND, Config, Gap, Hopping, Tumbling
from services.reducer.aggregation.contract import SessionStage
from services.reducer.aggregation.pane import Pane
from services.reducer.aggregation.session import Session

_STAGES = {
    SessionStage.IDLE: pb.SESSION_STATE_IDLE,
    SessionStage.AGGREGATING: pb.SESSION_STATE_AGGREGATING,
    SessionStage.PERSISTING: pb.SESSION_STATE_PERSISTING,
}


_LARGEST = 2**63 - 1
"""A sum beyond what an int64 holds is shown as that."""


def fill_time(message: Timestamp, microseconds: int) -> None:
    """Sets the message to a time since 1970 in UTC; also to the epoch itself, where all its fields are 0."""
    seconds, rest = divmod(microseconds, SECOND)
    message.seconds = seconds
    message.nanos = rest * 1000


def to_pane(pane: Pane) -> pb.Pane:
    """The message of a pane."""
    message = pb.Pane()
    fill_pane(message, pane)
    return message


def fill_pane(message: pb.Pane, pane: Pane) -> None:
    """Fills a pane into an empty message."""
    strategy, start, end, namespace, key = pane.cell
    message.strategy = pb.AggregationStrategy.ValueType(strategy)
    fill_time(message.window_start_time, start)
    fill_time(message.window_end_time, end)
    message.namespace = namespace
    message.key = key
    message.count = pane.item_count
    message.total_bytes = min(pane.total_bytes, _LARGEST)
    message.min_bytes = pane.min_bytes
    message.max_bytes = pane.max_bytes
    message.mean_bytes = pane.total_bytes / pane.item_count
    message.distinct_file_types.count, message.distinct_file_types.estimated = pane.file_types
    message.distinct_workflows.count, message.distinct_workflows.estimated = pane.workflows
    if pane.workflow_states:
        message.workflow_states.update(pane.workflow_states)
    message.custom_json = pane.custom_json
    message.revision = pane.revision
    message.timing = pb.PaneTiming.ValueType(pane.timing)
    message.is_final = pane.final


def fill_session(message: pb.Session, session: Session, stage: SessionStage | None = None) -> None:
    """Fills a session into an empty message; `stage` is what its writer on this node knows better."""
    message.session = session.name
    fill_config(message.config, session.config)
    message.state = _STAGES[stage or session.stage]
    message.finished = session.finished
    message.offset = session.offset
    progress = session.progress
    if progress.watermark is not None:
        message.watermark.SetInParent()
        fill_time(message.watermark, progress.watermark)
    message.item_count = progress.item_count
    message.late_count = progress.late_count
    message.invalid_count = progress.invalid_count
    message.open_window_count = progress.open_windows
    timestamp.fill(message.commit_time, session.committed_at)
    message.part_count = session.part_count


def fill_config(message: pb.AggregationConfig, config: Config) -> None:
    """Fills a configuration, in full, into an empty message."""
    message.strategies.extend(pb.AggregationStrategy.ValueType(strategy) for strategy in config.strategies)
    message.by_namespace = config.by_namespace
    match config.window:
        case Tumbling(size):
            _fill_span(message.tumbling.size, size)
        case Hopping(size, hop):
            _fill_span(message.hopping.size, size)
            _fill_span(message.hopping.hop, hop)
        case Gap(gap):
            _fill_span(message.session_window.gap, gap)
    _fill_span(message.watermark_delay, config.watermark_delay)
    _fill_span(message.allowed_lateness, config.allowed_lateness)
    _fill_span(message.early_period, config.early_period)
    _fill_span(message.retention, config.retention)
    _fill_span(message.max_wait, config.max_wait)
    message.size_bounds.extend(config.size_bounds)
    message.custom_fold = config.custom_fold
    message.exact_distinct = config.exact_distinct


def _fill_span(message: Duration, microseconds: int) -> None:
    # A span of 0 has no field that would make it there by itself.
    message.SetInParent()
    seconds, rest = divmod(microseconds, SECOND)
    message.seconds = seconds
    message.nanos = rest * 1000
