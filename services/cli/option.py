"""The arguments and options that several verbs share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,255}")


def stated(text: str) -> str:
    """The text of a path; refused where it is empty: a variable that was not set, which as a Path is the whole current folder."""
    if not text:
        raise typer.BadParameter("a path is empty")
    return text


def _path(text: str) -> Path:
    return Path(stated(text))


def name(text: str) -> str:
    """The parser of an argument that names something of a node's. Raises BadParameter."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("it is not UTF-8") from None
    return text


def _namespace(text: str) -> str:
    if not _NAMESPACE.fullmatch(text):
        raise typer.BadParameter("a namespace is 1 to 255 of A-Z a-z 0-9 _ . -")
    return text


Paths = Annotated[
    list[Path], typer.Argument(parser=_path, metavar="PATH", help="Files and folders.", show_default=False)
]
Namespace = Annotated[str, typer.Option("--namespace", callback=_namespace, help="The namespace of the ledger.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line on stdout, and nothing else there.")]
DataFolder = Annotated[
    Path,
    typer.Option(
        "--data",
        envvar="OMNIBRIDGE_DATA",
        parser=_path,
        metavar="PATH",
        help="The folder of the embedded PostgreSQL and the logs.",
    ),
]
DEFAULT_DATA = Path(".omnibridge")
