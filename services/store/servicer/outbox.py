"""The outbox over gRPC: events in, their feed, and who has acknowledged what."""

from __future__ import annotations

from collections.abc import AsyncIterator

from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.chassis import paging, timestamp
from services.chassis.errors import invalid_field
from services.chassis.feed import Feed, Position
from services.store.domain import Acknowledgement, Append, Consumer, ConsumerKey, Fenced, Limits, LoggedAction
from services.store.repository.append import AppendRepository
from services.store.repository.outbox import OutboxRepository
from services.store.servicer.call import Context
from services.store.view import OutboxView

_EVERY_CONSUMER = {"consumers": "all"}


class OutboxServicer(store_pb2_grpc.StoreServiceServicer):
    """Takes events, shows them, and keeps what is acknowledged."""

    def __init__(
        self, appends: AppendRepository, outbox: OutboxRepository, feed: Feed[LoggedAction], limits: Limits
    ) -> None:
        self._outbox_limits = limits
        self._appends = appends
        self._outbox = outbox
        self._outbox_feed = feed

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

    async def WatchOutbox(
        self, request: store_pb2.WatchOutboxRequest, context: Context
    ) -> AsyncIterator[store_pb2.WatchOutboxResponse]:
        view = OutboxView.model_validate(
            {
                "consumer": request.consumer,
                "partition": request.partition,
                "kind": request.kind or None,
                "event_types": request.event_types,
                "topics": request.topics,
            }
        )

        async def enter() -> Position:
            await self._outbox.register(
                view.consumer, from_beginning=request.from_beginning, limit=self._outbox_limits.consumers
            )
            return {view.partition: await self._outbox.get(view.consumer, view.partition)}

        async for response in self._outbox_feed.watch(
            view, request.cursor, from_beginning=request.from_beginning, enter=enter
        ):
            yield response

    async def AckOutbox(self, request: store_pb2.AckOutboxRequest, context: Context) -> store_pb2.AckOutboxResponse:
        outcome = await self._outbox.acknowledge(
            Acknowledgement.model_validate(
                {
                    "consumer": request.consumer,
                    "partition": request.partition,
                    "offset": request.offset,
                    "guard": request.guard if request.HasField("guard") else None,
                }
            )
        )
        if isinstance(outcome, Fenced):
            fenced = store_pb2.Fenced(lease=outcome.lease, current_epoch=outcome.current_epoch)
            return store_pb2.AckOutboxResponse(fenced=fenced)
        return store_pb2.AckOutboxResponse(acknowledged=store_pb2.Acknowledged(next_offset=outcome))

    async def ListConsumers(
        self, request: store_pb2.ListConsumersRequest, context: Context
    ) -> store_pb2.ListConsumersResponse:
        size = paging.page_size(request.page_size)
        (after,) = paging.decode(request.page_token, _EVERY_CONSUMER) if request.page_token else ("",)
        consumers = await self._outbox.list(str(after), size + 1)
        response = store_pb2.ListConsumersResponse()
        for consumer in consumers[:size]:
            _fill(response.consumers.add(), consumer)
        if len(consumers) > size:
            response.next_page_token = paging.encode((consumers[size - 1].name,), _EVERY_CONSUMER)
        return response

    async def DeleteConsumer(
        self, request: store_pb2.DeleteConsumerRequest, context: Context
    ) -> store_pb2.DeleteConsumerResponse:
        await self._outbox.delete(ConsumerKey.model_validate(request).consumer)
        return store_pb2.DeleteConsumerResponse()


def _fill(message: store_pb2.Consumer, consumer: Consumer) -> None:
    message.consumer = consumer.name
    timestamp.fill(message.register_time, consumer.registered_at)
    for partition in consumer.partitions:
        shown = message.partitions.add(
            partition=partition.partition, next_offset=partition.next_offset, lag=partition.lag
        )
        if partition.acknowledged_at is not None:
            timestamp.fill(shown.ack_time, partition.acknowledged_at)
    message.lag = sum(partition.lag for partition in consumer.partitions)
