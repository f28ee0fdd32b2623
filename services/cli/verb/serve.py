"""`omnibridge serve`: runs one node in this process, as `up` and a container do."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from services.chassis.contracts import ContractError
from services.chassis.errors import BridgeError
from services.chassis.settings import SettingsError
from services.cli.failure import USAGE, CommandError
from services.cli.mesh import NODES

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    node: Annotated[str, typer.Argument(metavar="NODE", help=f"One of: {', '.join(NODES)}.", show_default=False)],
) -> None:
    """Run one node in this process, set up by its environment."""
    if node not in NODES:
        raise CommandError(f"serve: there is no node {node!r}; there are: {', '.join(NODES)}", USAGE)
    try:
        raise typer.Exit(import_module(f"services.{node}.node").main())
    except (BridgeError, ContractError, SettingsError) as error:
        raise CommandError(f"{node}: {error}") from error
