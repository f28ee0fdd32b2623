"""A store for the command's tests: it holds the states that a test gives it."""

from __future__ import annotations

import grpc

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from services.chassis.errors import BridgeError, NotFound
from tests.cli.fake import abort


class FakeStore:
    """The method that the command calls, for threads."""

    service = pb.DESCRIPTOR.services_by_name["StoreService"]

    def __init__(self) -> None:
        self.states: dict[str, pb.State] = {}
        self.refusal: BridgeError | None = None
        """What it answers with instead."""

    def GetState(self, request: pb.GetStateRequest, context: grpc.ServicerContext) -> pb.GetStateResponse:
        if self.refusal:
            abort(context, self.refusal)
        if request.key not in self.states:
            reason = errors_pb2.ERROR_REASON_STATE_NOT_FOUND
            abort(context, NotFound("the key has no state", reason=reason, metadata={"key": request.key}))
        return pb.GetStateResponse(state=self.states[request.key])
