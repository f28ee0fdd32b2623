"""WatchLeases over a real PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest

from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import InvalidArgument
from tests.store.node import store_stub
from tests.store.sample import milliseconds
from tests.store.watching import QUIET, watching

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def acquire(stub: StoreServiceStub, owner: str, name: str = "role/work/1", ttl: int = 60_000) -> pb.Lease:
    answer = await stub.AcquireLease(pb.AcquireLeaseRequest(name=name, owner=owner, ttl=milliseconds(ttl)))
    return answer.lease


def told(items: list[Any]) -> list[tuple[str, str, str, int]]:
    return [
        (pb.LeaseEventKind.Name(item.kind).removeprefix("LEASE_EVENT_KIND_"), item.name, item.owner, item.epoch)
        for item in items
    ]


async def test_taking_releasing_and_ending_are_shown_in_order_and_renewing_is_not(database_url: str) -> None:
    async with (
        store_stub(database_url, feed=QUIET) as stub,
        watching(stub.WatchLeases(pb.WatchLeasesRequest(prefix="role/"))) as watch,
    ):
        await watch.until("caught_up")
        await acquire(stub, "one")
        await acquire(stub, "one")
        await acquire(stub, "two")
        name = "role/work/1"
        await stub.RenewLeases(
            pb.RenewLeasesRequest(owner="one", leases=[pb.LeaseEpoch(name=name, epoch=1)], ttl=milliseconds(60_000))
        )
        await stub.ReleaseLease(pb.ReleaseLeaseRequest(name=name, owner="one", epoch=1))
        await acquire(stub, "two", ttl=100)
        await acquire(stub, "other", name="elsewhere/x")
        shown = told(await watch.until_items(4))
    assert shown == [
        ("ACQUIRED", name, "one", 1),
        ("RELEASED", name, "one", 1),
        ("ACQUIRED", name, "two", 2),
        ("EXPIRED", name, "two", 2),
    ]


async def test_a_lease_that_ended_is_shown_as_ended_before_it_is_shown_as_taken(database_url: str) -> None:
    async with store_stub(database_url, feed=QUIET) as stub:
        async with watching(stub.WatchLeases(pb.WatchLeasesRequest(prefix="role/"))) as watch:
            await watch.until("caught_up")
            await acquire(stub, "one", ttl=100)
            while (await acquire(stub, "two")).owner != "two":
                pass
            shown = told(await watch.until_items(3))
        assert [(kind, owner) for kind, _, owner, _ in shown] == [
            ("ACQUIRED", "one"),
            ("EXPIRED", "one"),
            ("ACQUIRED", "two"),
        ]


async def test_a_watch_goes_on_with_its_cursor_after_a_restart(database_url: str) -> None:
    cursor = ""
    seen: list[Any] = []
    for number in range(3):
        async with store_stub(database_url) as stub:
            request = pb.WatchLeasesRequest(prefix="role/", cursor=cursor, from_beginning=not cursor)
            await acquire(stub, "one", name=f"role/{number}")
            async with watching(stub.WatchLeases(request)) as watch:
                seen += await watch.until("caught_up")
                cursor = watch.cursor
    assert [item.name for item in seen] == ["role/0", "role/1", "role/2"]


async def test_the_ends_of_many_leases_are_each_noted_once_by_two_replicas(database_url: str) -> None:
    async with store_stub(database_url) as one, store_stub(database_url) as two:
        names = [f"role/{number}" for number in range(30)]
        for name in names:
            await acquire(one, "owner", name=name, ttl=100)
        request = pb.WatchLeasesRequest(prefix="role/", from_beginning=True)
        async with watching(two.WatchLeases(request)) as watch:
            shown = told(await watch.until_items(60))
    assert sorted(name for kind, name, _, _ in shown if kind == "EXPIRED") == sorted(names)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.WatchLeasesRequest(prefix="a b"), "prefix"),
        (pb.WatchLeasesRequest(cursor="x"), "cursor"),
        (pb.WatchLeasesRequest(cursor="x", from_beginning=True), "from_beginning"),
    ],
    ids=["prefix", "cursor", "from_beginning"],
)
async def test_a_bad_watch_is_refused_by_the_name_of_its_field(
    shared_stub: StoreServiceStub, request_: pb.WatchLeasesRequest, field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await anext(aiter(shared_stub.WatchLeases(request_)))
    assert [violation.field for violation in caught.value.violations] == [field]
