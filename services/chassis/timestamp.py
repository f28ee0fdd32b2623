"""A moment as google.protobuf.Timestamp, and back. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def fill(message: Timestamp, time: datetime) -> None:
    """Sets the message to `time`, which has a time zone; to the microsecond."""
    # The message's own FromDatetime takes ten times as long.
    since = time - _EPOCH
    message.seconds = since.days * 86400 + since.seconds
    message.nanos = since.microseconds * 1000


def to_timestamp(time: datetime) -> Timestamp:
    """A message of `time`, which has a time zone; to the microsecond."""
    message = Timestamp()
    fill(message, time)
    return message


def to_time(message: Timestamp) -> datetime:
    """The moment in UTC, to the microsecond. Raises ValueError, which says what it must be."""
    nanos = message.nanos
    try:
        # As its own ToDatetime, in less than half the time, once in each node for every action.
        if 0 <= nanos < 1_000_000_000:
            return _EPOCH + timedelta(0, message.seconds, nanos // 1000)
    except OverflowError:
        pass
    raise ValueError("must be a time between the years 1 and 9999")
