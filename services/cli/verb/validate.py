"""`omnibridge validate`: says of files and folders whether their stamps are true."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer

from services.chassis.boundary import DEFAULT_NAMESPACE
from services.cli import console, interruption, report
from services.cli.failure import FAILURE, Failed, complain
from services.cli.option import AsJson, Namespace, Paths
from services.cli.target import STAMPING, StampingTarget
from services.cli.tree import find
from services.cli.validation import Validated, Validator, Verdict

app = typer.Typer(add_completion=False)


@app.command()
def validate(
    paths: Paths,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on a file without a stamp too.")] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    as_json: AsJson = False,
    target: StampingTarget = STAMPING.default,
) -> None:
    """Validate the stamps of files, and of folders as git sees them.

    Fails if a stamp is not true of its file. A file that holds no stamp and whose content the ledger does not know is reported.
    """
    raise typer.Exit(interruption.run(_validate(paths, strict, namespace, as_json, target)))


async def _validate(paths: Sequence[Path], strict: bool, namespace: str, as_json: bool, target: str) -> int:
    failures: list[Failed] = []

    def fail(failed: Failed) -> None:
        failures.append(failed)
        complain(failed)
        if as_json:
            console.emit(failed.as_json())

    files = find(paths, lambda path, error: fail(Failed.of(path, error)))
    validated: list[Validated] = []
    with console.progress("validating", len(files)) as advance:
        async with (
            STAMPING.at(target) as stub,
            aclosing(Validator(stub, namespace=namespace).validate(files)) as validations,
        ):
            async for validation in validations:
                advance()
                if isinstance(validation, Failed):
                    fail(validation)
                    continue
                validated.append(validation)
                _print(validation, as_json)
    if not as_json:
        console.say(report.verdicts(validated) + (f", {len(failures):,} failed" if failures else ""))
    bad = {Verdict.INVALID, Verdict.UNSTAMPED} if strict else {Verdict.INVALID}
    return FAILURE if failures or any(item.verdict in bad for item in validated) else 0


def _print(validated: Validated, as_json: bool) -> None:
    if as_json:
        found = console.as_json(validated.response)
        console.emit({"path": str(validated.file.path), "verdict": validated.verdict, **found})
        return
    for line in report.findings(validated):
        console.say(line)
