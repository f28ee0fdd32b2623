"""Aggregation over gRPC: a writer's stream, what sessions are, their panes, and the feed of their panes. No rules."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from omninode.bridge.reducer.v1 import reducer_pb2_grpc
from services.chassis import paging
from services.reducer.aggregation.error import SessionNotFound
from services.reducer.aggregation.follower import Follower
from services.reducer.aggregation.message import fill_pane, fill_session
from services.reducer.aggregation.pane import CellId
from services.reducer.aggregation.session import Session
from services.reducer.aggregation.sessions import Sessions
from services.reducer.aggregation.view import AskedSession, to_view

_PAGE_CUSTOM_BYTES = 4 * 1024 * 1024
"""Of what custom folds made and of workflows' states, in a page: it stays below the 16 MiB of a message."""

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class AggregationServicer(reducer_pb2_grpc.ReducerServiceServicer):
    """Takes sessions' items, and shows sessions and their panes."""

    def __init__(self, sessions: Sessions, follower: Follower) -> None:
        self._sessions = sessions
        self._follower = follower

    async def Aggregate(
        self, request_iterator: AsyncIterator[pb.AggregateRequest], context: _Context
    ) -> AsyncIterator[pb.AggregateResponse]:
        async with aclosing(self._sessions.aggregate(request_iterator)) as responses:
            async for response in responses:
                yield response

    async def GetSession(self, request: pb.GetSessionRequest, context: _Context) -> pb.GetSessionResponse:
        name = AskedSession.model_validate(request).session
        reader = self._follower.reader
        parts = await reader.parts(await reader.keys(name))
        if not any(parts):
            raise SessionNotFound(metadata={"session": name})
        response = pb.GetSessionResponse()
        self._fill(response.session, Session.of(parts))
        return response

    async def ListSessions(self, request: pb.ListSessionsRequest, context: _Context) -> pb.ListSessionsResponse:
        size = paging.page_size(request.page_size)
        query = {"sessions": "all"}
        token, last = "", ""
        if request.page_token:
            token, last = map(str, paging.decode(request.page_token, query))
        reader = self._follower.reader
        names: list[str] = []
        while True:
            found, token = await reader.names(token, size)
            # The parts of the mesh's own are keys one after another.
            names = [name for name in dict.fromkeys(found) if name != last]
            if names or not token:
                break
        keys = [await reader.keys(name) for name in names]
        parts = await reader.parts([key for of_session in keys for key in of_session])
        response = pb.ListSessionsResponse()
        for of_session in keys:
            own, parts = parts[: len(of_session)], parts[len(of_session) :]
            # A session whose retention ended in between has none.
            if any(own):
                self._fill(response.sessions.add(), Session.of(own))
        if token:
            response.next_page_token = paging.encode((token, names[-1]), query)
        return response

    async def GetAggregates(self, request: pb.GetAggregatesRequest, context: _Context) -> pb.GetAggregatesResponse:
        view = to_view(request.session, request.filter)
        size = paging.page_size(request.page_size)
        after = _place_of(paging.decode(request.page_token, view.filters)) if request.page_token else None
        table = await self._follower.current(view.session)
        response, room = pb.GetAggregatesResponse(), _PAGE_CUSTOM_BYTES
        last: CellId | None = None
        for cell in table.newest(after):
            if not view.filter.selects_cell(cell):
                continue
            pane = table.pane(cell)
            if not view.filter.selects(pane):
                continue
            if len(response.panes) == size or room < 0:
                assert last is not None
                response.next_page_token = paging.encode(last, view.filters)
                break
            fill_pane(response.panes.add(), pane)
            room -= len(pane.custom_json) + 100 * len(pane.workflow_states)
            last = cell
        assert table.session is not None
        self._fill(response.session, table.session)
        return response

    async def WatchAggregates(
        self, request: pb.WatchAggregatesRequest, context: _Context
    ) -> AsyncIterator[pb.WatchAggregatesResponse]:
        view = to_view(request.session, request.filter)
        watch: AsyncGenerator[Any, None] = self._follower.watch(
            view, request.cursor, from_beginning=request.from_beginning
        )
        async with aclosing(watch) as responses:
            async for response in responses:
                yield response

    def _fill(self, message: pb.Session, session: Session) -> None:
        fill_session(message, session, self._sessions.stage(session.name))


def _place_of(position: paging.Position) -> CellId:
    strategy, start, end, namespace, key = position
    return (int(strategy or 0), int(start or 0), int(end or 0), str(namespace), str(key))
