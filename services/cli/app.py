"""The verbs of the `omnibridge` command, and the one line that an error of theirs comes to.

A verb's module is imported when it is called and not before: `serve` is a node's process, which should not carry the rest.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from services.cli.failure import FAILURE, PROGRAM, CommandError

VERBS = (
    "demo",
    "up",
    "serve",
    "stamp",
    "validate",
    "hash",
    "stamps",
    "workflows",
    "state",
    "projections",
    "outbox",
    "aggregates",
    "migrate",
)
"""Each is the module of this name in services.cli.verb, whose `app` is the verb."""


class _Verbs(TyperGroup):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        command = typer.main.get_command(import_module(f"services.cli.verb.{cmd_name}").app)
        command.name = cmd_name
        return command


app = typer.Typer(cls=_Verbs, add_completion=False, no_args_is_help=False)


@app.callback(help="Stamps content with BLAKE3 metadata, and runs the mesh of nodes that does it.")
def _root() -> None:
    """Holds the help of the command as a whole."""


def run(arguments: Sequence[str] | None) -> int:
    """Run `arguments`, or those of this process; the exit status. Raises what the verb raises, and TyperException for bad usage."""
    command = typer.main.get_command(app)
    status = command(args=arguments and list(arguments), prog_name=PROGRAM, standalone_mode=False)
    return status if isinstance(status, int) else 0


def judge(error: Exception) -> tuple[str, int]:
    """The line that an error comes to, and the exit status."""
    match error:
        case TyperException():
            # pydantic, which typer checks values by, begins its messages so.
            message = " ".join(error.format_message().replace("Value error, ", "").split())
            return f"{message.rstrip('.')}; see: {PROGRAM} --help", error.exit_code
        case CommandError():
            return str(error), error.exit_code
        case OSError():
            return ": ".join(filter(None, (error.filename, error.strerror or str(error)))), FAILURE
        case _:
            last = traceback.extract_tb(error.__traceback__)[-1]
            return f"a bug of the command: {type(error).__name__}: {error} (at {last.filename}:{last.lineno})", FAILURE
