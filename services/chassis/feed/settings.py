"""How a node shows its feeds."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class FeedSettings(BaseModel):
    """How a node shows its feeds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    checkpoint_seconds: float = Field(5.0, gt=0)
    """A watcher hears something at least this often, so that it can tell a quiet log from a broken connection."""
    poll_seconds: float = Field(1.0, gt=0)
    """How often the log is read although nobody said that it grew: the delay when PostgreSQL's notifications do not come."""
    memory_bytes: int = Field(16 * 1024 * 1024, gt=0)
    """What is kept of the log's end for the watchers; some seconds of a busy log. Who is farther behind is served from the
    database."""
    read_rows: int = Field(2_000, gt=500)
    """Rows of a partition in one read; more than the 500 that one offset may have."""
    read_bytes: int = Field(1024 * 1024, gt=0)
    """Of all partitions in one read; one offset of each is always read whole. A slow watcher holds on to so much."""
    message_bytes: int = Field(256 * 1024, gt=0, le=4 * 1024 * 1024)
    """Items of one response, and what a watcher of the past reads at once; one item always fits. Enough that a message's own cost
    does not show; a slow watcher holds on to some of them."""
    concurrent_reads: int = Field(2, gt=0)
    """Watchers that read the database at once: the pool has other uses."""
    max_watchers: int = Field(2_000, gt=0)
    """Of one feed; each holds a stream open, and one that is slow about a MiB of what it has not taken yet."""
