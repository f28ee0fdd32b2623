"""`omnibridge demo`: shows what the bridge does, on a copy of a folder and a mesh of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.demonstration import demonstrate

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    path: Annotated[
        Path, typer.Argument(metavar="[PATH]", help="The folder to copy.", show_default="the current folder")
    ] = Path(),
) -> None:
    """Stamp a copy of a folder on a mesh of its own, validate it, and catch a changed byte. Nothing is left behind."""
    demonstrate(path)
