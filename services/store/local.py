"""The store's own leases without a socket, for the work that its replicas share among themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from omninode.bridge.store.v1 import store_pb2
from services.store.servicer import StoreServicer

T = TypeVar("T")


class LocalStore:
    """What services.chassis.partitions calls of a store, answered by this process's own servicer."""

    def __init__(self, servicer: StoreServicer) -> None:
        self._servicer = servicer
        # None of these looks at the context of a call.
        self._context: Any = None

    def DescribeStore(
        self, request: store_pb2.DescribeStoreRequest, /, *, timeout: float
    ) -> Awaitable[store_pb2.DescribeStoreResponse]:
        return _within(timeout, self._servicer.DescribeStore(request, self._context))

    def AcquireLease(
        self, request: store_pb2.AcquireLeaseRequest, /, *, timeout: float
    ) -> Awaitable[store_pb2.AcquireLeaseResponse]:
        return _within(timeout, self._servicer.AcquireLease(request, self._context))

    def RenewLeases(
        self, request: store_pb2.RenewLeasesRequest, /, *, timeout: float
    ) -> Awaitable[store_pb2.RenewLeasesResponse]:
        return _within(timeout, self._servicer.RenewLeases(request, self._context))

    def ReleaseLease(
        self, request: store_pb2.ReleaseLeaseRequest, /, *, timeout: float
    ) -> Awaitable[store_pb2.ReleaseLeaseResponse]:
        return _within(timeout, self._servicer.ReleaseLease(request, self._context))

    def ListLeases(
        self, request: store_pb2.ListLeasesRequest, /, *, timeout: float
    ) -> Awaitable[store_pb2.ListLeasesResponse]:
        return _within(timeout, self._servicer.ListLeases(request, self._context))


async def _within(seconds: float, answer: Awaitable[T]) -> T:
    async with asyncio.timeout(seconds):
        return await answer
