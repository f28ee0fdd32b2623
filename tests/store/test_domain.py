"""The store's values: laws and borders that need no database."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from services.chassis.boundary import Digest, Key, LeaseName
from services.chassis.errors import BridgeError, InvalidArgument
from services.chassis.identity import partition_of
from services.store.domain import (
    Blob,
    BlobDigestMismatch,
    Commit,
    check_blobs,
    refuse_repeated_actions,
)
from services.store.message import to_commit
from tests.store.sample import action, commit

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
NAMES = "abcXYZ019_.-"


def accepts(kind: Any, value: str) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def holds_nul(value: object) -> bool:
    if isinstance(value, dict):
        return any(holds_nul(item) for pair in value.items() for item in pair)
    if isinstance(value, list):
        return any(holds_nul(item) for item in value)
    return isinstance(value, str) and "\0" in value


@given(
    st.dictionaries(st.text(alphabet="a\0\\u0", max_size=4), JSON | st.text(alphabet="\0\\u0", max_size=9), max_size=3)
)
@settings(max_examples=200)
def test_a_state_is_refused_if_and_only_if_it_holds_nul(value: dict[str, object]) -> None:
    # A lone surrogate is no text, and no protobuf string carries one.
    text = json.dumps(value, ensure_ascii=False).encode(errors="replace").decode()
    try:
        kept = to_commit(commit(state_json=text)).state_json
    except ValidationError:
        assert holds_nul(value)
    else:
        assert kept == text
        assert not holds_nul(value)


@given(st.text(max_size=40), st.integers(1, 1024))
@settings(max_examples=100)
def test_a_partition_is_the_first_8_bytes_of_blake3_modulo_their_number(key: str, count: int) -> None:
    assert partition_of(key, count) == int(blake3(key.encode()).hexdigest()[:16], 16) % count


def test_partitions_never_move() -> None:
    # Written down, because a database keeps its keys where they are.
    assert [partition_of(f"workflow/{number}", 16) for number in range(8)] == [5, 9, 8, 0, 13, 14, 10, 10]


@given(st.text(NAMES, min_size=1, max_size=63), st.text(NAMES + "/ ü", min_size=1, max_size=440))
@settings(max_examples=50)
def test_a_collection_and_an_id_make_a_key(collection: str, identity: str) -> None:
    assert accepts(Key, f"{collection}/{identity}")


@pytest.mark.parametrize(
    ("key", "good"),
    [
        pytest.param("c" * 63 + "/" + "i" * 440, True, id="the longest"),
        pytest.param("c/" + "𝄞" * 440, True, id="the longest in bytes"),
        pytest.param("c/" + "i" * 441, False, id="an id of 441"),
        pytest.param("c" * 64 + "/i", False, id="a collection of 64"),
        pytest.param("c/i/j", True, id="a slash in the id"),
        pytest.param("c//", True, id="a slash as the id"),
        pytest.param("c/", False, id="no id"),
        pytest.param("/i", False, id="no collection"),
        pytest.param("c", False, id="no slash"),
        pytest.param("ç/i", False, id="a collection that is no name"),
        pytest.param("c/\u2028", False, id="a line separator"),
        pytest.param("c/\ue000", False, id="a private character"),
        pytest.param("c/i\n", False, id="a newline at the end"),
    ],
)
def test_a_key_has_its_form(key: str, good: bool) -> None:
    assert accepts(Key, key) == good


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("a", True),
        ("orchestrator/runner/3", True),
        ("..", True),
        ("a" * 255, True),
        ("a" * 256, False),
        ("/a", False),
        ("a/", False),
        ("a//b", False),
        ("a b", False),
        ("a\n", False),
        ("", False),
    ],
)
def test_a_lease_name_has_its_form(name: str, good: bool) -> None:
    assert accepts(LeaseName, name) == good


@given(st.binary(max_size=64))
@settings(max_examples=30)
def test_a_digest_is_taken_in_either_case_and_kept_in_one(content: bytes) -> None:
    digest = blake3(content).hexdigest()
    kept: str = TypeAdapter(Digest).validate_python(digest.upper())
    assert kept == digest
    check_blobs([Blob(digest=digest.upper(), content=content)])
    with pytest.raises(BlobDigestMismatch):
        check_blobs([Blob(digest=digest, content=content + b"x")])


def test_a_commit_does_not_release_what_it_names() -> None:
    carried, referred, released = (blake3(name).hexdigest() for name in (b"carried", b"referred", b"released"))
    request = commit(
        blobs=[{"digest": carried, "content": b"carried"}],
        blob_refs=[referred.upper()],
        released_blob_refs=[carried, referred, released.upper(), released],
    )
    assert to_commit(request).released == {released}


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True), max_size=5))
@settings(max_examples=50)
def test_of_an_atomic_batch_the_commits_that_repeat_an_action_are_refused(batch: list[list[int]]) -> None:
    ids = [uuid.UUID(int=number) for number in range(10)]
    commits: list[Commit | BridgeError] = [
        to_commit(commit(actions=[action(str(ids[number])) for number in numbers])) for numbers in batch
    ]
    commits.insert(0, InvalidArgument())
    checked = refuse_repeated_actions(commits)
    assert checked[0] is commits[0]
    for place, numbers in enumerate(batch):
        repeats = any(number in earlier for earlier in batch[:place] for number in numbers)
        assert isinstance(checked[place + 1], BridgeError) == repeats
        assert repeats or checked[place + 1] is commits[place + 1]


def test_an_action_may_have_occurred_at_the_epoch_and_unsaid_is_another_thing() -> None:
    said, unsaid = action(), action()
    said.provenance.occur_time.SetInParent()
    unsaid.provenance.actor = "somebody"
    times = [made.provenance.occur_time for made in to_commit(commit(actions=[said, unsaid])).actions]
    assert times == [datetime(1970, 1, 1, tzinfo=UTC), None]
