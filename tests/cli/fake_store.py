"""A store for the command's tests: it holds what a test gives it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from services.chassis.errors import BridgeError, NotFound
from tests.cli.fake import FakeFeed, abort


class FakeStore:
    """The methods that the command calls, for threads. It records what it is asked."""

    service = pb.DESCRIPTOR.services_by_name["StoreService"]

    def __init__(self) -> None:
        self.states: dict[str, pb.State] = {}
        self.refusal: BridgeError | None = None
        """What it answers with instead."""
        self.refusals: list[BridgeError] = []
        """What it answers with instead, once each."""
        self.requests: list[Any] = []
        self.actions: list[pb.CommittedAction] = []
        self.consumers: list[pb.Consumer] = []
        self.projections: list[pb.Projection] = []
        self.projection = pb.GetProjectionResponse()
        self.counted = pb.CountProjectionsResponse()
        self.watermarks = pb.GetWatermarksResponse()
        self.retention = pb.PreviewRetentionResponse()
        self.lag = pb.ProjectionLag()
        self.commits = FakeFeed()
        self.outbox = FakeFeed()
        self.rebuild = FakeFeed()

    def GetState(self, request: pb.GetStateRequest, context: grpc.ServicerContext) -> pb.GetStateResponse:
        self._asked(request, context)
        if request.key not in self.states:
            reason = errors_pb2.ERROR_REASON_STATE_NOT_FOUND
            abort(context, NotFound("the key has no state", reason=reason, metadata={"key": request.key}))
        return pb.GetStateResponse(state=self.states[request.key])

    def ListCommits(self, request: pb.ListCommitsRequest, context: grpc.ServicerContext) -> pb.ListCommitsResponse:
        actions, token = self._page(request, context, self.actions)
        return pb.ListCommitsResponse(actions=actions, next_page_token=token)

    def ListConsumers(
        self, request: pb.ListConsumersRequest, context: grpc.ServicerContext
    ) -> pb.ListConsumersResponse:
        consumers, token = self._page(request, context, self.consumers)
        return pb.ListConsumersResponse(consumers=consumers, next_page_token=token)

    def ListProjections(
        self, request: pb.ListProjectionsRequest, context: grpc.ServicerContext
    ) -> pb.ListProjectionsResponse:
        projections, token = self._page(request, context, self.projections)
        return pb.ListProjectionsResponse(projections=projections, next_page_token=token, lag=self.lag)

    def GetProjection(
        self, request: pb.GetProjectionRequest, context: grpc.ServicerContext
    ) -> pb.GetProjectionResponse:
        self._asked(request, context)
        return self.projection

    def CountProjections(
        self, request: pb.CountProjectionsRequest, context: grpc.ServicerContext
    ) -> pb.CountProjectionsResponse:
        self._asked(request, context)
        return self.counted

    def GetWatermarks(
        self, request: pb.GetWatermarksRequest, context: grpc.ServicerContext
    ) -> pb.GetWatermarksResponse:
        self._asked(request, context)
        return self.watermarks

    def PreviewRetention(
        self, request: pb.PreviewRetentionRequest, context: grpc.ServicerContext
    ) -> pb.PreviewRetentionResponse:
        self._asked(request, context)
        return self.retention

    def AckOutbox(self, request: pb.AckOutboxRequest, context: grpc.ServicerContext) -> pb.AckOutboxResponse:
        self._asked(request, context)
        return pb.AckOutboxResponse(acknowledged=pb.Acknowledged(next_offset=request.offset + 1))

    def DeleteConsumer(
        self, request: pb.DeleteConsumerRequest, context: grpc.ServicerContext
    ) -> pb.DeleteConsumerResponse:
        self._asked(request, context)
        return pb.DeleteConsumerResponse()

    def WatchCommits(
        self, request: pb.WatchCommitsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchCommitsResponse]:
        yield from self.commits.answer(request, context)

    def WatchOutbox(
        self, request: pb.WatchOutboxRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchOutboxResponse]:
        yield from self.outbox.answer(request, context)

    def RebuildProjection(
        self, request: pb.RebuildProjectionRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.RebuildProjectionResponse]:
        yield from self.rebuild.answer(request, context)

    def _asked(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        if self.refusals:
            abort(context, self.refusals.pop(0))
        if self.refusal:
            abort(context, self.refusal)

    def _page(self, request: Any, context: grpc.ServicerContext, listed: list[Any]) -> tuple[list[Any], str]:
        self._asked(request, context)
        begin = int(request.page_token or 0)
        end = begin + request.page_size
        return listed[begin:end], str(end) if end < len(listed) else ""
