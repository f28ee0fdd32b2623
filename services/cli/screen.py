"""Follows the panes of a session on a terminal, as a table that redraws. What the table looks like is board.py's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from services.chassis.errors import BridgeError
from services.cli import aggregate_report
from services.cli.board import Board
from services.cli.failure import complain
from services.cli.following import Patience
from services.cli.live import drawn
from services.cli.target import REDUCER
from services.cli.watch import watch as watch_feed

LOOK_SECONDS = 1.0
"""Between two looks at the session while its panes are followed: the feed does not say where the watermark is."""


class _Screen:
    """The board as the face of a watch."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.redraw: Callable[[], None] = lambda: None
        self.last_word = ""

    def show(self, item: pb.Pane) -> None:
        self._board.put(item)
        self.redraw()

    def note(self, line: str) -> None:
        self._board.status = line
        self.redraw()

    complain = note

    def leave(self, line: str) -> None:
        self.last_word = line


async def watch(request: pb.WatchAggregatesRequest, count: int | None, target: str) -> None:
    """Show the panes of a session as they change, at most `count` of them, and below the table the cursor to resume with."""
    board = Board(request.session)
    screen = _Screen(board)
    looked = -math.inf

    async def look(
        stub: ReducerServiceStub, _patience: Patience, _response: pb.WatchAggregatesResponse, _printed: int
    ) -> None:
        nonlocal looked
        if time.monotonic() - looked < LOOK_SECONDS:
            return
        # A session need not be there yet, and a node that is away is the feed's to notice.
        with suppress(BridgeError):
            board.session = (await stub.GetSession(pb.GetSessionRequest(session=request.session))).session
        screen.redraw()
        looked = time.monotonic()

    try:
        async with drawn(board) as screen.redraw:
            await watch_feed(
                REDUCER,
                target,
                lambda stub: stub.WatchAggregates,
                request,
                aggregate_report.pane,
                as_json=False,
                count=count,
                face=screen,
                settle=look,
            )
    finally:
        # Below the table, not above it.
        if screen.last_word:
            complain(screen.last_word)
