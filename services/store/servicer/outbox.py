"""The outbox over gRPC."""

from __future__ import annotations

from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.chassis.errors import invalid_field
from services.store.domain import Append
from services.store.repository.append import AppendRepository
from services.store.servicer.call import Context


class OutboxServicer(store_pb2_grpc.StoreServiceServicer):
    """Takes events."""

    def __init__(self, appends: AppendRepository) -> None:
        self._appends = appends

    async def AppendEvents(
        self, request: store_pb2.AppendEventsRequest, context: Context
    ) -> store_pb2.AppendEventsResponse:
        append = Append.model_validate(request)
        for index, event in enumerate(append.events):
            if not event.partition_key:
                raise invalid_field(f"events[{index}].partition_key", "must not be empty")
        response = store_pb2.AppendEventsResponse()
        for place in await self._appends.add(append):
            response.events.add(event_id=str(place.event_id), partition=place.partition, offset=place.offset)
        return response
