"""Actions at the boundary, their fingerprints, the registry of reducers, and the waits after conflicts."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from examples.counter.counter_reducer import Counter
from omninode.bridge.store.v1 import store_pb2
from services.reducer.domain import (
    Current,
    Reducers,
    UnknownReducer,
    UnknownVersion,
    canonical,
    decorrelated_jitter,
)
from tests.reducer.node import stamping_workflow
from tests.reducer.workflow import DIGEST, action

MIB = 1024 * 1024
GUARD = {"lease": "orchestrator/runner/3", "epoch": 0, "condition": 1}
BLOB = {"digest": DIGEST, "content": b""}


@pytest.mark.parametrize(
    "fields",
    [
        {"key": f"{'c' * 63}/{'ä' * 440}"},
        {"key": "A-z_0.9/two words/and more"},
        {"action_id": "0197C0DE-0000-7000-8000-000000000000"},
        {"reducer": "r" * 255, "type": "Az0_.-" + "t" * 249},
        {"payload_json": ""},
        {"payload_json": " {} "},
        {"payload_json": '{"a":"' + "x" * (256 * 1024 - 8) + '"}'},
        {"payload_json": '{"a":"\\\\u0000"}'},
        {"payload_json": '{"a":1e308,"b":1e-999,"c":123456789012345678901234567890}'},
        {"payload_json": '{"a":' * 64 + "1" + "}" * 64},
        {"payload_json": json.dumps({"a": [[]] * 100})},
        {"guards": [GUARD] * 16},
        {"guards": [store_pb2.Guard(lease="a", epoch=2**62, condition=store_pb2.GUARD_CONDITION_NOT_HELD)]},
        {"blobs": [BLOB] * 16, "blob_refs": [DIGEST] * 100},
        {"blobs": [{"digest": DIGEST.upper(), "content": bytes(MIB)}]},
        {"effect_id": "e" * 512, "actor": "ä" * 255, "correlation_id": "c" * 128},
    ],
    ids=",".join,
)
def test_an_action_within_its_bounds_is_taken(fields: dict[str, Any]) -> None:
    action("started", **fields)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"key": ""}, "key"),
        ({"key": "workflow"}, "key"),
        ({"key": "workflow/"}, "key"),
        ({"key": "/build"}, "key"),
        ({"key": "work flow/build"}, "key"),
        ({"key": f"{'c' * 64}/x"}, "key"),
        ({"key": f"c/{'x' * 441}"}, "key"),
        ({"key": "workflow/a\nb"}, "key"),
        ({"key": "workflow/a\0"}, "key"),
        ({"key": "workflow/a\u2028"}, "key"),
        ({"action_id": "17"}, "action_id"),
        ({"action_id": ""}, "action_id"),
        ({"reducer": "stamping workflow"}, "reducer"),
        ({"reducer": ""}, "reducer"),
        ({"type": "t" * 256}, "type"),
        ({"type": "started\n"}, "type"),
        ({"payload_json": "{"}, "payload_json"),
        ({"payload_json": "[]"}, "payload_json"),
        ({"payload_json": "null"}, "payload_json"),
        ({"payload_json": '{"a":NaN}'}, "payload_json"),
        ({"payload_json": '{"a":-Infinity}'}, "payload_json"),
        ({"payload_json": '{"a":"\0"}'}, "payload_json"),
        ({"payload_json": '{"a":"\\u0000"}'}, "payload_json"),
        ({"payload_json": '{"a":[{"\\u0000":1}]}'}, "payload_json"),
        ({"payload_json": '{"a":"\\ud800"}'}, "payload_json"),
        ({"payload_json": '{"a":' * 65 + "1" + "}" * 65}, "payload_json"),
        ({"payload_json": '{"a":' + "[" * 5000 + "]" * 5000 + "}"}, "payload_json"),
        ({"payload_json": '{"a":"' + "ä" * (128 * 1024) + '"}'}, "payload_json"),
        ({"payload_json": "{} {}"}, "payload_json"),
        ({"guards": [GUARD] * 17}, "guards"),
        ({"guards": [GUARD, {**GUARD, "lease": "a//b"}]}, "guards.1.lease"),
        ({"guards": [{**GUARD, "lease": "l" * 256}]}, "guards.0.lease"),
        ({"guards": [{**GUARD, "epoch": -1}]}, "guards.0.epoch"),
        ({"guards": [{**GUARD, "condition": 0}]}, "guards.0.condition"),
        ({"guards": [{**GUARD, "condition": 3}]}, "guards.0.condition"),
        ({"blobs": [BLOB] * 17}, "blobs"),
        ({"blobs": [{**BLOB, "digest": "a" * 63}]}, "blobs.0.digest"),
        ({"blobs": [{**BLOB, "content": bytes(MIB + 1)}]}, "blobs.0.content"),
        ({"blobs": [{**BLOB, "content": bytes(MIB)}] * 13}, "blobs"),
        ({"blob_refs": [DIGEST] * 101}, "blob_refs"),
        ({"blob_refs": ["g" * 64]}, "blob_refs.0"),
        ({"effect_id": "e" * 513}, "effect_id"),
        ({"effect_id": "\0"}, "effect_id"),
        ({"actor": "ä" * 256}, "actor"),
        ({"correlation_id": "c" * 129}, "correlation_id"),
    ],
)
def test_an_action_beyond_its_bounds_is_refused_by_name(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        action("started", **fields)
    assert [".".join(map(str, error["loc"])) for error in refusal.value.errors()] == [place]


def test_the_fingerprint_is_blake3_of_key_reducer_type_and_payload_as_they_were_given() -> None:
    expected = blake3(b'workflow/a\0stamping_workflow\0started\0 {"b": 1}').digest()
    assert action("started", ' {"b": 1}', key="workflow/a").fingerprint() == expected


def test_an_empty_payload_is_an_empty_object() -> None:
    empty, braces = action("started", ""), action("started", "{}")
    assert empty.payload_json == braces.payload_json
    assert empty.fingerprint() == braces.fingerprint()


NAMES = st.text("abc._-", min_size=1, max_size=4)


@given(
    one=st.tuples(NAMES, NAMES, NAMES, st.sampled_from(["{}", '{"a":1}', '{"a": 1}'])),
    two=st.tuples(NAMES, NAMES, NAMES, st.sampled_from(["{}", '{"a":1}', '{"a": 1}'])),
)
def test_fingerprints_are_equal_where_key_reducer_type_and_payload_are(one: Any, two: Any) -> None:
    def fingerprint(parts: Any, **others: Any) -> bytes:
        key, reducer, type_, payload = parts
        return action(type_, payload, key=f"workflow/{key}", reducer=reducer, **others).fingerprint()

    others = {"correlation_id": "other", "actor": "other", "guards": [GUARD], "blobs": [BLOB], "effect_id": "e"}
    assert fingerprint(one, **others) == fingerprint(one)
    assert (fingerprint(one) == fingerprint(two)) == (one == two)


def test_an_unknown_reducer_is_refused_with_those_that_are_known() -> None:
    reducers = Reducers([stamping_workflow()])
    assert reducers.get("stamping_workflow").name == "stamping_workflow"
    with pytest.raises(UnknownReducer) as refusal:
        reducers.get("stampings")
    assert refusal.value.metadata == {"field": "reducer", "reducer": "stampings", "known": "stamping_workflow"}
    assert [violation.field for violation in refusal.value.violations] == ["reducer"]


def test_the_newest_of_a_name_folds_what_no_version_made_and_each_version_what_it_made() -> None:
    one, two = Counter(), Counter()
    two.version = 2  # its own, and not its class'
    reducers = Reducers([two, stamping_workflow(), one])
    assert reducers.get("counter") is two
    made = [reducers.of("counter", Current(1, {}, 2, version)) for version in (0, 1, 2)]
    assert [reducer.version for reducer in made] == [2, 1, 2]
    assert sorted((reducer.name, reducer.version) for reducer in reducers) == [
        ("counter", 1),
        ("counter", 2),
        ("stamping_workflow", 1),
    ]
    with pytest.raises(UnknownVersion) as refusal:
        reducers.of("counter", Current(1, {}, 2, 3))
    assert refusal.value.metadata == {"reducer": "counter", "version": "3", "known": "1,2"}
    with pytest.raises(UnknownReducer):
        reducers.of("count", Current(1, {}, 2, 1))


TREE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=60)
@given(value=TREE)
def test_canonical_text_has_every_object_in_the_order_of_its_names(value: Any) -> None:
    expected = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert canonical(value, MIB, "a value") == expected


@given(draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20))
def test_waits_stay_between_their_bounds_and_grow_at_most_threefold(draws: list[float]) -> None:
    low, high, previous = 10.0, 250.0, 0.0
    for draw in draws:
        delay = decorrelated_jitter(previous, low, high, draw)
        assert low <= delay <= min(high, max(low, 3 * previous))
        previous = delay


def test_the_same_action_again_is_another_value_with_the_same_id() -> None:
    number = str(uuid.uuid4())
    assert action("started", action_id=number) == action("started", action_id=number.upper())
