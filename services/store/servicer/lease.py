"""Leases over gRPC, and their feed."""

from __future__ import annotations

from collections.abc import AsyncIterator

from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.chassis import paging
from services.chassis.feed import Feed
from services.store.domain import LeaseEvent, LeaseQuery, LeaseRelease
from services.store.message import to_lease_message, to_lease_messages, to_lease_request, to_renewal
from services.store.repository.lease import LeaseRepository
from services.store.servicer.call import Context
from services.store.view import LeaseView


class LeaseServicer(store_pb2_grpc.StoreServiceServicer):
    """Gives leases out, and shows what happens to them."""

    def __init__(self, leases: LeaseRepository, feed: Feed[LeaseEvent]) -> None:
        self._leases = leases
        self._lease_feed = feed

    async def AcquireLease(
        self, request: store_pb2.AcquireLeaseRequest, context: Context
    ) -> store_pb2.AcquireLeaseResponse:
        lease = await self._leases.acquire(to_lease_request(request))
        return store_pb2.AcquireLeaseResponse(acquired=lease.owner == request.owner, lease=to_lease_message(lease))

    async def RenewLeases(
        self, request: store_pb2.RenewLeasesRequest, context: Context
    ) -> store_pb2.RenewLeasesResponse:
        response = store_pb2.RenewLeasesResponse()
        for held, lease in await self._leases.renew(to_renewal(request)):
            response.leases.add(held=held, lease=lease and to_lease_message(lease))
        return response

    async def ReleaseLease(
        self, request: store_pb2.ReleaseLeaseRequest, context: Context
    ) -> store_pb2.ReleaseLeaseResponse:
        released = await self._leases.release(LeaseRelease.model_validate(request))
        return store_pb2.ReleaseLeaseResponse(released=released)

    async def ListLeases(self, request: store_pb2.ListLeasesRequest, context: Context) -> store_pb2.ListLeasesResponse:
        query = LeaseQuery.model_validate(request)
        size = paging.page_size(request.page_size)
        filters = query.model_dump(mode="json")
        (after,) = paging.decode(request.page_token, filters) if request.page_token else ("",)
        leases = await self._leases.list(query, str(after), size + 1)
        token = paging.encode((leases[size - 1].name,), filters) if len(leases) > size else ""
        return store_pb2.ListLeasesResponse(leases=to_lease_messages(leases[:size]), next_page_token=token)

    async def WatchLeases(
        self, request: store_pb2.WatchLeasesRequest, context: Context
    ) -> AsyncIterator[store_pb2.WatchLeasesResponse]:
        view = LeaseView(prefix=request.prefix)
        async for response in self._lease_feed.watch(view, request.cursor, from_beginning=request.from_beginning):
            yield response
