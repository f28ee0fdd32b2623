"""States as they are read: byte for byte, many at once, and the open keys of a collection page by page."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any

import pytest

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import InvalidArgument, NotFound
from services.chassis.identity import partition_of
from services.store.domain import Limits
from tests.store.node import store_stub
from tests.store.sample import ABSENT, MIB, PARTITIONS, commit, counts, keys_in, new_key

pytestmark = pytest.mark.asyncio(loop_scope="module")


def state_of_bytes(size: int) -> str:
    """A JSON object of that many bytes, with characters of more than one."""
    return '{"é": "' + "é" * ((size - 10) // 2) + "x" * (size % 2) + '"}'


async def get(stub: StoreServiceStub, key: str) -> pb.State:
    return (await stub.GetState(pb.GetStateRequest(key=key))).state


async def batch_get(stub: StoreServiceStub, keys: list[str]) -> list[pb.BatchGetStatesResult]:
    return list((await stub.BatchGetStates(pb.BatchGetStatesRequest(keys=keys))).results)


async def walk(stub: StoreServiceStub, **query: Any) -> list[str]:
    keys: list[str] = []
    token = ""
    while True:
        page = await stub.ListOpenKeys(pb.ListOpenKeysRequest(page_token=token, **query))
        keys.extend(open_key.key for open_key in page.keys)
        assert page.next_page_token != token or not token
        token = page.next_page_token
        if not token:
            return keys


async def put(stub: StoreServiceStub, keys: list[str], *, final: bool = False) -> None:
    response = await stub.BatchTryCommit(pb.BatchTryCommitRequest(items=[commit(key, final=final) for key in keys]))
    assert all(result.HasField("committed") for result in response.results)


def in_order(keys: list[str]) -> list[str]:
    return sorted(keys, key=lambda key: (partition_of(key, PARTITIONS), key.encode()))


async def test_a_key_without_a_state_is_not_found(shared_stub: StoreServiceStub) -> None:
    with pytest.raises(NotFound) as caught:
        await get(shared_stub, "workflow/none")
    assert caught.value.reason == errors_pb2.ERROR_REASON_STATE_NOT_FOUND
    assert caught.value.metadata == {"key": "workflow/none"}


async def test_a_state_is_kept_byte_for_byte(shared_stub: StoreServiceStub) -> None:
    texts = [
        "{}",
        ' {\n"b" :1.50,"a":1e3 ,"a": -0}\t',
        '{"ä€𝄞": "\\u00e4\\/\\ud834\\udd1e", "": null}',
        '{"number": 123456789012345678901234567890.10}',
        '{"text": "an escaped backslash before \\\\u0000 is no U+0000"}',
    ]
    keys = [f"workflow/{number}" for number in range(len(texts))]
    for key, text in zip(keys, texts, strict=True):
        assert (await shared_stub.TryCommit(commit(key, state_json=text))).committed.version == 1
    assert [result.state.state_json for result in await batch_get(shared_stub, keys)] == texts
    conflict = (await shared_stub.TryCommit(commit(keys[1], expected=ABSENT))).conflict
    assert conflict.current.state_json == texts[1]


async def test_a_state_of_1_mib_is_kept_and_one_byte_more_is_refused(
    shared_stub: StoreServiceStub, shared_url: str
) -> None:
    whole = state_of_bytes(MIB)
    assert len(whole.encode()) == MIB
    await shared_stub.TryCommit(commit("workflow/whole", state_json=whole))
    assert (await get(shared_stub, "workflow/whole")).state_json == whole
    before = await counts(shared_url)
    for longer in (whole + " ", '{"a": "' + "x" * (MIB - 8) + '"}'):
        assert len(longer.encode()) == MIB + 1
        with pytest.raises(InvalidArgument) as caught:
            await shared_stub.TryCommit(commit(state_json=longer))
        assert [violation.field for violation in caught.value.violations] == ["state_json"]
    assert await counts(shared_url) == before


async def test_states_are_answered_in_request_order_each_as_often_as_it_is_asked(shared_stub: StoreServiceStub) -> None:
    await put(shared_stub, ["workflow/b", "workflow/a"])
    asked = ["workflow/b", "workflow/none", "workflow/a", "no collection", "workflow/b"]
    results = await batch_get(shared_stub, asked)
    assert [result.state.key for result in results] == ["workflow/b", "", "workflow/a", "", "workflow/b"]
    assert results[0].state == await get(shared_stub, "workflow/b")
    missing, malformed = results[1].error, results[3].error
    assert (missing.reason, missing.metadata["key"]) == (errors_pb2.ERROR_REASON_STATE_NOT_FOUND, "workflow/none")
    assert malformed.reason == errors_pb2.ERROR_REASON_INVALID_FIELD
    assert [violation.field for violation in malformed.field_violations] == ["keys[3].key"]


async def test_answers_leave_out_states_beyond_their_bound(database_url: str) -> None:
    keys = [f"workflow/{number}" for number in range(4)]
    async with store_stub(database_url, limits=Limits.model_construct(answer_state_bytes=250)) as stub:
        for key in keys[:3]:
            await stub.TryCommit(commit(key, state_json=state_of_bytes(100)))
        await stub.TryCommit(commit(keys[3], state_json=state_of_bytes(50)))
        results = await batch_get(stub, keys)
        items = [commit(key, expected=ABSENT) for key in keys]
        conflicts = (await stub.BatchTryCommit(pb.BatchTryCommitRequest(items=items))).results
    for states in ([result.state for result in results], [result.conflict.current for result in conflicts]):
        assert [state.state_omitted for state in states] == [False, False, True, False]
        assert [len(state.state_json.encode()) for state in states] == [100, 100, 0, 50]
        assert [state.version for state in states] == [1] * 4


async def test_five_hundred_states_of_100_kib_are_committed_and_read(stub: StoreServiceStub) -> None:
    keys = [f"workflow/{number}" for number in range(500)]
    text = state_of_bytes(100 * 1024)
    batches = [
        pb.BatchTryCommitRequest(items=[commit(key, expected=ABSENT, state_json=text) for key in keys[start::4]])
        for start in range(4)
    ]
    answers = await asyncio.gather(*(stub.BatchTryCommit(batch) for batch in batches))
    assert all(result.committed.version == 1 for answer in answers for result in answer.results)
    states = [result.state for result in await batch_get(stub, keys)]
    assert [state.version for state in states] == [1] * 500
    assert [state.state_omitted for state in states] == [False] * 81 + [True] * 419
    left = [state.key for state in states if state.state_omitted]
    assert {result.state.state_json for result in await batch_get(stub, left[:80])} == {text}


async def test_open_keys_are_those_without_a_final_commit(stub: StoreServiceStub) -> None:
    await put(stub, ["workflow/a", "workflow/b", "workflow/c"])
    await put(stub, ["workflow/b"], final=True)
    assert await walk(stub, collection="workflow") == in_order(["workflow/a", "workflow/c"])
    await put(stub, ["workflow/b"])
    assert await walk(stub, collection="workflow") == in_order(["workflow/a", "workflow/b", "workflow/c"])
    response = await stub.ListOpenKeys(pb.ListOpenKeysRequest(collection="workflow"))
    (open_key,) = [open_key for open_key in response.keys if open_key.key == "workflow/b"]
    state = await get(stub, "workflow/b")
    assert (open_key.version, open_key.partition, open_key.update_time) == (3, state.partition, state.update_time)


async def test_a_collection_ends_where_another_begins(shared_stub: StoreServiceStub) -> None:
    collections = ["a", "a.b", "a-", "a0", "A", "b", "_"]
    keys = {name: [f"{name}/{number}" for number in ("0", "/", "~", "ü", "a/b")] for name in collections}
    await put(shared_stub, [key for group in keys.values() for key in group])
    for name in collections:
        assert await walk(shared_stub, collection=name) == in_order(keys[name])
    assert await walk(shared_stub, collection="c") == []


async def test_a_walk_over_pages_of_open_keys_equals_the_list_by_partition_and_key(stub: StoreServiceStub) -> None:
    keys = [f"workflow/{number}" for number in range(40)]
    await put(stub, [*keys, *(f"aggregate/{number}" for number in range(5))])
    assert await walk(stub, collection="workflow") == in_order(keys)
    for size in (1, 3, 39, 40, 41):
        assert await walk(stub, collection="workflow", page_size=size) == in_order(keys)
    one, two, *_ = {partition_of(key, PARTITIONS) for key in keys}
    for partitions in ([two, one], [one, two, one], [two], [200]):
        wanted = [key for key in in_order(keys) if partition_of(key, PARTITIONS) in partitions]
        for size in (0, 1, 2):
            assert await walk(stub, collection="workflow", partitions=partitions, page_size=size) == wanted


async def test_keys_that_open_and_end_during_a_walk_make_it_neither_skip_nor_repeat(stub: StoreServiceStub) -> None:
    early, first, second, late, third = islice(keys_in(3), 5)
    await put(stub, [first, second, third])
    query: dict[str, Any] = {"collection": "workflow", "page_size": 1}
    page = await stub.ListOpenKeys(pb.ListOpenKeysRequest(**query))
    await put(stub, [early, late])
    await put(stub, [first], final=True)
    rest: list[str] = []
    while page.next_page_token:
        page = await stub.ListOpenKeys(pb.ListOpenKeysRequest(page_token=page.next_page_token, **query))
        rest.extend(open_key.key for open_key in page.keys)
        assert len(rest) <= 3, rest
    assert rest == [second, late, third]


async def test_a_page_token_of_another_query_is_refused(stub: StoreServiceStub) -> None:
    await put(stub, [new_key() for _ in range(3)])
    token = (await stub.ListOpenKeys(pb.ListOpenKeysRequest(collection="workflow", page_size=1))).next_page_token
    for request in (
        pb.ListOpenKeysRequest(collection="aggregate", page_token=token),
        pb.ListOpenKeysRequest(collection="workflow", partitions=[1], page_token=token),
        pb.ListOpenKeysRequest(collection="workflow", page_token=token[:-3]),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await stub.ListOpenKeys(request)
        assert caught.value.reason == errors_pb2.ERROR_REASON_PAGE_TOKEN_MISMATCH
