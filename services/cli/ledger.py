"""Reads the ledger of stamps through the node, page by page."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator

from omninode.bridge.stamping.v1 import stamping_pb2, stamping_pb2_grpc

PAGE_SIZE = 1000
"""The contract's largest."""


async def walk(
    stub: stamping_pb2_grpc.StampingServiceStub, query: stamping_pb2.ListStampsRequest, limit: int = sys.maxsize
) -> AsyncGenerator[stamping_pb2.Stamp, None]:
    """At most `limit` stamps of the query, the newest first; `query` is used up on the way."""
    while limit > 0:
        query.page_size = min(limit, PAGE_SIZE)
        page = await stub.ListStamps(query)
        for stamp in page.stamps[:limit]:
            yield stamp
        limit -= len(page.stamps)
        if not page.next_page_token:
            return
        query.page_token = page.next_page_token
