"""What a writer's messages say: its configuration, and its items as columns, each fault with its field. Pure.

What is at fault in an item is told and passed over; what is at fault in a message ends the stream, and is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic_core import from_json

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from services.chassis.errors import InvalidArgument, invalid_field
from services.reducer.aggregation.config import SECOND, Config, Gap, Hopping, Strategy, Tumbling, Window
from services.reducer.aggregation.durable import Rejected
from services.reducer.aggregation.error import SessionConfigDiffers
from services.reducer.aggregation.item import Columns

_DAY = 24 * 3600 * SECOND
_LONGEST = 31 * _DAY
_SHORTEST = SECOND // 1000
_MOST_WINDOWS = 100
"""Hopping windows that one item is in."""
_RETAINED_WINDOWS = 10_000
"""A checkpoint names each of them."""
_MOST_BOUNDS = 64
_MOST_EXACT = 10_000
_LAST_TIME = 253_402_300_799 * SECOND
"""The end of the year 9999: the last that google.protobuf.Timestamp has."""
_CHARACTERS = {"namespace": 255, "file_type": 255, "workflow_id": 440, "workflow_state": 64}
_PAYLOAD_BYTES = 4096
MAX_SIZE = 2**40
"""Of one item: so that the sizes of eight million items are a number that every language reads."""
_LAST_OFFSET = 2**62
_NAMES = {Strategy(number): name for name, number in pb.AggregationStrategy.items() if number}
_OPEN = "open.config"


class Batch(NamedTuple):
    """A message's items: those to count, and those that are malformed."""

    columns: Columns
    offsets: Sequence[int]
    """Of the items to count."""
    invalid: Sequence[Rejected]
    first_offset: int
    last_offset: int


def to_config(message: pb.AggregationConfig, defaults: Config) -> Config:
    """The configuration in full. Raises InvalidArgument."""
    strategies = _strategies(message.strategies) or defaults.strategies
    custom = message.custom_fold or defaults.custom_fold
    if Strategy.CUSTOM in strategies and not custom:
        raise invalid_field(f"{_OPEN}.custom_fold", "must name a fold for CUSTOM")
    if message.custom_fold and Strategy.CUSTOM not in strategies:
        raise invalid_field(f"{_OPEN}.custom_fold", "must not be set without CUSTOM")
    window = _window(message) or defaults.window
    return Config(
        strategies=strategies,
        by_namespace=message.by_namespace if message.HasField("by_namespace") else defaults.by_namespace,
        window=window,
        watermark_delay=_span(message, "watermark_delay", defaults.watermark_delay),
        allowed_lateness=_span(message, "allowed_lateness", defaults.allowed_lateness),
        early_period=_span(message, "early_period", defaults.early_period),
        retention=_retention(message, window, defaults.retention),
        max_wait=_span(message, "max_wait", defaults.max_wait, 10 * SECOND),
        size_bounds=_size_bounds(message.size_bounds) or defaults.size_bounds,
        custom_fold=custom if Strategy.CUSTOM in strategies else "",
        exact_distinct=_exact(message, defaults),
    )


def check_config(session: str, message: pb.AggregationConfig, held: Config) -> None:
    """Raises SessionConfigDiffers where a message asks for another configuration than the session has."""
    asked = to_config(message, held)
    for field in Config.__dataclass_fields__:
        if getattr(asked, field) != getattr(held, field):
            name = message.WhichOneof("window") if field == "window" else field
            raise SessionConfigDiffers(session, f"{_OPEN}.{name}")


def to_batch(message: pb.ItemBatch | pb.ItemColumns, *, limit: int, latest: int, payloads: bool) -> Batch:
    """A message's items. No event time may be beyond `latest`; `payloads` says whether any is read. Raises InvalidArgument."""
    first = message.first_offset
    if isinstance(message, pb.ItemBatch):
        name, columns = "items", _columns_of_items(message.items)
    else:
        name, columns = "columns", _columns(message)
    count = len(columns.times)
    path = "items.items" if name == "items" else "columns.event_times_us"
    if not 1 <= count <= limit:
        raise invalid_field(path, f"must hold 1 to {limit} items", item_count=str(count))
    if not 1 <= first <= _LAST_OFFSET - count:
        raise invalid_field(f"{name}.first_offset", "must be 1 or more, and no offset above 2^62")
    if not payloads:
        columns = columns._replace(payloads=[""] * count)
    faults = _faults(columns, latest)
    if not faults:
        return Batch(columns, range(first, first + count), (), first, first + count - 1)
    kept = [place for place in range(count) if place not in faults]
    return Batch(
        only(columns, kept),
        [first + place for place in kept],
        [
            Rejected(first + place, None, False, f"items[{place}].{field}", description)
            for place, (field, description) in faults.items()
        ],
        first,
        first + count - 1,
    )


def to_heartbeat(message: pb.Heartbeat, *, latest: int) -> tuple[int, int]:
    """A heartbeat's offset and time. Raises InvalidArgument."""
    if not 1 <= message.offset <= _LAST_OFFSET:
        raise invalid_field("heartbeat.offset", "must be from 1 to 2^62")
    time = _microseconds(message.event_time) if message.HasField("event_time") else 0
    if fault := _time_fault(time, latest):
        raise invalid_field("heartbeat.event_time", fault)
    return message.offset, time


def _strategies(numbers: Iterable[int]) -> tuple[Strategy, ...]:
    strategies = []
    for place, number in enumerate(numbers):
        if number not in _NAMES:
            raise invalid_field(f"{_OPEN}.strategies[{place}]", f"must be one of {', '.join(_NAMES.values())}")
        if number in strategies:
            raise invalid_field(f"{_OPEN}.strategies[{place}]", "must be another than those before")
        strategies.append(Strategy(number))
    return tuple(strategies)


def _window(message: pb.AggregationConfig) -> Window | None:
    match message.WhichOneof("window"):
        case "tumbling":
            return Tumbling(_length(message.tumbling, "tumbling", "size"))
        case "hopping":
            size, hop = _length(message.hopping, "hopping", "size"), _length(message.hopping, "hopping", "hop")
            if hop > size:
                raise invalid_field(f"{_OPEN}.hopping.hop", "must be at most the window's size")
            if size > _MOST_WINDOWS * hop:
                raise invalid_field(f"{_OPEN}.hopping.hop", f"must be at least 1/{_MOST_WINDOWS} of the window's size")
            return Hopping(size, hop)
        case "session_window":
            return Gap(_length(message.session_window, "session_window", "gap"))
        case _:
            return None


def _length(window: Any, kind: str, name: str) -> int:
    length = _microseconds(getattr(window, name))
    if not _SHORTEST <= length <= _LONGEST:
        raise invalid_field(f"{_OPEN}.{kind}.{name}", "must be from 1 ms to 31 days")
    return length


def _span(message: pb.AggregationConfig, name: str, default: int, most: int = _LONGEST) -> int:
    if not message.HasField(name):  # type: ignore[arg-type]  # one of the message's durations
        return default
    span = _microseconds(getattr(message, name))
    if not 0 <= span <= most:
        longest = f"{most // SECOND} s" if most < _DAY else f"{most // _DAY} days"
        raise invalid_field(f"{_OPEN}.{name}", f"must be from 0 to {longest}")
    return span


def _retention(message: pb.AggregationConfig, window: Window, default: int) -> int:
    step = {Tumbling: "size", Hopping: "hop", Gap: "gap"}[type(window)]
    longest = _RETAINED_WINDOWS * int(getattr(window, step))
    retention = _span(message, "retention", min(default, longest))
    if retention > longest:
        raise invalid_field(f"{_OPEN}.retention", f"must be at most {_RETAINED_WINDOWS} windows")
    return retention


def _size_bounds(bounds: Sequence[int]) -> tuple[int, ...]:
    if len(bounds) > _MOST_BOUNDS:
        raise invalid_field(f"{_OPEN}.size_bounds", f"must be at most {_MOST_BOUNDS}")
    for place, bound in enumerate(bounds):
        if bound <= (bounds[place - 1] if place else 0):
            raise invalid_field(f"{_OPEN}.size_bounds[{place}]", "must be above 0 and above the one before")
    return tuple(bounds)


def _exact(message: pb.AggregationConfig, defaults: Config) -> int:
    if not message.HasField("exact_distinct"):
        return defaults.exact_distinct
    if not 0 <= message.exact_distinct <= _MOST_EXACT:
        raise invalid_field(f"{_OPEN}.exact_distinct", f"must be from 0 to {_MOST_EXACT}")
    return message.exact_distinct


def only(columns: Columns, kept: Sequence[int]) -> Columns:
    """The items at these places."""
    return Columns._make([column[place] for place in kept] for column in columns)


def _microseconds(message: Duration | Timestamp) -> int:
    return message.seconds * SECOND + message.nanos // 1000


def _columns_of_items(items: Sequence[pb.Item]) -> Columns:
    return Columns(
        [_microseconds(item.event_time) for item in items],
        [item.size_bytes for item in items],
        [item.namespace for item in items],
        [item.file_type for item in items],
        [item.workflow_id for item in items],
        [item.workflow_state for item in items],
        [item.payload_json for item in items],
    )


def _columns(message: pb.ItemColumns) -> Columns:
    count = len(message.event_times_us)
    texts = list(message.texts)

    def column(name: str) -> list[str]:
        places: Sequence[int] = getattr(message, name)
        if not places:
            return [""] * count
        if len(places) != count:
            raise invalid_field(f"columns.{name}", f"must be as long as event_times_us, {count}, or left out")
        try:
            return [texts[place] for place in places]
        except IndexError:
            raise invalid_field(
                f"columns.{name}", f"must be places of texts, of which there are {len(texts)}"
            ) from None

    if len(message.sizes_bytes) not in (0, count):
        raise invalid_field("columns.sizes_bytes", f"must be as long as event_times_us, {count}, or left out")
    return Columns(
        list(message.event_times_us),
        list(message.sizes_bytes) or [0] * count,
        column("namespaces"),
        column("file_types"),
        column("workflow_ids"),
        column("workflow_states"),
        column("payloads_json"),
    )


def _faults(columns: Columns, latest: int) -> dict[int, tuple[str, str]]:
    """Place to field and fault of the items that are malformed."""
    faults: dict[int, tuple[str, str]] = {}

    def look(name: str, column: Sequence[Any], fault_of: Callable[[Any], str]) -> None:
        for place, value in enumerate(column):
            if place not in faults and (fault := fault_of(value)):
                faults[place] = (name, fault)

    # Of each column at once, where that can say that all is well: an item costs some microseconds in all.
    if min(columns.times) < 1 or max(columns.times) > min(latest, _LAST_TIME):
        look("event_time", columns.times, lambda time: _time_fault(time, latest))
    if min(columns.sizes) < 0 or max(columns.sizes) > MAX_SIZE:
        look("size_bytes", columns.sizes, lambda size: "" if 0 <= size <= MAX_SIZE else "must be from 0 to 2^40")
    texts = (columns.namespaces, columns.file_types, columns.workflow_ids, columns.workflow_states)
    for (name, most), column in zip(_CHARACTERS.items(), texts, strict=True):
        distinct = set(column)
        if max(map(len, distinct)) > most or any("\0" in text for text in distinct):
            look(name, column, partial(_text_fault, most))
    if any(columns.payloads):
        look("payload_json", columns.payloads, _payload_fault)
    return faults


def _time_fault(time: int, latest: int) -> str:
    if time == 0:
        return "must be set"
    if time < 0:
        return "must not be before 1970"
    return "must not be so far in the future" if time > min(latest, _LAST_TIME) else ""


def _text_fault(most: int, text: str) -> str:
    if len(text) > most:
        return f"must be at most {most} characters"
    return "must not hold U+0000" if "\0" in text else ""


def _payload_fault(text: str) -> str:
    if len(text.encode()) > _PAYLOAD_BYTES:
        return f"must be at most {_PAYLOAD_BYTES} bytes"
    try:
        value = from_json(text or "{}", allow_inf_nan=False)
    except ValueError:
        return "must be JSON"
    return "" if isinstance(value, dict) else "must be a JSON object"


def first_frame() -> InvalidArgument:
    """The refusal of a stream that does not begin with its configuration."""
    return invalid_field("open", "must be the first message of the stream, and only that")
