"""`omnibridge hash`: prints BLAKE3 digests as b3sum does. The bytes stay on this machine: no node is asked."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from services.cli import document
from services.cli.failure import FAILURE, Failed, complain
from services.cli.option import stated

app = typer.Typer(add_completion=False)
STDIN = "-"


@app.command(name="hash")
def hash_(
    paths: Annotated[
        list[str], typer.Argument(parser=stated, metavar="PATH", help="Files; - is stdin.", show_default=False)
    ],
) -> None:
    """Print the BLAKE3 digest of files, byte for byte as they are."""
    failed = False
    for path in paths:
        try:
            digest = _digest_of_stdin() if path == STDIN else document.digest(Path(path))
            print(line(digest, path), flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            failed = True
            complain(Failed.of(path, error))
    raise typer.Exit(FAILURE if failed else 0)


def _digest_of_stdin() -> str:
    if sys.stdin is None:
        # The caller closed it.
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return document.digest_of(sys.stdin.buffer)


def line(digest: str, path: str) -> str:
    r"""A digest and its path as b3sum prints them.

    A backslash begins the line when the path has one, or a line's end, which are escaped; what is not UTF-8 is U+FFFD.
    """
    readable = os.fsencode(path).decode("utf-8", "replace")
    escaped = readable.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == readable else chr(92)}{digest}  {escaped}"
