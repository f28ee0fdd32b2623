"""A writer as a process of its own, to be killed: `python -m tests.aggregation_load TARGET SESSION JOURNAL RATE LOAD [frail]`.

A frail one dies when it is told of the session's end, before it has taken that.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import uvloop

from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from services.chassis.client import ClientSettings, connect
from tests.aggregation_load.journal import Journal
from tests.aggregation_load.load import Load
from tests.aggregation_load.writer import feed, nothing


def die() -> None:
    """kill -9 of this process."""
    os.kill(os.getpid(), signal.SIGKILL)


async def write(target: str, session: str, journal: str, rate: str, load: str, *frail: str) -> None:
    """Feeds the load, the fields of a Load as JSON, to the session's end."""
    # One attempt: gRPC must not send again by itself what the writer sends again by its journal.
    async with connect(target, ClientSettings(attempts=1)) as channel:
        stub, items = ReducerServiceStub(channel), Load(**json.loads(load))
        await feed(stub, session, items, Journal(Path(journal)), int(rate), at_end=die if frail else nothing)


if __name__ == "__main__":
    uvloop.run(write(*sys.argv[1:]))
