"""A reducer for the command's tests: sessions and panes that a test gives it, and one session that counts what it is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from omninode.bridge.reducer.v1 import reducer_pb2
from services.chassis.errors import BridgeError, FailedPrecondition, NotFound, invalid_field, to_message
from tests.cli.fake import FakeFeed, abort


class FakeReducer:
    """The methods that the command calls, for threads. It records what it is asked."""

    service = reducer_pb2.DESCRIPTOR.services_by_name["ReducerService"]

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.refusal: BridgeError | None = None
        """What it answers with instead."""
        self.sessions: list[pb.Session] = []
        self.panes: list[pb.Pane] = []
        self.feed = FakeFeed()

        self.openings: list[pb.OpenSession] = []
        self.messages: list[pb.ItemColumns] = []
        self.counted: list[int] = []
        """The offsets that were counted, in order."""
        self.offset = 0
        self.finished = False
        self.late: set[int] = set()
        self.answers: dict[int, list[pb.Pane]] = {}
        """By offset, the panes that come of it."""
        self.before_commit: dict[int, BridgeError] = {}
        """By offset, what ends the stream when its message comes, once."""
        self.after_commit: dict[int, BridgeError] = {}
        """The same, when the message is committed and not acknowledged."""
        self.ends: set[int] = set()
        """The message that holds one of these offsets is committed, and the stream ends before that is acknowledged, once."""
        self.after_finish: BridgeError | None = None
        """What ends the stream when the session is finished, before that is acknowledged."""
        self.on_commit: Callable[[], object] = lambda: None
        self._answered: list[pb.AggregateResponse] = []

    def GetSession(self, request: pb.GetSessionRequest, context: grpc.ServicerContext) -> pb.GetSessionResponse:
        self._asked(request, context)
        for session in self.sessions:
            if session.session == request.session:
                return pb.GetSessionResponse(session=session)
        abort(context, NotFound("there is no such session", reason=errors_pb2.ERROR_REASON_SESSION_NOT_FOUND))
        raise AssertionError

    def ListSessions(self, request: pb.ListSessionsRequest, context: grpc.ServicerContext) -> pb.ListSessionsResponse:
        self._asked(request, context)
        return pb.ListSessionsResponse(sessions=self.sessions)

    def GetAggregates(
        self, request: pb.GetAggregatesRequest, context: grpc.ServicerContext
    ) -> pb.GetAggregatesResponse:
        self._asked(request, context)
        return pb.GetAggregatesResponse(panes=self.panes[: request.page_size])

    def WatchAggregates(
        self, request: pb.WatchAggregatesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchAggregatesResponse]:
        yield from self.feed.answer(request, context)

    def Aggregate(
        self, request_iterator: Iterator[pb.AggregateRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.AggregateResponse]:
        opening = next(request_iterator).open
        self.openings.append(opening)
        if self.refusal:
            abort(context, self.refusal)
        session = pb.Session(session=opening.session, finished=self.finished)
        yield pb.AggregateResponse(opened=pb.Opened(session=session, next_offset=self.offset + 1))
        # Those without an acknowledgement, as a node has none of a commit that nothing came of.
        for answer in self._answered:
            if answer.acknowledgement.offset > opening.acknowledged_offset:
                yield pb.AggregateResponse(panes=answer.panes, rejected=answer.rejected)
        for request in request_iterator:
            if self.finished:
                abort(context, FailedPrecondition("no more", reason=errors_pb2.ERROR_REASON_SESSION_FINISHED))
            if request.HasField("finish"):
                self.finished = True
                if self.after_finish:
                    abort(context, self.after_finish)
                yield pb.AggregateResponse(acknowledgement=pb.Acknowledgement(offset=self.offset, finished=True))
                return
            self.messages.append(request.columns)
            offsets = range(
                request.columns.first_offset, request.columns.first_offset + len(request.columns.event_times_us)
            )
            self._break(self.before_commit, offsets, context)
            answer = self._commit(request.columns, offsets)
            if self.ends & set(offsets):
                self.ends.clear()
                yield pb.AggregateResponse(panes=answer.panes, rejected=answer.rejected)
                return
            if self.after_commit.keys() & set(offsets):
                yield pb.AggregateResponse(panes=answer.panes, rejected=answer.rejected)
            self._break(self.after_commit, offsets, context)
            self.on_commit()
            yield answer

    def _commit(self, columns: pb.ItemColumns, offsets: range) -> pb.AggregateResponse:
        answer = pb.AggregateResponse(acknowledgement=pb.Acknowledgement(offset=offsets[-1]))
        for place, offset in enumerate(offsets):
            if offset <= self.offset:
                continue
            if not columns.event_times_us[place]:
                error = to_message(invalid_field("event_time", "must be set"), f"items[{place}]")
                answer.rejected.add(offset=offset, rejection=pb.REJECTION_INVALID, error=error)
            elif offset in self.late:
                late = answer.rejected.add(offset=offset, rejection=pb.REJECTION_LATE)
                late.watermark.FromJsonString("2026-03-01T12:00:00Z")
            else:
                self.counted.append(offset)
            answer.panes.extend(self.answers.get(offset, ()))
        self.offset = max(self.offset, offsets[-1])
        self._answered.append(answer)
        return answer

    def _break(self, breaks: dict[int, BridgeError], offsets: range, context: grpc.ServicerContext) -> None:
        for offset in offsets:
            if error := breaks.pop(offset, None):
                abort(context, error)

    def _asked(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        if self.refusal:
            abort(context, self.refusal)
