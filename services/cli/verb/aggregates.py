"""`omnibridge aggregates`: shows sessions of aggregation and their panes, follows them, and feeds records into one."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from services.cli import aggregate_report, console, interruption, listing, report, screen
from services.cli.aggregation import (
    ByNamespace,
    CustomFold,
    Delay,
    Early,
    FedSession,
    FinalOnly,
    Gap,
    GroupedBy,
    Hop,
    Key,
    Lateness,
    Namespace,
    SessionName,
    Strategies,
    Window,
    config,
    pane_filter,
)
from services.cli.failure import FAILURE, complain
from services.cli.feeding import MOST_RECORDS, Feeding
from services.cli.following import Patience
from services.cli.lines import Lines
from services.cli.option import AsJson, Count, Cursor, Limit, stated
from services.cli.record import LINE_BYTES
from services.cli.tally import Tally
from services.cli.target import REDUCER, ReducerTarget
from services.cli.watch import watch as watch_feed

app = typer.Typer(add_completion=False, help="Show sessions of aggregation, follow their panes, and feed records.")
STDIN = "-"


@app.command(name="list")
def list_(limit: Limit = 100, as_json: AsJson = False, reducer: ReducerTarget = REDUCER.default) -> None:
    """List the sessions, by name."""
    interruption.run(
        listing.show(
            REDUCER,
            reducer,
            lambda stub: stub.ListSessions,
            pb.ListSessionsRequest(),
            items=lambda page: page.sessions,
            table=aggregate_report.sessions,
            what="session",
            as_json=as_json,
            limit=limit,
            first="first",
        )
    )


@app.command()
def show(
    session: SessionName,
    *,
    strategy: Strategies = None,
    namespace: Namespace = None,
    key: Key = None,
    final_only: FinalOnly = False,
    limit: Limit = 100,
    as_json: AsJson = False,
    reducer: ReducerTarget = REDUCER.default,
) -> None:
    """Show a session, with its configuration in full, and its panes: the newest windows first.

    In JSON the first line is the session, and each further one a pane.
    """
    query = pb.GetAggregatesRequest(session=session, filter=pane_filter(strategy, namespace, key, final_only))
    interruption.run(_show(query, limit, as_json, reducer))


@app.command()
def watch(
    session: SessionName,
    *,
    strategy: Strategies = None,
    namespace: Namespace = None,
    key: Key = None,
    final_only: FinalOnly = False,
    cursor: Cursor = "",
    count: Count = None,
    as_json: AsJson = False,
    reducer: ReducerTarget = REDUCER.default,
) -> None:
    """Follow the panes of a session until Ctrl-C: first those that there are, then each that changes.

    On a terminal it is a table of the newest windows that redraws; elsewhere, and in JSON, a line for each pane.

    It reconnects by itself while the node is away, and at its end it says the cursor to go on from.
    """
    request = pb.WatchAggregatesRequest(
        cursor=cursor, session=session, filter=pane_filter(strategy, namespace, key, final_only)
    )
    if sys.stdout.isatty() and not as_json:
        interruption.run(screen.watch(request, count, reducer))
        return
    interruption.run(
        watch_feed(
            REDUCER,
            reducer,
            lambda stub: stub.WatchAggregates,
            request,
            aggregate_report.pane,
            as_json=as_json,
            count=count,
        )
    )


@app.command()
def feed(
    file: Annotated[
        str, typer.Argument(metavar="FILE", parser=stated, help="A file of JSON lines; - is stdin.", show_default=False)
    ],
    *,
    session: FedSession,
    strategy: GroupedBy = None,
    window: Window = None,
    hop: Hop = None,
    gap: Gap = None,
    delay: Delay = None,
    lateness: Lateness = None,
    early: Early = None,
    by_namespace: ByNamespace = False,
    custom_fold: CustomFold = "",
    batch: Annotated[int, typer.Option(min=1, max=MOST_RECORDS, help="Records in a message, at most.")] = 500,
    finish: Annotated[
        bool,
        typer.Option("--finish/--keep", help="End the session when the input ends, so that all its panes are final."),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first line that is no record.")] = False,
    panes: Annotated[bool, typer.Option("--panes", help="Print the panes that are answered, a line each.")] = False,
    acknowledged: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="The answers up to this line were seen: do not repeat them.", show_default=False
        ),
    ] = 0,
    as_json: AsJson = False,
    reducer: ReducerTarget = REDUCER.default,
) -> None:
    """Stream the records of a file into a session, each counted once.

    A line is a JSON object with an event_time: 2026-03-01T12:00:00Z, or seconds since 1970.

    It may have namespace, file_type, workflow_id, workflow_state, size_bytes, and payload, an object. The rest is left alone.

    Lines count by their number: the same file fed again, or a pipe begun anew, goes on behind what the session has counted.

    It reconnects by itself while the node is away, and loses and doubles nothing by that.

    A session that is there has its configuration: another one is refused, none is fine.

    A line that is no record, or that the node refuses, is told and makes the exit status 1. Late records are told as well.
    """
    opening = pb.OpenSession(
        session=session,
        config=config(
            strategies=strategy,
            window=window,
            hop=hop,
            gap=gap,
            delay=delay,
            lateness=lateness,
            early=early,
            by_namespace=by_namespace,
            custom_fold=custom_fold,
        ),
        acknowledged_offset=acknowledged,
    )
    with _opened(file) as descriptor, console.gauge("feeding") as show_progress:
        lines = Lines(descriptor, LINE_BYTES)
        tally = Tally(
            "stdin" if file == STDIN else file,
            as_json=as_json,
            show_panes=panes,
            strict=strict,
            advance=lambda offset: show_progress("feeding", offset, lines.total),
        )
        interruption.run(_feed(opening, lines, tally, batch=batch, finish=finish, target=reducer))
    raise typer.Exit(0 if tally.is_clean else FAILURE)


async def _show(query: pb.GetAggregatesRequest, limit: int, as_json: bool, target: str) -> None:
    async with REDUCER.at(target) as stub:
        answer = await stub.GetSession(pb.GetSessionRequest(session=query.session))
    record = console.as_json(answer.session)
    if as_json:
        console.emit(record)
    else:
        console.stdout().print(report.fields(record))
    await listing.show(
        REDUCER,
        target,
        lambda stub: stub.GetAggregates,
        query,
        items=lambda page: page.panes,
        table=aggregate_report.panes,
        what="pane",
        as_json=as_json,
        limit=limit,
    )


async def _feed(opening: pb.OpenSession, lines: Lines, tally: Tally, *, batch: int, finish: bool, target: str) -> None:
    began, given = time.monotonic(), opening.acknowledged_offset
    is_done = False
    try:
        async with REDUCER.at(target) as stub:
            patience = Patience(REDUCER.node)
            feeding = Feeding(stub, opening, lines, batch=batch, finish=finish, patience=patience, listener=tally)
            await feeding.run()
        is_done = True
    finally:
        tally.close()
        if not is_done and tally.offset > given:
            complain(
                f"acknowledged up to line {tally.offset}; to go on, the same again with --acknowledged {tally.offset}"
            )
    tally.sum_up(lines=lines.count, finished=finish, seconds=time.monotonic() - began)


@contextmanager
def _opened(file: str) -> Iterator[int]:
    """The descriptor of the file, or of stdin. Raises OSError."""
    if file != STDIN:
        with Path(file).open("rb") as opened:
            yield opened.fileno()
    elif sys.stdin is None:
        # The caller closed it.
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "stdin")
    else:
        yield sys.stdin.fileno()
