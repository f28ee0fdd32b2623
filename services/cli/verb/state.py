"""`omnibridge state`: reads canonical state."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from omninode.bridge.store.v1 import store_pb2
from services.cli import console, interruption
from services.cli.option import name
from services.cli.target import STORE, StoreTarget

app = typer.Typer(add_completion=False, help="Read canonical state.")


@app.callback()
def _root() -> None:
    """Makes `get` a command of its own: typer gives a lone one no name."""


@app.command()
def get(
    key: Annotated[
        str, typer.Argument(metavar="KEY", parser=name, help="Such as workflow/WORKFLOW_ID.", show_default=False)
    ],
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object on one line: the state's text, its version and its place."),
    ] = False,
    store: StoreTarget = STORE.default,
) -> None:
    """Print the current state of a key, a JSON object."""
    interruption.run(_get(key, as_json, store))


async def _get(key: str, as_json: bool, target: str) -> None:
    async with STORE.at(target) as stub:
        answer = await stub.GetState(store_pb2.GetStateRequest(key=key))
    if as_json:
        console.emit(console.as_json(answer.state))
    else:
        print(_indented(answer.state.state_json))


def _indented(text: str) -> str:
    """The JSON for people; as it is stored where that would change what it says: a name given twice, more than a double holds."""
    indented = json.dumps(json.loads(text), indent=2)
    return indented if _read(indented) == _read(text) else _ascii(text)


def _ascii(text: str) -> str:
    """The JSON without what a terminal may obey; what is not ASCII can stand in its texts only."""
    return "".join(character if character.isascii() else json.dumps(character)[1:-1] for character in text)


def _read(text: str) -> object:
    return json.loads(text, object_pairs_hook=list, parse_float=str)
