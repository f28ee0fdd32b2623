"""Ids: names that never change, and UUIDv7 that only grow."""

from __future__ import annotations

import itertools
import uuid
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.identity import BRIDGE, Uuid7Generator, event_id, event_id_text, op_id, partition_of


def test_the_bridges_uuid_and_what_is_named_by_it_are_pinned() -> None:
    assert str(BRIDGE) == "0f3c6d1e-5b7a-5c29-9e44-6f6d6e696e65"
    assert str(op_id("build-17")) == "d796a07e-5e5d-5824-adf9-3b08172b4a45"


@given(st.text(st.characters(codec="utf-8")))
def test_an_op_id_is_uuid5_of_the_request_id(request_id: str) -> None:
    assert op_id(request_id) == uuid.uuid5(BRIDGE, request_id)


@pytest.mark.parametrize(
    ("action_id", "index", "event"),
    [
        pytest.param(BRIDGE, 0, "4bc3dd9a-ae1c-58a2-a22e-d2f62be61b2b", id="the first of an action"),
        pytest.param(BRIDGE, 10, "975f4186-a2b5-5e18-a960-dfe92635abb0", id="an index of two digits"),
        pytest.param(uuid.UUID(int=0), 0, "b6c54489-38a0-5f50-a60a-fd8d76219cae", id="the least id"),
        pytest.param(uuid.UUID(int=2**128 - 1), 499, "55d367b6-067a-5082-a58d-aa5f3366aed7", id="the greatest id"),
    ],
)
def test_an_events_id_is_pinned(action_id: uuid.UUID, index: int, event: str) -> None:
    # Written down, because consumers drop what they have seen by it.
    assert str(event_id(action_id, index)) == event


@settings(max_examples=50)
@given(st.uuids(), st.integers(0, 500))
def test_an_event_id_is_uuid5_of_the_actions_id_and_the_index(action_id: uuid.UUID, index: int) -> None:
    made = event_id(action_id, index)
    assert made == uuid.uuid5(action_id, str(index))
    assert (made.version, made.variant) == (5, uuid.RFC_4122)


@pytest.mark.parametrize(
    ("key", "partition_count", "partition"),
    [
        pytest.param("workflow/0", 1, 0, id="the only one"),
        pytest.param("workflow/0", 7, 5, id="a number that is no power of 2"),
        pytest.param("workflow/0", 1024, 917, id="the most that a log may have"),
        pytest.param("workflow/é𝄞", 16, 7, id="characters of more than one byte"),
        pytest.param("", 16, 6, id="no characters"),
    ],
)
def test_a_keys_partition_is_pinned(key: str, partition_count: int, partition: int) -> None:
    # Written down, because a database keeps its keys where they are.
    assert partition_of(key, partition_count) == partition


@settings(max_examples=50)
@given(st.text(st.characters(codec="utf-8"), max_size=40), st.integers(1, 32_767))
def test_a_partition_is_one_of_those_there_are_and_the_same_each_time(key: str, partition_count: int) -> None:
    partition = partition_of(key, partition_count)
    assert 0 <= partition < partition_count
    assert partition_of(key, partition_count) == partition


@pytest.mark.parametrize("partition_count", [1, 3, 16, 1000])
def test_keys_that_differ_in_a_number_alone_spread_over_all_partitions(partition_count: int) -> None:
    each = 64
    held = Counter(partition_of(f"workflow/{number}", partition_count) for number in range(each * partition_count))
    assert len(held) == partition_count
    # Six standard deviations of a fair draw: a hash that favours a partition goes further.
    assert max(abs(count - each) for count in held.values()) <= 6 * each**0.5


@settings(max_examples=20)
@given(st.lists(st.integers(0, 2**47), min_size=1, max_size=50))
def test_ids_grow_whatever_the_clock_does(times: list[int]) -> None:
    clock = itertools.chain(times, itertools.repeat(times[-1]))
    new_id = Uuid7Generator(lambda: next(clock), bytes)
    ids = [new_id() for _ in range(len(times) + 5000)]
    assert ids == sorted(set(ids))


def test_an_id_is_version_7_and_holds_the_time_and_the_entropy() -> None:
    made = Uuid7Generator(lambda: 0x0123456789AB, lambda count: b"\xff" * count)()
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert str(made) == "01234567-89ab-7000-bfff-ffffffffffff"


@given(st.uuids(), st.integers(0, 1000))
def test_an_events_id_as_text_is_its_id(action_id: uuid.UUID, index: int) -> None:
    assert event_id_text(action_id, index) == str(event_id(action_id, index))
