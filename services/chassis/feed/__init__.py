"""Feeds: the one implementation of every Watch. What is followed is a node's log; what is shown of it is a view's.

A feed has one reader of its log, however many watch. What it reads stays in memory for a while, as chunks that are encoded once
for all watchers with equal filters. A watcher is a place in that row of chunks: one that is too slow, or begins in the past, finds
its place gone and reads the database until it is back. What it holds itself is what it was sent and has not taken yet: a page, or a
chunk's responses, so about a MiB.

The log's rows must become visible in the order of their offsets, partition by partition; see docs/commit-log.md.
"""

from services.chassis.feed.feed import Feed, FeedMetrics, TooManyWatchers
from services.chassis.feed.log import Bounds, Log, Page, Position, Row, View
from services.chassis.feed.settings import FeedSettings

__all__ = [
    "Bounds",
    "Feed",
    "FeedMetrics",
    "FeedSettings",
    "Log",
    "Page",
    "Position",
    "Row",
    "TooManyWatchers",
    "View",
]
