"""`omnibridge projections`: what the projections show, how far they are, and how they are built anew."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Annotated

import typer

from omninode.bridge.store.v1 import store_pb2
from services.cli import console, interruption, listing, report, store_report
from services.cli.failure import CommandError
from services.cli.option import AsJson, Collection, CreatedAfter, CreatedBefore, Key, Limit, duration
from services.cli.selection import By, Indices, Namespace, Tags, UpdatedAfter, UpdatedBefore, to_filter
from services.cli.target import STORE, StoreTarget

app = typer.Typer(add_completion=False, help="Look keys up by what they are now, and tend the projections.")


class Order(StrEnum):
    """What a list is ordered by."""

    KEY = "key"
    NEWEST = "newest"


_ORDERS = {Order.KEY: store_pb2.PROJECTION_ORDER_KEY, Order.NEWEST: store_pb2.PROJECTION_ORDER_NEWEST_FIRST}
_PHASES = {
    store_pb2.REBUILD_PHASE_BUILDING: "building",
    store_pb2.REBUILD_PHASE_CATCHING_UP: "catching up",
    store_pb2.REBUILD_PHASE_CLEANING: "cleaning up",
}


@app.command(name="list")
def list_(
    *,
    collection: Collection = "",
    namespace: Namespace = None,
    tag: Tags = None,
    index: Indices = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    updated_after: UpdatedAfter = None,
    updated_before: UpdatedBefore = None,
    order: Annotated[Order, typer.Option(help="By key, or by the first commit, the newest first.")] = Order.KEY,
    limit: Limit = 100,
    as_json: AsJson = False,
    store: StoreTarget = STORE.default,
) -> None:
    """List what keys are now."""
    times = (created_after, created_before, updated_after, updated_before)
    query = store_pb2.ListProjectionsRequest(
        filter=to_filter(collection, namespace, tag, index, times), order=_ORDERS[order]
    )
    lag = store_pb2.ProjectionLag()

    def items(page: store_pb2.ListProjectionsResponse) -> Sequence[store_pb2.Projection]:
        lag.CopyFrom(page.lag)
        return page.projections

    interruption.run(
        listing.show(
            STORE,
            store,
            lambda stub: stub.ListProjections,
            query,
            items=items,
            table=store_report.projections,
            what="projection",
            as_json=as_json,
            limit=limit,
            first="first" if order == Order.KEY else "newest",
            end=lambda: f"; {store_report.behind(lag)}",
        )
    )


@app.command()
def show(
    key: Key,
    min_version: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Show this version or a later one.", show_default="whatever is there"),
    ] = 0,
    max_wait: Annotated[
        timedelta | None,
        typer.Option(
            parser=duration,
            metavar="TIME",
            help="Wait so long for the projection, such as 5s, before the canonical state answers.",
            show_default="not at all",
        ),
    ] = None,
    as_json: AsJson = False,
    store: StoreTarget = STORE.default,
) -> None:
    """Show what a key is now, and whether the projection said so or the canonical state."""
    request = store_pb2.GetProjectionRequest(key=key, min_version=min_version)
    if max_wait is not None:
        request.max_wait.FromTimedelta(max_wait)
    interruption.run(_show(request, as_json, store))


@app.command()
def count(
    *,
    by: By = None,
    collection: Collection = "",
    namespace: Namespace = None,
    tag: Tags = None,
    index: Indices = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    updated_after: UpdatedAfter = None,
    updated_before: UpdatedBefore = None,
    as_json: AsJson = False,
    store: StoreTarget = STORE.default,
) -> None:
    """Count what keys are now."""
    times = (created_after, created_before, updated_after, updated_before)
    request = store_pb2.CountProjectionsRequest(filter=to_filter(collection, namespace, tag, index, times))
    if by:
        request.group_by, request.group_index = by.kind, by.index
    interruption.run(_count(request, by.heading if by else "", as_json, store))


@app.command()
def rebuild(as_json: AsJson = False, store: StoreTarget = STORE.default) -> None:
    """Build all projections anew beside the live ones, and put them in their place at once.

    Readers see the old ones until then. Ended before that, it leaves the old ones as they are.
    """
    interruption.run(_rebuild(as_json, store))


@app.command()
def watermarks(as_json: AsJson = False, store: StoreTarget = STORE.default) -> None:
    """Show of each partition how far its log goes, and how far it is projected."""
    interruption.run(_watermarks(as_json, store))


async def _show(request: store_pb2.GetProjectionRequest, as_json: bool, target: str) -> None:
    # The node answers when the wait is over, and then has its own work to do.
    timeout = 30.0 + request.max_wait.ToTimedelta().total_seconds()
    async with STORE.at(target) as stub:
        answer = await stub.GetProjection(request, timeout=timeout)
    if as_json:
        console.emit(console.as_json(answer))
        return
    console.stdout().print(report.fields(console.as_json(answer.projection)))
    canonical = answer.source == store_pb2.PROJECTION_SOURCE_CANONICAL
    source = "the canonical state" if canonical else "the projection"
    console.say(f"from {source}; its partition's projections are {store_report.behind(answer.lag)}")


async def _count(request: store_pb2.CountProjectionsRequest, by: str, as_json: bool, target: str) -> None:
    async with STORE.at(target) as stub:
        answer = await stub.CountProjections(request)
    if as_json:
        console.emit(console.as_json(answer))
        return
    if answer.groups:
        console.stdout().print(store_report.groups(by, answer.groups))
    more = ", in more groups than are shown" if answer.truncated else ""
    console.say(f"{report.counted(answer.total, 'projection')}{more}; {store_report.behind(answer.lag)}")


async def _rebuild(as_json: bool, target: str) -> None:
    began, built, phase = time.monotonic(), 0, store_pb2.REBUILD_PHASE_UNSPECIFIED
    with console.gauge("building") as show_progress:
        async with STORE.at(target) as stub:
            async for progress in stub.RebuildProjection(store_pb2.RebuildProjectionRequest()):
                phase = progress.phase
                if as_json:
                    console.emit(console.as_json(progress))
                # The last progress of building may be left out where more came after it; the end says how much it was.
                if phase in {store_pb2.REBUILD_PHASE_BUILDING, store_pb2.REBUILD_PHASE_DONE}:
                    built = max(built, progress.done_count)
                if phase in _PHASES:
                    show_progress(_PHASES[phase], progress.done_count, progress.total_count)
    if phase != store_pb2.REBUILD_PHASE_DONE:
        raise CommandError("store: the rebuild ended before it said that it was done")
    if not as_json:
        keys = report.counted(built, "projection")
        console.say(f"built {keys} anew in {time.monotonic() - began:.1f} s")


async def _watermarks(as_json: bool, target: str) -> None:
    async with STORE.at(target) as stub:
        answer = await stub.GetWatermarks(store_pb2.GetWatermarksRequest())
    if as_json:
        for watermark in answer.watermarks:
            console.emit(console.as_json(watermark))
        return
    console.stdout().print(store_report.watermarks(answer.watermarks))
    behind = sum(watermark.lag.commits for watermark in answer.watermarks)
    console.say(f"{report.counted(len(answer.watermarks), 'partition')}, {report.counted(behind, 'commit')} behind")
