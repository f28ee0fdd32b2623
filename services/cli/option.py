"""The arguments and options that several verbs share."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,255}")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d|)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}


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


def moment(text: str) -> datetime:
    """The parser of a time. Raises BadParameter."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            "a time is written as 2026-03-01 or 2026-03-01T12:00:00Z; without a zone it is local"
        ) from None


def duration(text: str) -> timedelta:
    """The parser of a length of time. Raises BadParameter."""
    parts = _DURATION.fullmatch(text)
    if not parts:
        raise typer.BadParameter("a length of time is written as 500ms, 5s, 1m, 1h or 1d")
    return timedelta(seconds=float(parts[1]) * _UNITS[parts[2]])


def _namespace(text: str | None) -> str | None:
    if text is not None and not _NAMESPACE.fullmatch(text):
        raise typer.BadParameter("a namespace is 1 to 255 of A-Z a-z 0-9 _ . -")
    return text


Paths = Annotated[
    list[Path], typer.Argument(parser=_path, metavar="PATH", help="Files and folders.", show_default=False)
]
Namespace = Annotated[str, typer.Option("--namespace", callback=_namespace, help="The namespace of the ledger.")]
AnyNamespace = Annotated[
    str | None,
    typer.Option("--namespace", callback=_namespace, help="Only this namespace of the ledger.", show_default=False),
]
Key = Annotated[
    str, typer.Argument(metavar="KEY", parser=name, help="Such as workflow/WORKFLOW_ID.", show_default=False)
]
Consumer = Annotated[
    str, typer.Argument(metavar="CONSUMER", parser=name, help="The consumer's name.", show_default=False)
]
Collection = Annotated[
    str,
    typer.Option("--collection", parser=name, metavar="NAME", help="Only keys of this collection.", show_default=False),
]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many.")]
CreatedAfter = Annotated[
    datetime | None,
    typer.Option("--created-after", parser=moment, metavar="TIME", help="Only what was made then or later."),
]
CreatedBefore = Annotated[
    datetime | None, typer.Option("--created-before", parser=moment, metavar="TIME", help="Only what was made earlier.")
]
Cursor = Annotated[
    str,
    typer.Option(
        "--cursor",
        parser=name,
        metavar="CURSOR",
        help="Go on behind the place that an earlier watch gave.",
        show_default=False,
    ),
]
FromBeginning = Annotated[bool, typer.Option("--from-beginning", help="Begin with the oldest that is kept.")]
Count = Annotated[
    int | None, typer.Option("--count", min=1, metavar="N", help="End after so many.", show_default=False)
]
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
