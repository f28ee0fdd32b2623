"""Retention over gRPC."""

from __future__ import annotations

from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.store.repository.retention.preview import RetentionPreview
from services.store.retention import RetentionSettings
from services.store.servicer.call import Context


class RetentionServicer(store_pb2_grpc.StoreServiceServicer):
    """Shows what retention would delete."""

    def __init__(self, previews: RetentionPreview, settings: RetentionSettings) -> None:
        self._previews = previews
        self._retention_settings = settings

    async def PreviewRetention(
        self, request: store_pb2.PreviewRetentionRequest, context: Context
    ) -> store_pb2.PreviewRetentionResponse:
        response = store_pb2.PreviewRetentionResponse()
        for count in await self._previews.count(self._retention_settings):
            shown = response.counts.add(
                kind=store_pb2.RetentionKind.ValueType(count.kind), count=count.over_count, held_count=count.held_count
            )
            shown.retention.FromTimedelta(count.retention)
        return response
