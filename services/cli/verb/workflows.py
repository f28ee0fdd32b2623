"""`omnibridge workflows`: submits files as workflows, and shows what became of one."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer

from omninode.bridge.orchestrator.v1 import orchestrator_pb2
from services.chassis.boundary import DEFAULT_NAMESPACE
from services.cli import console, interruption, report
from services.cli.failure import FAILURE, Failed, complain
from services.cli.option import AsJson, Namespace, Paths, name
from services.cli.target import ORCHESTRATOR, OrchestratorTarget
from services.cli.tree import File, find
from services.cli.workflow import Completed, Submitted, Workflows

app = typer.Typer(add_completion=False, help="Run files as durable workflows.")


@app.command()
def submit(
    paths: Paths,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until each workflow has ended.")] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    as_json: AsJson = False,
    orchestrator: OrchestratorTarget = ORCHESTRATOR.default,
) -> None:
    """Submit files, and folders as git sees them, as a workflow each. Run again, it finds the workflows that it made."""
    raise typer.Exit(interruption.run(_submit(paths, wait, namespace, as_json, orchestrator)))


@app.command()
def show(
    workflow_id: Annotated[str, typer.Argument(metavar="WORKFLOW_ID", parser=name, show_default=False)],
    as_json: AsJson = False,
    orchestrator: OrchestratorTarget = ORCHESTRATOR.default,
) -> None:
    """Show a workflow as it is now."""
    interruption.run(_show(workflow_id, as_json, orchestrator))


async def _submit(paths: Sequence[Path], wait: bool, namespace: str, as_json: bool, target: str) -> int:
    failures: list[Failed] = []

    def fail(failed: Failed) -> None:
        failures.append(failed)
        complain(failed)
        if as_json:
            console.emit(failed.as_json())

    files = find(paths, lambda path, error: fail(Failed.of(path, error)))
    began = time.monotonic()
    count = 0
    with console.progress("running" if wait else "submitting", len(files)) as advance:
        async with (
            ORCHESTRATOR.at(target) as stub,
            aclosing(_outcomes(Workflows(stub, namespace=namespace), files, wait)) as outcomes,
        ):
            async for outcome in outcomes:
                advance()
                if isinstance(outcome, Failed):
                    fail(outcome)
                    continue
                count += 1
                _print(outcome, as_json)
    if not as_json:
        failed = f", {len(failures):,} failed" if failures else ""
        ended = "completed" if wait else "submitted"
        console.say(f"{report.counted(count, 'workflow')} {ended}{failed} in {time.monotonic() - began:.1f} s")
    return FAILURE if failures else 0


async def _outcomes(
    workflows: Workflows, files: Sequence[File], wait: bool
) -> AsyncGenerator[Submitted | Completed | Failed, None]:
    if wait:
        async with aclosing(workflows.run(files)) as outcomes:
            async for outcome in outcomes:
                yield outcome
        return
    async with aclosing(workflows.submit(files)) as batches:
        async for submissions in batches:
            for submission in submissions:
                yield submission


def _print(outcome: Submitted | Completed, as_json: bool) -> None:
    path = str(outcome.file.path)
    if isinstance(outcome, Submitted):
        workflow_id, record = outcome.workflow_id, {"workflow_id": outcome.workflow_id, "created": outcome.created}
    else:
        workflow_id, record = outcome.workflow.workflow_id, {"workflow": console.as_json(outcome.workflow)}
    if as_json:
        console.emit({"path": path, **record})
    else:
        console.say(f"{workflow_id}  {path}")


async def _show(workflow_id: str, as_json: bool, target: str) -> None:
    async with ORCHESTRATOR.at(target) as stub:
        answer = await stub.GetWorkflow(orchestrator_pb2.GetWorkflowRequest(workflow_id=workflow_id))
    record = console.as_json(answer.workflow)
    if as_json:
        console.emit(record)
    else:
        console.stdout().print(report.fields(record))
