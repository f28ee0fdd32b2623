"""Ids: names that never change, and UUIDv7 that only grow."""

from __future__ import annotations

import itertools
import uuid

from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.identity import BRIDGE, Uuid7Generator, op_id


def test_the_bridges_uuid_and_what_is_named_by_it_are_pinned() -> None:
    assert str(BRIDGE) == "0f3c6d1e-5b7a-5c29-9e44-6f6d6e696e65"
    assert str(op_id("build-17")) == "d796a07e-5e5d-5824-adf9-3b08172b4a45"


@given(st.text(st.characters(codec="utf-8")))
def test_an_op_id_is_uuid5_of_the_request_id(request_id: str) -> None:
    assert op_id(request_id) == uuid.uuid5(BRIDGE, request_id)


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
