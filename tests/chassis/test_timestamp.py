"""Moments and google.protobuf.Timestamp: what the message's own conversion says, both ways."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.timestamp import to_time, to_timestamp

moments = st.datetimes(
    min_value=datetime(1, 1, 2),  # noqa: DTZ001 (the strategy adds the zone)
    max_value=datetime(9999, 12, 30),  # noqa: DTZ001 (the strategy adds the zone)
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=-11)), timezone(timedelta(hours=5, minutes=45))]),
)


@given(moments)
def test_a_moment_becomes_the_message_that_protobuf_makes_of_it_and_comes_back(moment: datetime) -> None:
    expected = Timestamp()
    expected.FromDatetime(moment)
    assert to_timestamp(moment) == expected
    assert to_time(to_timestamp(moment)) == moment


@pytest.mark.parametrize(
    "message",
    [Timestamp(seconds=2**62), Timestamp(seconds=-(2**62)), Timestamp(nanos=-1), Timestamp(nanos=2**31 - 1)],
    ids=["too late", "too early", "negative nanoseconds", "too many nanoseconds"],
)
def test_a_message_that_is_no_moment_is_refused_in_words(message: Timestamp) -> None:
    with pytest.raises(ValueError, match=r"^must be a time between the years 1 and 9999$"):
        to_time(message)
