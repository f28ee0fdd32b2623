"""Draws something on the terminal again and again while it changes; what it shows is the caller's."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from rich.console import RenderableType
from rich.live import Live

from services.cli import console

PERIOD_SECONDS = 0.1
"""Between two drawings: faster than anyone reads, and little work."""


@asynccontextmanager
async def drawn(subject: RenderableType) -> AsyncIterator[Callable[[], None]]:
    """Keeps `subject` drawn while the block runs, and leaves it as it is then; what this gives is called when it has changed."""
    changed = asyncio.Event()
    with Live(subject, console=console.stdout(), auto_refresh=False, redirect_stderr=sys.stderr.isatty()) as live:

        async def redraw() -> None:
            while True:
                await changed.wait()
                changed.clear()
                live.refresh()
                await asyncio.sleep(PERIOD_SECONDS)

        drawing = asyncio.create_task(redraw())
        try:
            yield changed.set
        finally:
            drawing.cancel()
            await asyncio.gather(drawing, return_exceptions=True)
