"""Projections over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.chassis import paging, timestamp
from services.chassis.call_context import deadline
from services.chassis.errors import invalid_field
from services.store.domain import Limits
from services.store.projection import (
    MAX_WAIT,
    CountQuery,
    Lag,
    Place,
    ProjectionKey,
    ProjectionQuery,
    ShownProjection,
)
from services.store.reader import ProjectionReader
from services.store.rebuild import Rebuilder
from services.store.repository.projection import ProjectionRepository
from services.store.servicer.call import Context

_NANOS = 1_000_000_000
_ANSWER_SECONDS = 0.05
"""Kept of the caller's deadline for the canonical answer after a wait."""


class ProjectionServicer(store_pb2_grpc.StoreServiceServicer):
    """Shows projections, and builds them anew."""

    def __init__(
        self, projections: ProjectionRepository, reader: ProjectionReader, rebuilder: Rebuilder, limits: Limits
    ) -> None:
        self._projections = projections
        self._projection_reader = reader
        self._rebuilder = rebuilder
        self._projection_limits = limits

    def end_waits(self) -> None:
        """Answers who waits for a projection with what there is."""
        self._projection_reader.end_waits()

    async def GetProjection(
        self, request: store_pb2.GetProjectionRequest, context: Context
    ) -> store_pb2.GetProjectionResponse:
        asked = ProjectionKey.model_validate(request)
        reading, is_projected = await self._projection_reader.read(asked.key, asked.min_version, _max_wait(request))
        assert reading.projection is not None
        response = store_pb2.GetProjectionResponse(
            source=store_pb2.PROJECTION_SOURCE_PROJECTION if is_projected else store_pb2.PROJECTION_SOURCE_CANONICAL
        )
        _fill(response.projection, reading.projection)
        _fill_lag(response.lag, reading.lag)
        return response

    async def ListProjections(
        self, request: store_pb2.ListProjectionsRequest, context: Context
    ) -> store_pb2.ListProjectionsResponse:
        query = ProjectionQuery.model_validate({"filter": _filter(request.filter), "order": request.order})
        size = paging.page_size(request.page_size)
        filters = query.model_dump(mode="json")
        after = None
        if request.page_token:
            key, microseconds = paging.decode(request.page_token, filters)
            after = Place.at(str(key), int(microseconds or 0))
        page = await self._projections.list(query, after, size, self._projection_limits.answer_state_bytes)
        response = store_pb2.ListProjectionsResponse()
        for projection in page.projections:
            _fill(response.projections.add(), projection)
        if not page.is_last:
            last = page.projections[-1]
            end = Place(last.key, last.created_at)
            response.next_page_token = paging.encode((end.key, end.microseconds), filters)
        _fill_lag(response.lag, page.lag)
        return response

    async def CountProjections(
        self, request: store_pb2.CountProjectionsRequest, context: Context
    ) -> store_pb2.CountProjectionsResponse:
        query = CountQuery.model_validate(
            {
                "filter": _filter(request.filter),
                "group_by": request.group_by,
                "group_index": request.group_index,
            }
        )
        count = await self._projections.count(query)
        response = store_pb2.CountProjectionsResponse(total=count.total, truncated=count.truncated)
        for value, number in count.groups:
            response.groups.add(value=value, count=number)
        _fill_lag(response.lag, count.lag)
        return response

    async def GetWatermarks(
        self, request: store_pb2.GetWatermarksRequest, context: Context
    ) -> store_pb2.GetWatermarksResponse:
        response = store_pb2.GetWatermarksResponse()
        for mark in await self._projections.watermarks():
            message = response.watermarks.add(
                partition=mark.partition,
                next_offset=mark.next_offset,
                first_offset=mark.first_offset,
                first_event_offset=mark.first_event_offset,
                watermark=mark.watermark,
            )
            _fill_lag(message.lag, mark.lag)
        return response

    async def RebuildProjection(
        self, request: store_pb2.RebuildProjectionRequest, context: Context
    ) -> AsyncIterator[store_pb2.RebuildProjectionResponse]:
        async with aclosing(self._rebuilder.rebuild()) as rebuild:
            async for progress in rebuild:
                yield store_pb2.RebuildProjectionResponse(
                    phase=store_pb2.RebuildPhase.ValueType(progress.phase),
                    done_count=progress.done,
                    total_count=progress.total,
                )


def _max_wait(request: store_pb2.GetProjectionRequest) -> float:
    """Seconds; none or less where the caller has no time for it."""
    seconds, nanos = request.max_wait.seconds, request.max_wait.nanos
    limit = int(MAX_WAIT.total_seconds())
    if seconds < 0 or not 0 <= nanos < _NANOS or seconds * _NANOS + nanos > limit * _NANOS:
        raise invalid_field("max_wait", f"must be a duration of 0 to {limit} seconds")
    wanted = seconds + nanos / _NANOS
    end = deadline.get()
    # A caller that has less time than it would wait still gets the canonical answer.
    return wanted if end is None else min(wanted, end - _ANSWER_SECONDS - asyncio.get_running_loop().time())


def _filter(message: store_pb2.ProjectionFilter) -> Mapping[str, Any]:
    return {
        "collection": message.collection,
        "namespace": message.namespace if message.HasField("namespace") else None,
        "tags": message.tags,
        "indices": message.indices,
        "created_after": message.created_after if message.HasField("created_after") else None,
        "created_before": message.created_before if message.HasField("created_before") else None,
        "updated_after": message.updated_after if message.HasField("updated_after") else None,
        "updated_before": message.updated_before if message.HasField("updated_before") else None,
    }


def _fill(message: store_pb2.Projection, projection: ShownProjection) -> None:
    message.key = projection.key
    message.version = projection.version
    message.tag = projection.tag
    message.last_action = projection.last_action
    message.namespace = projection.namespace
    timestamp.fill(message.create_time, projection.created_at)
    timestamp.fill(message.update_time, projection.updated_at)
    message.indices.update(projection.indices)
    message.extras_json = projection.extras_json
    message.final = projection.final


def _fill_lag(message: store_pb2.ProjectionLag, lag: Lag) -> None:
    message.commits = lag.commits
    message.time.FromTimedelta(lag.time)
