"""Leases: who holds what, until when, by the database's clock."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import InvalidArgument
from tests.store.node import store_stub
from tests.store.sample import end_lease, milliseconds, rows, sql, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "orchestrator/runner/3"


async def acquire(
    stub: StoreServiceStub, owner: str, name: str = NAME, ttl: int = 60_000
) -> tuple[bool, str, int, datetime]:
    """Whether it was acquired, who holds it, with which epoch and until when."""
    answer = await stub.AcquireLease(pb.AcquireLeaseRequest(name=name, owner=owner, ttl=milliseconds(ttl)))
    assert answer.lease.name == name
    return answer.acquired, answer.lease.owner, answer.lease.epoch, answer.lease.expire_time.ToDatetime()


async def renew(
    stub: StoreServiceStub, owner: str, *leases: tuple[str, int], ttl: int = 60_000
) -> list[pb.RenewedLease]:
    request = pb.RenewLeasesRequest(
        owner=owner, ttl=milliseconds(ttl), leases=[pb.LeaseEpoch(name=name, epoch=epoch) for name, epoch in leases]
    )
    return list((await stub.RenewLeases(request)).leases)


async def release(stub: StoreServiceStub, owner: str, epoch: int, name: str = NAME) -> bool:
    return (await stub.ReleaseLease(pb.ReleaseLeaseRequest(name=name, owner=owner, epoch=epoch))).released


async def names(stub: StoreServiceStub, **query: Any) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        page = await stub.ListLeases(pb.ListLeasesRequest(page_token=token, **query))
        # The node has leases of its own for what its replicas share.
        found.extend(lease.name for lease in page.leases if not lease.name.startswith("store/"))
        assert page.next_page_token != token or not token
        token = page.next_page_token
        if not token:
            return found


async def test_a_lease_is_held_by_one_owner_who_renews_it_by_acquiring_it(
    stub: StoreServiceStub, database_url: str
) -> None:
    acquired, owner, epoch, first_end = await acquire(stub, "one", ttl=30_000)
    assert (acquired, owner, epoch) == (True, "one", 1)
    assert await acquire(stub, "two") == (False, "one", 1, first_end)
    acquired, owner, epoch, end = await acquire(stub, "one", ttl=60_000)
    assert (acquired, owner, epoch) == (True, "one", 1)
    assert end > first_end
    ((left,),) = await rows(
        database_url,
        "SELECT extract(epoch FROM expires_at - clock_timestamp())::float FROM leases WHERE name = $1",
        NAME,
    )
    assert 0 < left <= 60


async def test_a_lease_ends_by_the_databases_clock_and_its_epoch_grows_with_every_taking(
    stub: StoreServiceStub, database_url: str
) -> None:
    await acquire(stub, "one", ttl=100)
    async with sql(database_url) as connection:
        await until(connection, "expires_at <= clock_timestamp() FROM leases")
    assert (await acquire(stub, "two"))[:3] == (True, "two", 2)
    await end_lease(database_url, NAME)
    # The last holder itself did not hold it without a break.
    assert (await acquire(stub, "two"))[:3] == (True, "two", 3)
    assert (await acquire(stub, "one"))[:3] == (False, "two", 3)


async def test_of_many_that_ask_at_once_one_acquires(database_url: str) -> None:
    async with store_stub(database_url) as one, store_stub(database_url) as two:
        for epoch in (1, 2, 3):
            answers = await asyncio.gather(*(acquire((one, two)[n % 2], f"owner {n}") for n in range(12)))
            (holder,) = [owner for acquired, owner, _, _ in answers if acquired]
            assert {(owner, found) for _, owner, found, _ in answers} == {(holder, epoch)}
            await end_lease(database_url, NAME)


async def test_renewals_are_answered_one_by_one(stub: StoreServiceStub, database_url: str) -> None:
    for name in ("held", "ended", "taken"):
        await acquire(stub, "one", name, ttl=1000)
    await end_lease(database_url, "ended")
    await end_lease(database_url, "taken")
    await acquire(stub, "two", "taken")
    renewed = await renew(
        stub, "one", ("held", 1), ("ended", 1), ("taken", 1), ("unknown", 1), ("held", 2), ("taken", 2), ttl=60_000
    )
    assert [lease.held for lease in renewed] == [True, False, False, False, False, False]
    assert [lease.lease.owner for lease in renewed] == ["one", "one", "two", "", "one", "two"]
    assert [lease.lease.epoch for lease in renewed] == [1, 1, 2, 0, 1, 2]
    assert not renewed[3].HasField("lease")
    stored = dict(
        await rows(
            database_url,
            "SELECT name, expires_at > clock_timestamp() + '30 s' FROM leases WHERE name NOT LIKE 'store/%'",
        )
    )
    assert stored == {"held": True, "ended": False, "taken": True}


async def test_a_lease_is_released_by_its_holder_alone_and_once(stub: StoreServiceStub) -> None:
    await acquire(stub, "one")
    assert not await release(stub, "two", 1)
    assert not await release(stub, "one", 2)
    assert not await release(stub, "one", 1, "unknown")
    assert await release(stub, "one", 1)
    assert not await release(stub, "one", 1)
    assert not (await renew(stub, "one", (NAME, 1)))[0].held
    assert (await acquire(stub, "two"))[:3] == (True, "two", 2)


async def test_held_leases_are_listed_by_name_and_prefix(stub: StoreServiceStub, database_url: str) -> None:
    given = ["a", "a/1", "a/10", "a/2", "a.b", "a_b", "aXb", "B", "b"]
    for name in [*given, "a/ended"]:
        await acquire(stub, "one", name)
    await end_lease(database_url, "a/ended")
    assert await names(stub) == sorted(given)
    for size in (1, 2, 8, 9, 10):
        assert await names(stub, page_size=size) == sorted(given)
    for prefix in ("a/", "a/1", "a_", "a.", "b", "c", "", "a/ended"):
        wanted = [name for name in sorted(given) if name.startswith(prefix)]
        assert await names(stub, prefix=prefix) == wanted
        assert await names(stub, prefix=prefix, page_size=1) == wanted
    (lease,) = (await stub.ListLeases(pb.ListLeasesRequest(prefix="B"))).leases
    assert (lease.owner, lease.epoch) == ("one", 1)


async def test_a_page_token_of_another_prefix_is_refused(stub: StoreServiceStub) -> None:
    for name in ("a/1", "a/2"):
        await acquire(stub, "one", name)
    token = (await stub.ListLeases(pb.ListLeasesRequest(prefix="a/", page_size=1))).next_page_token
    with pytest.raises(InvalidArgument) as caught:
        await stub.ListLeases(pb.ListLeasesRequest(prefix="a", page_token=token))
    assert caught.value.reason == errors_pb2.ERROR_REASON_PAGE_TOKEN_MISMATCH
