"""State machines: what a subcontract must say, and what a fold of one does."""

from __future__ import annotations

import copy
import json
from datetime import UTC, timedelta, timezone, tzinfo
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis import contracts
from services.chassis.contracts import ContractError
from services.chassis.errors import InvalidArgument
from services.reducer import fsm
from services.reducer.domain import EventKind, IllegalTransition
from services.reducer.machine import Machine
from services.reducer.node import CONTRACT, machine_of
from tests.reducer.workflow import TIME, action

DOOR: dict[str, Any] = {
    "name": "door",
    "states": [
        {"name": "OPEN", "entry": [{"kind": "EVENT", "event_type": "OPENED", "topic": "doors", "payload": {}}]},
        {"name": "CLOSED"},
        {"name": "BRICKED_UP", "final": True},
    ],
    "transitions": [
        {
            "type": "built",
            "to": "OPEN",
            "payload": {"owner.name": "string", "owner.tags": "object"},
            "assign": {
                "owner": {"name": "$payload.owner.name", "tags": "$payload.owner.tags"},
                "built_at": "$occur_time",
                "height": 2,
            },
        },
        {
            "type": "shut",
            "from": ["OPEN"],
            "to": "CLOSED",
            "payload": {"by": "string"},
            "when": {"by": ["hand", "wind"]},
        },
        {
            "type": "shut",
            "from": ["OPEN"],
            "to": "BRICKED_UP",
            "payload": {"by": "string"},
            "when": {"by": ["mason"]},
            "assign": {"owner.last": "$payload.by"},
        },
        {
            "type": "opened",
            "from": ["CLOSED"],
            "to": "OPEN",
            "emit": [
                {
                    "kind": "INTENT",
                    "event_type": "oil",
                    "topic": "chores",
                    "payload": {
                        "was": "$previous.state",
                        "is": "$state.state",
                        "absent": "$state.owner.last",
                        "at": "$occur_time",
                    },
                }
            ],
        },
        {
            "type": "knocked",
            "from": ["OPEN", "CLOSED"],
            "to": "OPEN",
            "payload": {"who": "string", "count": "integer"},
            "append": [
                {"to": "guests", "item": {"who": "$payload.who", "count": "$payload.count"}, "unique": "who"},
                {"to": "knocks", "item": {"who": "$payload.who"}},
            ],
        },
    ],
}
MANAGEMENT: dict[str, Any] = {
    "schema_version": 3,
    "projection": {"tag": "state", "namespace": "owner.name", "indices": {"owner": "owner.name", "last": "owner.last"}},
}
BUILT = {"owner": {"name": "Ada", "tags": {"b": 1, "a": [None, 1.5]}}}


def door(**changes: Any) -> Machine:
    return fsm.read({**DOOR, **changes}, MANAGEMENT)


def walked(*steps: tuple[str, dict[str, Any]]) -> Any:
    machine, fold = door(), None
    for type_, payload in steps:
        fold = machine.fold(fold.state if fold else None, action(type_, payload))
    return fold


def test_a_fold_sets_fields_from_the_payload_the_time_and_constants() -> None:
    fold = walked(("built", BUILT))
    assert json.loads(fold.state_json) == {
        "state": "OPEN",
        "owner": BUILT["owner"],
        "built_at": "2026-01-02T03:04:05.678901Z",
        "height": 2,
    }
    assert json.loads(fold.state_json) == fold.state
    assert not fold.final


def test_a_state_is_canonical_text() -> None:
    text = walked(("built", {"owner": {"tags": {"b": "ä", "a": 1.0}, "name": "A\n"}})).state_json
    assert text == (
        '{"built_at":"2026-01-02T03:04:05.678901Z","height":2,'
        '"owner":{"name":"A\\n","tags":{"a":1.0,"b":"ä"}},"state":"OPEN"}'
    )


def test_a_guard_chooses_among_the_transitions_of_a_type() -> None:
    assert walked(("built", BUILT), ("shut", {"by": "wind"})).state["state"] == "CLOSED"
    bricked = walked(("built", BUILT), ("shut", {"by": "mason"}))
    assert (bricked.state["state"], bricked.final) == ("BRICKED_UP", True)


def test_a_guard_that_no_transition_meets_names_the_field_and_its_texts() -> None:
    with pytest.raises(InvalidArgument) as refusal:
        walked(("built", BUILT), ("shut", {"by": "magic"}))
    (violation,) = refusal.value.violations
    assert (violation.field, violation.description) == ("payload_json.by", "must be one of hand, wind, mason")


def test_a_nested_field_is_set_and_the_rest_of_its_object_stays() -> None:
    before = walked(("built", BUILT))
    kept = copy.deepcopy(before.state)
    after = door().fold(before.state, action("shut", {"by": "mason"}))
    assert after.state["owner"] == {**BUILT["owner"], "last": "mason"}
    assert before.state == kept, "a state that others may hold was changed in place"


def test_entering_a_state_emits_and_staying_there_does_not() -> None:
    assert [event.event_type for event in walked(("built", BUILT)).events] == ["OPENED"]
    knocked = walked(("built", BUILT), ("knocked", {"who": "Bob", "count": 1}))
    assert knocked.events == ()
    opened = walked(("built", BUILT), ("shut", {"by": "hand"}), ("opened", {}))
    assert [event.event_type for event in opened.events] == ["oil", "OPENED"]


def test_an_intent_tells_of_the_states_before_and_after_and_leaves_out_what_is_not_there() -> None:
    intent, _ = walked(("built", BUILT), ("shut", {"by": "hand"}), ("opened", {})).events
    assert (intent.kind, intent.topic) == (EventKind.INTENT, "chores")
    assert json.loads(intent.payload_json) == {"was": "CLOSED", "is": "OPEN", "at": "2026-01-02T03:04:05.678901Z"}


def test_an_item_is_appended_and_a_unique_one_replaces_its_like_in_its_place() -> None:
    knocks = [("knocked", {"who": who, "count": count}) for who, count in (("Bob", 1), ("Eve", 1), ("Bob", 2))]
    state = walked(("built", BUILT), *knocks).state
    assert state["guests"] == [{"who": "Bob", "count": 2}, {"who": "Eve", "count": 1}]
    assert [knock["who"] for knock in state["knocks"]] == ["Bob", "Eve", "Bob"]


def test_the_projection_holds_the_fields_that_the_paths_find() -> None:
    projection = walked(("built", BUILT)).projection
    assert (projection.tag, projection.namespace, projection.indices) == ("OPEN", "Ada", {"owner": "Ada"})


@pytest.mark.parametrize("name", ["ä" * 128, "x" * 256], ids=["in bytes", "in characters"])
def test_text_that_is_too_long_to_be_looked_up_by_is_left_out_of_the_projection(name: str) -> None:
    projection = walked(("built", {"owner": {"name": name, "tags": {}}})).projection
    assert (projection.namespace, projection.indices) == ("", {})


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "owner.name"),
        ({"owner": "Ada"}, "owner.name"),
        ({"owner": {"name": 1, "tags": {}}}, "owner.name"),
        ({"owner": {"name": None, "tags": {}}}, "owner.name"),
        ({"owner": {"name": "Ada", "tags": []}}, "owner.tags"),
    ],
    ids=["missing", "its object is text", "a number", "null", "an array for an object"],
)
def test_a_payload_without_what_the_transition_needs_is_refused_with_the_field(payload: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        walked(("built", payload))
    assert [violation.field for violation in refusal.value.violations] == [f"payload_json.{field}"]


@pytest.mark.parametrize("count", [True, 1.5, "1"], ids=["a boolean", "a fraction", "text"])
def test_an_integer_is_a_whole_number(count: object) -> None:
    with pytest.raises(InvalidArgument, match="must be of type integer"):
        walked(("built", BUILT), ("knocked", {"who": "Bob", "count": count}))


@pytest.mark.parametrize(
    ("state", "type_", "expected"),
    [
        (None, "shut", {"state": "", "allowed": "built"}),
        ({"state": "OPEN"}, "built", {"state": "OPEN", "allowed": "shut,knocked"}),
        ({"state": "BRICKED_UP"}, "opened", {"state": "BRICKED_UP", "allowed": ""}),
        ({"state": "OPEN"}, "unheard-of", {"state": "OPEN", "allowed": "shut,knocked"}),
        ({"other": "OPEN"}, "built", {"state": "", "allowed": ""}),
        ({"state": ["OPEN"]}, "built", {"state": "", "allowed": ""}),
        ({"state": "AJAR"}, "shut", {"state": "AJAR", "allowed": ""}),
    ],
    ids=["no key", "made twice", "final", "unknown type", "not a machine's", "no name", "another machine's"],
)
def test_a_transition_that_is_not_there_is_refused_with_those_that_are(
    state: Any, type_: str, expected: dict[str, str]
) -> None:
    with pytest.raises(IllegalTransition) as refusal:
        door().fold(state, action(type_, {}))
    assert refusal.value.metadata == {"key": "workflow/build-17", "type": type_, **expected}


def test_a_state_that_would_be_too_large_is_refused() -> None:
    machine = door()
    state = machine.fold(None, action("built", BUILT)).state
    with pytest.raises(InvalidArgument, match="makes a state of more than 1048576 bytes"):
        assert machine.fold({**state, "other": "x" * 1024 * 1024}, action("shut", {"by": "hand"})).state_json


def test_an_event_that_would_be_too_large_is_refused() -> None:
    payload = {"text": "$payload.text"}
    emission = {"kind": "EVENT", "event_type": "SAID", "topic": "doors", "payload": {"twice": payload, **payload}}
    transition = {
        "type": "built",
        "to": "OPEN",
        "payload": {"text": "string"},
        "emit": [emission],
        "assign": {"owner": {}},
    }
    machine = door(transitions=[transition, *DOOR["transitions"][1:]])
    with pytest.raises(InvalidArgument, match="makes an event SAID of more than 262144 bytes"):
        machine.fold(None, action("built", {"text": "x" * 200_000}))


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400 + ".5"])
def test_a_number_that_no_double_holds_is_refused_where_a_state_would_hold_it(number: str) -> None:
    payload = f'{{"owner": {{"name": "Ada", "tags": {{"weight": {number}}}}}, "unused": {number}}}'
    with pytest.raises(InvalidArgument, match="beyond the range of a double"):
        assert door().fold(None, action("built", payload)).state_json


def test_only_a_transition_without_states_opens_a_key() -> None:
    assert door().opens("built")
    assert not door().opens("shut")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40)
@given(tags=st.dictionaries(st.text(), JSON, max_size=4))
def test_equal_inputs_give_equal_bytes_in_whatever_order_they_were_written(tags: dict[str, Any]) -> None:
    def without_nul(value: Any) -> Any:
        return json.loads(json.dumps(value).replace("\\u0000", ""))

    tags = without_nul(tags)
    turned = dict(reversed(tags.items()))
    identity = {"action_id": "0197c0de-0000-7000-8000-000000000000"}
    one = action("built", json.dumps({"owner": {"name": "Ada", "tags": tags}}), **identity)
    two = action("built", json.dumps({"owner": {"tags": turned, "name": "Ada"}}, indent=2), **identity)
    first, second = door().fold(None, one), door().fold(None, two)
    assert first.state_json == second.state_json
    assert first == second


ABSENT: Any = object()
"""Takes a field away."""


def edited(document: dict[str, Any], path: str, value: Any) -> Any:
    """The document with one place changed; the place after a list's last is a new one."""
    result: Any = copy.deepcopy(document)
    target, (*way, last) = result, path.split("/")
    for name in way:
        target = target[int(name)] if isinstance(target, list) else target[name]
    if isinstance(target, list):
        target[int(last) : int(last) + 1] = [] if value is ABSENT else [value]
    elif value is ABSENT:
        del target[last]
    else:
        target[last] = value
    return result


OPENED, BUILDING = DOOR["transitions"][3], DOOR["transitions"][0]


@pytest.mark.parametrize(
    ("path", "value", "place", "reason"),
    [
        ("name", ABSENT, "name", "Field required"),
        ("speed", 1, "speed", "Extra inputs"),
        ("states/3", {"name": "OPEN"}, "states/3/name", "two states OPEN"),
        ("states/3", {"name": "AJAR", "final": True}, "states/3/name", "no way leads to the state AJAR"),
        ("states/2/final", False, "states/2/name", "is not final, and nothing leads on"),
        ("states/0/entry/0/payload/x", "$payload.by", "", "no field by"),
        ("transitions/0", ABSENT, "states/0/name", "no way leads to the state OPEN"),
        ("transitions/0/to", "AJAR", "", "no state AJAR"),
        ("transitions/4/from", ["OPEN", "AJAR"], "transitions/4/from/1", "no state AJAR"),
        ("transitions/3/from", ["BRICKED_UP"], "transitions/3/from/0", "final: nothing leads on"),
        ("transitions/3/from", [], "", "at least 1 item"),
        ("transitions/5", OPENED, "", "takes every opened from CLOSED"),
        ("transitions/5", BUILDING, "", "takes every built from a key that does not exist"),
        ("transitions/2/when/by", ["wind"], "transitions/2", "takes every shut from OPEN"),
        ("transitions/1/when/colour", ["red"], "", "no field colour"),
        ("transitions/0/payload/x", "date", "", "Input should be"),
        ("transitions/0/payload/a..b", "string", "", "pattern"),
        ("transitions/0/assign/x", "$payload.owner.age", "", "no field owner.age"),
        ("transitions/0/assign/x", "$payload", "", "none of $occur_time, $payload.<path>"),
        ("transitions/0/assign/x", "$occur_time.day", "", "none of"),
        ("transitions/0/assign/x", "$state.owner", "", "none of"),
        ("transitions/0/assign/x", {"y": "$now"}, "transitions/0/assign/x/y", "$now is none of"),
        ("transitions/0/assign/state", "OPEN", "", "the machine's own"),
        ("transitions/4/append/1/to", "state.x", "", "the machine's own"),
        ("transitions/4/append/0/item/x", "$payload.why", "", "no field why"),
        ("transitions/4/append/0/item/x", "$payload.who.name", "", "no field who.name"),
        ("transitions/4/append/0/item/x", "$state.height", "", "none of $occur_time, $payload.<path>"),
        ("transitions/4/append/0/item/x", "$previous.height", "", "none of $occur_time, $payload.<path>"),
        ("transitions/3/emit/0/payload/x", "$state.colour", "", "the field colour"),
        ("transitions/3/emit/0/kind", "HINT", "", "Input should be"),
        ("transitions/3/emit/0/topic", "a b", "", "pattern"),
    ],
)
def test_a_subcontract_that_is_no_machine_is_refused_with_its_place(
    path: str, value: Any, place: str, reason: str
) -> None:
    with pytest.raises(fsm.MachineError) as refusal:
        fsm.read(edited(DOOR, path, value), MANAGEMENT)
    assert "/".join(map(str, refusal.value.location)).startswith(f"fsm/{place or path}")
    assert reason in refusal.value.reason


def test_a_transition_that_an_earlier_one_leaves_something_to_is_taken_for_that() -> None:
    machine = fsm.read(edited(DOOR, "transitions/2/when/by", ["wind", "mason"]), MANAGEMENT)
    opened = machine.fold(None, action("built", BUILT)).state
    shut = {by: machine.fold(opened, action("shut", {"by": by})).state["state"] for by in ("hand", "wind", "mason")}
    assert shut == {"hand": "CLOSED", "wind": "CLOSED", "mason": "BRICKED_UP"}


LIFT: dict[str, Any] = {
    "name": "lift",
    "states": [{"name": "HERE"}, {"name": "UP"}, {"name": "DOWN"}, {"name": "STUCK", "final": True}],
    "transitions": [
        {"type": "called", "to": "HERE", "payload": {"at": "string"}, "assign": {"owner.name": "$payload.at"}},
        *(
            {"type": "sent", "from": ["HERE"], "to": to, "payload": {"way": "object"}, "when": {"way.to": values}}
            for to, values in (("UP", [1, True, "up"]), ("DOWN", [-0.5, False, None]))
        ),
        {"type": "stopped", "from": ["UP", "DOWN"], "to": "STUCK"},
    ],
}
LIFT_MANAGEMENT = {"schema_version": 1, "projection": {"tag": "state", "namespace": "owner.name", "indices": {}}}


@pytest.mark.parametrize(
    ("value", "state"),
    [
        ("up", "UP"), (1, "UP"), (1.0, "UP"), (True, "UP"), (-0.5, "DOWN"), (False, "DOWN"), (None, "DOWN"),
    ],
)  # fmt: skip
def test_a_guard_compares_values_as_json_does(value: Any, state: str) -> None:
    lift = fsm.read(LIFT, LIFT_MANAGEMENT)
    here = lift.fold(None, action("called", {"at": "x"})).state
    assert lift.fold(here, action("sent", {"way": {"to": value}})).state["state"] == state


@pytest.mark.parametrize("value", [0, -0.0, "1", "true", "null", [1], {}, 2, "_MISSING"], ids=repr)
def test_a_guard_takes_no_value_for_another_and_names_those_that_it_takes(value: Any) -> None:
    lift = fsm.read(LIFT, LIFT_MANAGEMENT)
    here = lift.fold(None, action("called", {"at": "x"})).state
    way = {} if value == "_MISSING" else {"to": value}
    with pytest.raises(InvalidArgument) as refusal:
        lift.fold(here, action("sent", {"way": way}))
    (violation,) = refusal.value.violations
    assert violation.field == "payload_json.way.to"
    assert violation.description == "must be one of 1, true, up, -0.5, false, null"


def test_what_a_transition_emits_comes_between_the_exit_of_its_state_and_the_entry_of_the_next() -> None:
    def told(event_type: str) -> dict[str, Any]:
        payload = {"was": "$previous.state", "is": "$state.state"}
        return {"kind": "INTENT", "event_type": event_type, "topic": "doors", "payload": payload}

    states = [{**state, "exit": [told(f"LEFT_{state['name']}")]} for state in DOOR["states"] if not state.get("final")]
    machine = fsm.read({**DOOR, "states": [*states, DOOR["states"][2]]}, MANAGEMENT)
    built = machine.fold(None, action("built", BUILT))
    shut = machine.fold(built.state, action("shut", {"by": "hand"}))
    opened = machine.fold(shut.state, action("opened"))
    knocked = machine.fold(opened.state, action("knocked", {"who": "Ada", "count": 1}))
    assert [[event.event_type for event in fold.events] for fold in (built, shut, opened, knocked)] == [
        ["OPENED"],
        ["LEFT_OPEN"],
        ["LEFT_CLOSED", "oil", "OPENED"],
        [],
    ]
    assert json.loads(shut.events[0].payload_json) == {"was": "OPEN", "is": "CLOSED"}
    assert shut.events[0].kind is EventKind.INTENT


@pytest.mark.parametrize(
    ("path", "value", "place", "reason"),
    [
        ("states/2/exit", [DOOR["states"][0]["entry"][0]], "", "BRICKED_UP is final"),
        ("states/0/exit", [{"kind": "HINT"}], "states/0/exit/0/kind", "Input should be"),
        ("transitions/1/when/by", ["hand", 1], "transitions/1/when/by/1", "no string is ever 1"),
        ("transitions/1/when/by", [None], "transitions/1/when/by/0", "no string is ever None"),
        ("transitions/1/when/by", [float("nan")], "transitions/1/when/by/0", ""),
        ("transitions/1/when/by", [[1]], "transitions/1/when/by/0", ""),
        ("transitions/1/when/by", [], "", "at least 1"),
        ("transitions/4/when", {"count": [True]}, "transitions/4/when/count/0", "no integer is ever True"),
    ],
)
def test_a_guard_or_an_exit_that_cannot_be_is_refused_with_its_place(
    path: str, value: Any, place: str, reason: str
) -> None:
    with pytest.raises(fsm.MachineError) as refusal:
        fsm.read(edited(DOOR, path, value), MANAGEMENT)
    assert "/".join(map(str, refusal.value.location)).startswith(f"fsm/{place or path}")
    assert reason in refusal.value.reason


def test_one_is_not_true_also_where_a_transition_shadows_another() -> None:
    fsm.read(edited(LIFT, "transitions/2/when/way.to", [1.5, "down"]), LIFT_MANAGEMENT)
    with pytest.raises(fsm.MachineError, match="an earlier transition takes every sent from HERE"):
        fsm.read(edited(LIFT, "transitions/2/when/way.to", [1.0, "up"]), LIFT_MANAGEMENT)
    only_true = edited(LIFT, "transitions/1/when/way.to", [True])
    fsm.read(edited(only_true, "transitions/2/when/way.to", [1]), LIFT_MANAGEMENT)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("schema_version", 0, "greater than 0"),
        ("projection/tag", "colour", "field colour"),
        ("projection/indices/x", "y.z", "field y"),
    ],
)
def test_a_projection_shows_only_fields_that_a_state_can_have(path: str, value: Any, reason: str) -> None:
    with pytest.raises(fsm.MachineError) as refusal:
        fsm.read(DOOR, edited(MANAGEMENT, path, value))
    assert "/".join(map(str, refusal.value.location)) == f"state_management/{path}"
    assert reason in refusal.value.reason


def test_a_contract_that_is_no_machine_is_refused_with_its_file_and_line(tmp_path: Any) -> None:
    (tmp_path / "contract.yaml").write_text(CONTRACT.read_text())
    folder = tmp_path / "subcontracts"
    folder.mkdir()
    for file in CONTRACT.parent.joinpath("subcontracts").iterdir():
        (folder / file.name).write_text(file.read_text().replace("to: COMPLETED", "to: COMPLETE"))
    with pytest.raises(ContractError, match="there is no state COMPLETE") as refusal:
        machine_of(contracts.load(tmp_path / "contract.yaml"))
    place = refusal.value.place
    assert place.file.name == "stamping_workflow_fsm.yaml"
    assert place.file.read_text().splitlines()[place.line - 1].strip() == "to: COMPLETE"


def test_a_contract_without_a_machine_is_refused(tmp_path: Any) -> None:
    head = "name: reducer\nnode_type: REDUCER\ncontract_version: {major: 0, minor: 1, patch: 0}\ndescription: None.\n"
    (tmp_path / "contract.yaml").write_text(head)
    with pytest.raises(ContractError, match="fsm: must be there"):
        machine_of(contracts.load(tmp_path / "contract.yaml"))


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(0), "Z"), timezone(timedelta(hours=-5))], ids=str)
def test_the_time_is_written_in_utc_with_microseconds(zone: tzinfo) -> None:
    time = TIME.replace(microsecond=0).astimezone(zone)
    state = door().fold(None, action("built", BUILT, occur_time=time)).state
    assert state["built_at"] == "2026-01-02T03:04:05.000000Z"
