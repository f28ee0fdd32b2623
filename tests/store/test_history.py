"""A key's past: its states by version, and who did what."""

from __future__ import annotations

import pytest

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import InvalidArgument, NotFound
from tests.store.sample import action, commit, new_key, sql

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_state_is_returned_as_it_was_at_each_version(shared_stub: StoreServiceStub) -> None:
    key = new_key()
    times = []
    for version in range(1, 6):
        request = commit(key, state_json=f'{{"v": {version}}}', schema_version=version, final=version == 3)
        times.append((await shared_stub.TryCommit(request)).committed.commit_time)
    for version in range(1, 6):
        state = (await shared_stub.GetState(pb.GetStateRequest(key=key, at_version=version))).state
        assert (state.key, state.version, state.state_json) == (key, version, f'{{"v": {version}}}')
        assert (state.schema_version, state.final) == (version, version == 3)
        assert state.update_time == times[version - 1]
    assert (await shared_stub.GetState(pb.GetStateRequest(key=key))).state.version == 5


async def test_a_version_that_the_log_gave_up_is_expired_and_the_current_one_never_is(
    stub: StoreServiceStub, database_url: str
) -> None:
    key = new_key()
    for _ in range(3):
        await stub.TryCommit(commit(key))
    async with sql(database_url) as session:
        await session.execute("UPDATE workflow_commits SET state = NULL WHERE key = $1 AND version = 1", key)
        await session.execute("DELETE FROM workflow_commits WHERE key = $1 AND version > 1", key)
    for version in (1, 2):
        with pytest.raises(NotFound) as caught:
            await stub.GetState(pb.GetStateRequest(key=key, at_version=version))
        assert caught.value.reason == errors_pb2.ERROR_REASON_VERSION_EXPIRED
        assert caught.value.metadata == {"key": key, "at_version": str(version), "version": "3"}
    assert (await stub.GetState(pb.GetStateRequest(key=key, at_version=3))).state.version == 3


async def test_a_version_that_never_was_is_not_found(shared_stub: StoreServiceStub) -> None:
    key = new_key()
    with pytest.raises(NotFound) as caught:
        await shared_stub.GetState(pb.GetStateRequest(key=key, at_version=1))
    assert caught.value.reason == errors_pb2.ERROR_REASON_STATE_NOT_FOUND
    await shared_stub.TryCommit(commit(key))
    with pytest.raises(NotFound) as caught:
        await shared_stub.GetState(pb.GetStateRequest(key=key, at_version=2))
    assert caught.value.reason == errors_pb2.ERROR_REASON_STATE_NOT_FOUND
    with pytest.raises(InvalidArgument) as refused:
        await shared_stub.GetState(pb.GetStateRequest(key=key, at_version=-1))
    assert [violation.field for violation in refused.value.violations] == ["at_version"]


@pytest.mark.parametrize("page_size", [1, 2, 3, 100])
async def test_the_commits_of_a_key_are_listed_the_newest_first(shared_stub: StoreServiceStub, page_size: int) -> None:
    key = new_key()
    sent: list[pb.CommitAction] = []
    for number in range(4):
        provenance = pb.Provenance(effect_id=f"e{number}", actor="ada", correlation_id=f"c{number}")
        provenance.occur_time.FromSeconds(number + 1)
        actions = [action(provenance=provenance), action(type="second")]
        sent += actions
        await shared_stub.TryCommit(commit(key, actions=actions))
        await shared_stub.TryCommit(commit())
    found: list[pb.CommittedAction] = []
    token = ""
    while True:
        page = await shared_stub.ListCommits(pb.ListCommitsRequest(key=key, page_size=page_size, page_token=token))
        found += page.actions
        token = page.next_page_token
        if not token:
            break
    assert [item.action_id for item in found] == [item.action_id for item in reversed(sent)]
    assert [(item.version, item.index) for item in found] == [(v, i) for v in (4, 3, 2, 1) for i in (1, 0)]
    assert [item.provenance for item in found] == [item.provenance for item in reversed(sent)]
    assert {item.state_json for item in found} == {""}


async def test_a_key_without_commits_has_an_empty_past_and_a_token_of_another_key_is_refused(
    shared_stub: StoreServiceStub,
) -> None:
    assert not (await shared_stub.ListCommits(pb.ListCommitsRequest(key=new_key()))).actions
    key = new_key()
    for _ in range(2):
        await shared_stub.TryCommit(commit(key))
    token = (await shared_stub.ListCommits(pb.ListCommitsRequest(key=key, page_size=1))).next_page_token
    with pytest.raises(InvalidArgument) as caught:
        await shared_stub.ListCommits(pb.ListCommitsRequest(key=new_key(), page_token=token))
    assert caught.value.reason == errors_pb2.ERROR_REASON_PAGE_TOKEN_MISMATCH
