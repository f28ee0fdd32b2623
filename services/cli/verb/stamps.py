"""`omnibridge stamps`: reads the ledger."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from omninode.bridge.stamping.v1 import stamping_pb2, stamping_pb2_grpc
from services.chassis.boundary import DEFAULT_NAMESPACE
from services.cli import console, interruption, report
from services.cli.failure import CommandError, Failed
from services.cli.ledger import walk
from services.cli.option import AsJson, Namespace
from services.cli.target import STAMPING, StampingTarget
from services.cli.tree import File
from services.cli.validation import Validator

app = typer.Typer(add_completion=False, help="Read the ledger of stamps.")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


class State(StrEnum):
    """Which stamps a list shows."""

    ANY = "any"
    ACTIVE = "active"
    REVOKED = "revoked"


_STATES = {
    State.ANY: stamping_pb2.STAMP_STATE_UNSPECIFIED,
    State.ACTIVE: stamping_pb2.STAMP_STATE_ACTIVE,
    State.REVOKED: stamping_pb2.STAMP_STATE_REVOKED,
}


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            "a time is written as 2026-03-01 or 2026-03-01T12:00:00Z; without a zone it is local"
        ) from None


@app.command(name="list")
def list_(
    *,
    limit: Annotated[int, typer.Option(min=1, help="At most so many stamps, the newest first.")] = 100,
    namespace: Namespace = DEFAULT_NAMESPACE,
    content_type: Annotated[str, typer.Option(help="Only stamps of this media type.")] = "",
    path_prefix: Annotated[str, typer.Option(help="Only stamps whose path begins so.")] = "",
    created_after: Annotated[
        datetime | None, typer.Option(parser=_time, metavar="TIME", help="Only stamps made then or later.")
    ] = None,
    created_before: Annotated[
        datetime | None, typer.Option(parser=_time, metavar="TIME", help="Only stamps made earlier.")
    ] = None,
    state: Annotated[State, typer.Option(help="Only stamps in this state.")] = State.ANY,
    as_json: AsJson = False,
    target: StampingTarget = STAMPING.default,
) -> None:
    """List stamps, the newest first."""
    query = stamping_pb2.ListStampsRequest(
        namespace=namespace, content_type=content_type, file_path_prefix=path_prefix, state=_STATES[state]
    )
    if created_after:
        query.created_after.FromDatetime(created_after)
    if created_before:
        query.created_before.FromDatetime(created_before)
    interruption.run(_list(query, limit, as_json, target))


@app.command()
def show(
    subject: Annotated[str, typer.Argument(metavar="DIGEST|FILE", show_default=False)],
    namespace: Namespace = DEFAULT_NAMESPACE,
    as_json: AsJson = False,
    target: StampingTarget = STAMPING.default,
) -> None:
    """Show the stamp of a digest, or of a file's content."""
    interruption.run(_show(subject, namespace, as_json, target))


async def _list(query: stamping_pb2.ListStampsRequest, limit: int, as_json: bool, target: str) -> None:
    listed = []
    async with STAMPING.at(target) as stub, aclosing(walk(stub, query, limit)) as found:
        async for stamp in found:
            if as_json:
                console.emit(console.as_json(stamp))
            else:
                listed.append(stamp)
    if as_json:
        return
    if listed:
        console.stdout().print(report.stamps(listed))
    console.say(
        report.counted(len(listed), "stamp") + (", the newest; --limit shows more" if len(listed) == limit else "")
    )


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
