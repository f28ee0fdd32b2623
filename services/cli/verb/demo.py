"""`omnibridge demo`: shows what the bridge does, on a copy of a folder and a mesh of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.demonstration import demonstrate
from services.cli.mesh import NODES

app = typer.Typer(add_completion=False)


def _node(name: str) -> str:
    if name not in NODES:
        raise typer.BadParameter(f"there is no node {name!r}; there are: {', '.join(NODES)}")
    return name


@app.command()
def demo(
    path: Annotated[
        Path, typer.Argument(metavar="[PATH]", help="The folder to copy.", show_default="the current folder")
    ] = Path(),
    kill: Annotated[
        str, typer.Option(metavar="NODE", callback=_node, help=f"The node to be killed, one of: {', '.join(NODES)}.")
    ] = "orchestrator",
) -> None:
    """Stamp a copy of a folder on a mesh of its own, kill a node meanwhile, validate it, and catch a changed byte.

    Nothing is left behind.
    """
    demonstrate(path, kill)
