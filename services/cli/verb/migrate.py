"""`omnibridge migrate`: shows and changes the schema of a database."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from services.chassis import migration
from services.cli.console import say
from services.cli.option import DEFAULT_DATA, DataFolder
from services.cli.runner import database

app = typer.Typer(
    add_completion=False,
    help="Show or change the schema of the database of DATABASE_URL; without it, of the embedded one, while no mesh runs on it.",
)


@app.command()
def status(data: DataFolder = DEFAULT_DATA) -> None:
    """Show the revision of the database, and what is pending."""
    with database(os.environ, data) as url:
        found = migration.status(url)
    say(f"at {found.current or 'no revision'}, newest {found.head}, {len(found.pending)} pending")
    for step in found.pending:
        say(f"pending {_line(step)}")


@app.command(name="up")
def upgrade(data: DataFolder = DEFAULT_DATA) -> None:
    """Apply what is pending."""
    with database(os.environ, data) as url:
        applied = migration.upgrade(url)
    for step in applied:
        say(f"applied {_line(step)}")
    if not applied:
        say("nothing was pending")


@app.command(name="down")
def downgrade(
    revision: Annotated[str, typer.Argument(help="The revision to go back to; `base` is the empty schema.")] = "-1",
    data: DataFolder = DEFAULT_DATA,
) -> None:
    """Undo migrations, the last one if no revision is named. What the dropped tables hold is lost."""
    with database(os.environ, data) as url:
        undone = migration.downgrade(url, revision)
    for step in undone:
        say(f"undid {_line(step)}")
    if not undone:
        say("nothing was to be undone")


def _line(step: migration.Migration) -> str:
    return f"{step.revision}: {step.purpose}"
