"""The door of the `omnibridge` command: how it ends, whatever happens. What it can do is app.py's."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from services.cli.failure import FAILURE, INTERRUPTED, complain
from services.cli.interruption import unwind_on_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status. Whatever goes wrong is one line on stderr."""
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone, as `head` does. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE


def _run(arguments: Sequence[str] | None) -> int:
    unwind_on_signals()
    # A stream that the caller closed is none to Python; what is written to it has no reader.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115 (it lives as long as the process)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal of another encoding must not end a command over the name of a file.
            stream.reconfigure(errors="backslashreplace")
    # What gRPC logs of a connection that is cut would be a line on stderr that is none of ours; it reads this when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from services.cli import app  # noqa: PLC0415 (it takes a good part of a second; Ctrl-C is to be quiet by then)

    try:
        status = app.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except Exception as error:
        line, status = app.judge(error)
        complain(line)
    return status


if __name__ == "__main__":
    sys.exit(main())
