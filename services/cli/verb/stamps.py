"""`omnibridge stamps`: reads the ledger, follows it, and revokes stamps."""

from __future__ import annotations

import asyncio
import re
import uuid
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from omninode.bridge.stamping.v1 import stamping_pb2, stamping_pb2_grpc
from services.chassis.boundary import DEFAULT_NAMESPACE
from services.chassis.timestamp import fill
from services.cli import console, interruption, listing, report
from services.cli.failure import CommandError, Failed
from services.cli.option import (
    AnyNamespace,
    AsJson,
    Count,
    CreatedAfter,
    CreatedBefore,
    Cursor,
    FromBeginning,
    Limit,
    Namespace,
    name,
)
from services.cli.target import STAMPING, StampingTarget
from services.cli.tree import File
from services.cli.validation import Validator
from services.cli.watch import watch as watch_feed

app = typer.Typer(add_completion=False, help="Read the ledger of stamps, follow it, and revoke.")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


class State(StrEnum):
    """Which stamps a list shows."""

    ANY = "any"
    ACTIVE = "active"
    REVOKED = "revoked"


class Kind(StrEnum):
    """What can happen to a stamp."""

    CREATED = "created"
    REVOKED = "revoked"
    VALIDATED = "validated"
    BATCH_PROCESSED = "batch_processed"


_KINDS = {kind: stamping_pb2.StampEventKind.Value(f"STAMP_EVENT_KIND_{kind.upper()}") for kind in Kind}
_STATES = {
    State.ANY: stamping_pb2.STAMP_STATE_UNSPECIFIED,
    State.ACTIVE: stamping_pb2.STAMP_STATE_ACTIVE,
    State.REVOKED: stamping_pb2.STAMP_STATE_REVOKED,
}


@app.command(name="list")
def list_(
    *,
    limit: Limit = 100,
    namespace: Namespace = DEFAULT_NAMESPACE,
    content_type: Annotated[str, typer.Option(help="Only stamps of this media type.")] = "",
    path_prefix: Annotated[str, typer.Option(help="Only stamps whose path begins so.")] = "",
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    state: Annotated[State, typer.Option(help="Only stamps in this state.")] = State.ANY,
    as_json: AsJson = False,
    target: StampingTarget = STAMPING.default,
) -> None:
    """List stamps, the newest first."""
    query = stamping_pb2.ListStampsRequest(
        namespace=namespace, content_type=content_type, file_path_prefix=path_prefix, state=_STATES[state]
    )
    if created_after:
        fill(query.created_after, created_after)
    if created_before:
        fill(query.created_before, created_before)
    interruption.run(
        listing.show(
            STAMPING,
            target,
            lambda stub: stub.ListStamps,
            query,
            items=lambda page: page.stamps,
            table=report.stamps,
            what="stamp",
            as_json=as_json,
            limit=limit,
        )
    )


@app.command()
def revoke(
    creation_request_id: Annotated[
        str,
        typer.Argument(
            metavar="CREATION_REQUEST_ID",
            parser=name,
            help="The request_id by which the stamp was asked for.",
            show_default=False,
        ),
    ],
    *,
    reason: Annotated[str, typer.Option(parser=name, metavar="TEXT", help="Why, for people.", show_default=False)] = "",
    request_id: Annotated[
        str,
        typer.Option(
            parser=name, metavar="ID", help="The id of this revocation, to repeat it by.", show_default="a new UUID"
        ),
    ] = "",
    namespace: Namespace = DEFAULT_NAMESPACE,
    as_json: AsJson = False,
    target: StampingTarget = STAMPING.default,
) -> None:
    """Release the claim of a request on its stamp; the stamp is revoked when nobody claims it any more.

    A request that has not come yet is refused when it comes.
    """
    request = stamping_pb2.RevokeStampRequest(
        creation_request_id=creation_request_id,
        request_id=request_id or str(uuid.uuid4()),
        namespace=namespace,
        reason=reason,
    )
    interruption.run(_revoke(request, as_json, target))


@app.command()
def watch(
    *,
    kind: Annotated[
        list[Kind] | None, typer.Option("--kind", help="Only this kind; may be given again.", show_default=False)
    ] = None,
    digest: Annotated[
        str, typer.Option(parser=name, metavar="DIGEST", help="Only stamps of this digest.", show_default=False)
    ] = "",
    namespace: AnyNamespace = None,
    from_beginning: FromBeginning = False,
    cursor: Cursor = "",
    count: Count = None,
    as_json: AsJson = False,
    target: StampingTarget = STAMPING.default,
) -> None:
    """Follow what happens to stamps, a line each, until Ctrl-C: from now on, unless it is said where to begin.

    It reconnects by itself while the node is away, and at its end it says the cursor to go on from.
    """
    request = stamping_pb2.WatchStampsRequest(
        cursor=cursor,
        from_beginning=from_beginning,
        namespace=namespace,
        kinds=[_KINDS[each] for each in kind or ()],
        digest=digest,
    )
    interruption.run(
        watch_feed(STAMPING, target, lambda stub: stub.WatchStamps, request, report.event, as_json=as_json, count=count)
    )


@app.command()
def show(
    subject: Annotated[str, typer.Argument(metavar="DIGEST|FILE", show_default=False)],
    namespace: Namespace = DEFAULT_NAMESPACE,
    as_json: AsJson = False,
    target: StampingTarget = STAMPING.default,
) -> None:
    """Show the stamp of a digest, or of a file's content."""
    interruption.run(_show(subject, namespace, as_json, target))


async def _revoke(request: stamping_pb2.RevokeStampRequest, as_json: bool, target: str) -> None:
    async with STAMPING.at(target) as stub:
        answer = await stub.RevokeStamp(request)
    if as_json:
        console.emit(console.as_json(answer) | {"request_id": request.request_id})
    else:
        console.say(report.revocation(answer))


async def _show(subject: str, namespace: str, as_json: bool, target: str) -> None:
    async with STAMPING.at(target) as stub:
        digest = subject.lower() if _DIGEST.fullmatch(subject) else await _digest_of(subject, stub, namespace)
        answer = await stub.GetStamp(stamping_pb2.GetStampRequest(digest=digest, namespace=namespace))
    fields = console.as_json(answer.stamp)
    if as_json:
        console.emit(fields)
        return
    console.stdout().print(report.fields(fields))


async def _digest_of(subject: str, stub: stamping_pb2_grpc.StampingServiceStub, namespace: str) -> str:
    path = Path(subject)
    try:
        file = File(path, path.name, (await asyncio.to_thread(path.stat)).st_size)
        return await Validator(stub, namespace=namespace).digest(file)
    except OSError as error:
        raise CommandError(str(Failed.of(subject, error))) from error
