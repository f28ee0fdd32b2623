"""The items that are fed: as many as are asked for, the same for the same seed, each known by its offset. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import NamedTuple

from google.protobuf.duration_pb2 import Duration

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb

SECOND = 1_000_000
BATCH = 500
"""Items of a message, and of what is made from one seed: so a stream can be resumed anywhere at little cost."""
_BEGIN = 1_704_067_200 * SECOND
"""2024-01-01: past, whatever the clock of a test's machine says."""
_SIZES = (700, 20_000, 3_000_000)
_STATES = ("", "PENDING", "COMPLETED", "FAILED")


class Fate(Enum):
    """What is to become of an item."""

    COUNTED = "counted"
    LATE = "late"
    """All its windows were final long before."""
    INVALID = "invalid"
    """Its size is negative."""


class Item(NamedTuple):
    """An item and what is to become of it."""

    offset: int
    time: int
    """Microseconds since 1970."""
    size: int
    namespace: str
    file_type: str
    workflow_id: str
    workflow_state: str
    fate: Fate


@dataclass(frozen=True, slots=True)
class Load:
    """A stream of items, by offsets from 1. Times are microseconds."""

    seed: int
    count: int
    step: int = SECOND // 200
    """From one item to the next in event time."""
    disorder: int = 2 * SECOND
    """How much earlier an item may be; at most the lateness that is allowed, so that nobody is late by it."""
    lateness: int = 5 * SECOND
    window: int = 5 * SECOND
    hop: int = 0
    """From one window to the next where they overlap; 0 where they do not."""
    keys: int = 100
    late_share: float = 0.0
    """Of the items that are late for certain; there are none in the first fifth."""
    invalid_share: float = 0.0
    strategies: tuple[pb.AggregationStrategy.ValueType, ...] = (
        pb.AGGREGATION_STRATEGY_NAMESPACE_GROUPING,
        pb.AGGREGATION_STRATEGY_FILE_TYPE_GROUPING,
    )
    size_bounds: tuple[int, ...] = (1_024, 1_048_576)
    exact_distinct: int = 256

    def config(self) -> pb.AggregationConfig:
        """How the items are to be aggregated. Final panes stay for as long as they may."""
        config = pb.AggregationConfig(
            strategies=self.strategies,
            watermark_delay=Duration(),
            allowed_lateness=_duration(self.lateness),
            early_period=_duration(SECOND // 5),
            retention=Duration(seconds=12 * 3600),
            max_wait=_duration(SECOND // 20),
            size_bounds=self.size_bounds,
            exact_distinct=self.exact_distinct,
        )
        if self.hop:
            config.hopping.size.CopyFrom(_duration(self.window))
            config.hopping.hop.CopyFrom(_duration(self.hop))
        else:
            config.tumbling.size.CopyFrom(_duration(self.window))
        return config

    def items(self, first: int = 1) -> Iterator[list[Item]]:
        """The items from this offset on, in messages' worth."""
        for number in range((first - 1) // BATCH, -(-self.count // BATCH)):
            if batch := self._batch(number)[max(0, first - 1 - number * BATCH) :]:
                yield batch

    def _batch(self, number: int) -> list[Item]:
        chance = Random(f"{self.seed}/{number}")
        begin = number * BATCH + 1
        return [self._item(offset, chance) for offset in range(begin, min(begin + BATCH, self.count + 1))]

    def _item(self, offset: int, chance: Random) -> Item:
        fate, time, size = Fate.COUNTED, _BEGIN + offset * self.step, int(chance.random() * chance.choice(_SIZES))
        luck = chance.random()
        if luck < self.late_share and offset > self.count // 5:
            fate, time = Fate.LATE, _BEGIN - self.disorder - self.lateness - 3 * self.window
        elif luck > 1 - self.invalid_share:
            fate, size = Fate.INVALID, -1
        return Item(
            offset,
            time - int(chance.random() * self.disorder),
            size,
            f"namespace-{int(chance.random() * self.keys)}",
            f"type-{int(chance.random() * 8)}",
            f"workflow-{int(chance.random() * 40)}",
            chance.choice(_STATES),
            fate,
        )


def to_columns(items: Sequence[Item]) -> pb.ItemColumns:
    """Items of consecutive offsets as a message."""
    places: dict[str, int] = {}

    def column(texts: Sequence[str]) -> list[int]:
        return [places.setdefault(text, len(places)) for text in texts]

    columns = pb.ItemColumns(
        first_offset=items[0].offset,
        event_times_us=[item.time for item in items],
        sizes_bytes=[item.size for item in items],
        namespaces=column([item.namespace for item in items]),
        file_types=column([item.file_type for item in items]),
        workflow_ids=column([item.workflow_id for item in items]),
        workflow_states=column([item.workflow_state for item in items]),
    )
    columns.texts.extend(places)
    return columns


def _duration(microseconds: int) -> Duration:
    seconds, rest = divmod(microseconds, SECOND)
    return Duration(seconds=seconds, nanos=rest * 1000)
