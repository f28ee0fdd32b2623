"""`omnibridge stamp`: stamps files and folders."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from services.chassis.boundary import DEFAULT_NAMESPACE
from services.cli import console, interruption, report
from services.cli.failure import FAILURE, Failed, complain
from services.cli.option import AsJson, Namespace, Paths
from services.cli.stamping import Outcome, Stamped, Stamper
from services.cli.target import ORCHESTRATOR, STAMPING, OrchestratorTarget, StampingTarget
from services.cli.tree import File, find
from services.cli.workflow import Workflows, stamped

app = typer.Typer(add_completion=False)


@app.command()
def stamp(
    paths: Paths,
    *,
    embed: Annotated[
        bool, typer.Option("--embed", help="Write the stamp into every file that has a place for one.")
    ] = False,
    workflow: Annotated[
        bool, typer.Option("--workflow", help="Stamp each file by a durable workflow, which no crash of a node ends.")
    ] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    as_json: AsJson = False,
    target: StampingTarget = STAMPING.default,
    orchestrator: OrchestratorTarget = ORCHESTRATOR.default,
) -> None:
    """Stamp files, and folders as git sees them."""

    def outcomes(files: Sequence[File]) -> AsyncGenerator[Outcome, None]:
        if workflow:
            return _by_workflow(files, namespace, embed, target, orchestrator)
        return _directly(files, namespace, embed, target)

    raise typer.Exit(interruption.run(_stamp(paths, outcomes, as_json)))


async def _stamp(
    paths: Sequence[Path], outcomes: Callable[[Sequence[File]], AsyncGenerator[Outcome, None]], as_json: bool
) -> int:
    failures: list[Failed] = []

    def fail(failed: Failed) -> None:
        failures.append(failed)
        complain(failed)
        if as_json:
            console.emit(failed.as_json())

    files = find(paths, lambda path, error: fail(Failed.of(path, error)))
    done: list[Stamped] = []
    began = time.monotonic()
    async with aclosing(outcomes(files)) as each:
        async for outcome in each:
            if isinstance(outcome, Failed):
                fail(outcome)
                continue
            done.append(outcome)
            if as_json:
                console.emit(_record(outcome))
    if not as_json:
        _print(done, failures, time.monotonic() - began)
    return FAILURE if failures else 0


async def _directly(files: Sequence[File], namespace: str, embed: bool, target: str) -> AsyncGenerator[Outcome, None]:
    with console.progress("stamping", len(files)) as advance:
        async with (
            STAMPING.at(target) as stub,
            aclosing(Stamper(stub, namespace=namespace, embed=embed).stamp(files)) as outcomes,
        ):
            async for outcome in outcomes:
                advance()
                yield outcome


async def _by_workflow(
    files: Sequence[File], namespace: str, embed: bool, target: str, orchestrator: str
) -> AsyncGenerator[Outcome, None]:
    """An outcome for each file; to be embedded it is stamped once more, and the ledger answers with the stamp that it has."""
    created: dict[File, bool] = {}
    with console.progress("running  ", len(files)) as advance:
        async with (
            ORCHESTRATOR.at(orchestrator) as stub,
            aclosing(Workflows(stub, namespace=namespace).run(files)) as outcomes,
        ):
            async for outcome in outcomes:
                advance()
                if isinstance(outcome, Failed):
                    yield outcome
                elif embed:
                    created[outcome.file] = stamped(outcome).created
                else:
                    yield stamped(outcome)
    if created:
        async with aclosing(_directly(list(created), namespace, embed, target)) as embedded:
            async for item in embedded:
                yield item if isinstance(item, Failed) else replace(item, created=item.created or created[item.file])


def _print(done: Sequence[Stamped], failures: Sequence[Failed], seconds: float) -> None:
    if done:
        console.stdout().print(report.by_type(done))
    failed = f", {len(failures):,} failed" if failures else ""
    console.say(f"{len(done):,} stamped{failed} in {seconds:.1f} s")


def _record(outcome: Stamped) -> dict[str, object]:
    return {
        "path": str(outcome.file.path),
        "placement": outcome.placement,
        "created": outcome.created,
        "stamp": console.as_json(outcome.stamp),
    }
