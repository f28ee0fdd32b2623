"""`omnibridge stamp`: stamps files and folders."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer

from services.cli import console, interruption, report
from services.cli.failure import FAILURE, Failed, complain
from services.cli.option import AsJson, Namespace, Paths
from services.cli.stamping import DEFAULT_NAMESPACE, Stamped, Stamper
from services.cli.target import DEFAULT_TARGET, Target, stamping
from services.cli.tree import find

app = typer.Typer(add_completion=False)


@app.command()
def stamp(
    paths: Paths,
    embed: Annotated[
        bool, typer.Option("--embed", help="Write the stamp into every file that has a place for one.")
    ] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
) -> None:
    """Stamp files, and folders as git sees them."""
    raise typer.Exit(interruption.run(_stamp(paths, embed, namespace, as_json, target)))


async def _stamp(paths: Sequence[Path], embed: bool, namespace: str, as_json: bool, target: str) -> int:
    failures: list[Failed] = []

    def fail(failed: Failed) -> None:
        failures.append(failed)
        complain(failed)
        if as_json:
            console.emit(failed.as_json())

    files = find(paths, lambda path, error: fail(Failed.of(path, error)))
    stamped: list[Stamped] = []
    began = time.monotonic()
    with console.progress("stamping", len(files)) as advance:
        async with (
            stamping(target) as stub,
            aclosing(Stamper(stub, namespace=namespace, embed=embed).stamp(files)) as outcomes,
        ):
            async for outcome in outcomes:
                advance()
                if isinstance(outcome, Failed):
                    fail(outcome)
                    continue
                stamped.append(outcome)
                if as_json:
                    console.emit(_record(outcome))
    if not as_json:
        _print(stamped, failures, time.monotonic() - began)
    return FAILURE if failures else 0


def _print(stamped: Sequence[Stamped], failures: Sequence[Failed], seconds: float) -> None:
    if stamped:
        console.stdout().print(report.by_type(stamped))
    failed = f", {len(failures):,} failed" if failures else ""
    console.say(f"{len(stamped):,} stamped{failed} in {seconds:.1f} s")


def _record(outcome: Stamped) -> dict[str, object]:
    return {
        "path": str(outcome.file.path),
        "placement": outcome.placement,
        "created": outcome.created,
        "stamp": console.as_json(outcome.stamp),
    }
