"""`omnibridge up`: runs the mesh on this machine, in the foreground."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import typer

from services.cli import console, interruption, report
from services.cli.example import EXAMPLES, grpcurl
from services.cli.failure import USAGE, CommandError
from services.cli.mesh import NodeAddress, configured_addresses
from services.cli.option import DEFAULT_DATA, DataFolder
from services.cli.runner import mesh

app = typer.Typer(add_completion=False)


@app.command()
def up(data: DataFolder = DEFAULT_DATA) -> None:
    """Run the mesh in the foreground until Ctrl-C, with a PostgreSQL of its own unless DATABASE_URL names one."""
    try:
        addresses = configured_addresses(os.environ)
    except ValueError as error:
        raise CommandError(f"up: {error}", USAGE) from error
    interruption.run(_up(data, addresses, os.environ.get("DATABASE_URL")))


async def _up(data: Path, addresses: Sequence[NodeAddress], database_url: str | None) -> None:
    async with AsyncExitStack() as running:
        with console.waiting("starting the mesh") as tell:
            supervisor = await running.enter_async_context(
                mesh("up", addresses, data, database_url, lambda event: tell(str(event)))
            )
        _print(addresses, data, database_url)
        await supervisor.wait()
        tell("stopping the mesh")


def _print(addresses: Sequence[NodeAddress], data: Path, database_url: str | None) -> None:
    table = report.table_of("node", "address", "metrics")
    for node in addresses:
        table.add_row(node.node, node.target, node.metrics_url)
    console.stdout().print(table)
    console.say(
        f"data and logs in {data.resolve()}; PostgreSQL is {'that of DATABASE_URL' if database_url else 'embedded'}"
    )
    targets = {node.node: node.target for node in addresses}
    for example in EXAMPLES:
        console.say("")
        console.say(f"# {example.purpose}")
        console.say(grpcurl(example, targets[example.node]))
    console.say("")
    console.say("Ctrl-C stops the mesh.")
