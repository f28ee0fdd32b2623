"""`omnibridge state`: reads canonical state, and the log of its commits."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from omninode.bridge.store.v1 import store_pb2
from services.cli import console, interruption, listing, store_report
from services.cli.option import AsJson, Collection, Count, Cursor, FromBeginning, Key, Limit, name
from services.cli.target import STORE, StoreTarget
from services.cli.watch import watch as watch_feed

app = typer.Typer(add_completion=False, help="Read canonical state, and the log of its commits.")


@app.command()
def get(
    key: Key,
    at_version: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="The state that the key had at this version.", show_default="the current one"
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object on one line: the state's text, its version and its place."),
    ] = False,
    store: StoreTarget = STORE.default,
) -> None:
    """Print the state of a key, a JSON object."""
    interruption.run(_get(store_pb2.GetStateRequest(key=key, at_version=at_version or 0), as_json, store))


@app.command()
def history(
    key: Key,
    limit: Limit = 100,
    as_json: AsJson = False,
    store: StoreTarget = STORE.default,
) -> None:
    """List what was done to a key, the newest first, as far back as the log goes."""
    interruption.run(
        listing.show(
            STORE,
            store,
            lambda stub: stub.ListCommits,
            store_pb2.ListCommitsRequest(key=key),
            items=lambda page: page.actions,
            table=store_report.history,
            what="action",
            as_json=as_json,
            limit=limit,
        )
    )


@app.command()
def watch(
    *,
    collection: Collection = "",
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key", parser=name, metavar="KEY", help="Only this key; may be given again.", show_default=False
        ),
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            parser=name,
            metavar="TYPE",
            help="Only actions of this type; may be given again.",
            show_default=False,
        ),
    ] = None,
    from_beginning: FromBeginning = False,
    cursor: Cursor = "",
    states: Annotated[bool, typer.Option("--states", help="Show the state that each commit came to.")] = False,
    count: Count = None,
    as_json: AsJson = False,
    store: StoreTarget = STORE.default,
) -> None:
    """Follow the commits, a line for each action, until Ctrl-C: from now on, unless it is said where to begin.

    It reconnects by itself while the node is away, and at its end it says the cursor to go on from.
    """
    request = store_pb2.WatchCommitsRequest(
        cursor=cursor,
        from_beginning=from_beginning,
        collection=collection,
        keys=key or (),
        types=types or (),
        include_states=states,
    )
    interruption.run(
        watch_feed(
            STORE, store, lambda stub: stub.WatchCommits, request, store_report.commit, as_json=as_json, count=count
        )
    )


@app.command()
def retention(as_json: AsJson = False, store: StoreTarget = STORE.default) -> None:
    """Show what the retention settings would delete now. Nothing is deleted."""
    interruption.run(_retention(as_json, store))


async def _get(request: store_pb2.GetStateRequest, as_json: bool, target: str) -> None:
    async with STORE.at(target) as stub:
        answer = await stub.GetState(request)
    if as_json:
        console.emit(console.as_json(answer.state))
    else:
        print(_indented(answer.state.state_json))


async def _retention(as_json: bool, target: str) -> None:
    async with STORE.at(target) as stub:
        answer = await stub.PreviewRetention(store_pb2.PreviewRetentionRequest())
    if as_json:
        for count in answer.counts:
            console.emit(console.as_json(count))
    else:
        console.stdout().print(store_report.retention(answer.counts))


def _indented(text: str) -> str:
    """The JSON for people; as it is stored where that would change what it says: a name given twice, more than a double holds."""
    indented = json.dumps(json.loads(text), indent=2)
    return indented if _read(indented) == _read(text) else _ascii(text)


def _ascii(text: str) -> str:
    """The JSON without what a terminal may obey; what is not ASCII can stand in its texts only."""
    return "".join(character if character.isascii() else json.dumps(character)[1:-1] for character in text)


def _read(text: str) -> object:
    return json.loads(text, object_pairs_hook=list, parse_float=str)
