"""A session's part as a writer would commit it: real cells, their deltas and checkpoints, without a stream and without a clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from services.reducer.aggregation.cell import Cell, Counting, Stage
from services.reducer.aggregation.config import Config, Strategy, Tumbling
from services.reducer.aggregation.durable import (
    Delta,
    DeltaRef,
    Head,
    Progress,
    Shelf,
    checkpoint_to_bytes,
    pack_to_bytes,
)
from services.reducer.aggregation.pane import CellId, Pane, Timing
from services.reducer.aggregation.session import Part
from services.reducer.aggregation.storage import digest_of

SIZE = 10
LATENESS = 5
CONFIG = Config(
    strategies=(Strategy.FILE_TYPE_GROUPING,),
    by_namespace=False,
    window=Tumbling(SIZE),
    watermark_delay=0,
    allowed_lateness=LATENESS,
    early_period=0,
    retention=40,
    max_wait=0,
    size_bounds=(),
    custom_fold="",
    exact_distinct=3,
)


def cell_id(window: int, key: str) -> CellId:
    return (Strategy.FILE_TYPE_GROUPING, window * SIZE, window * SIZE + SIZE, "", key)


@dataclass
class ScriptedPart:
    """What a part holds, and what it has committed; blobs by digest."""

    session: str = "uploads"
    config: Config = CONFIG
    version: int = 0
    cells: dict[CellId, Cell] = field(default_factory=dict)
    watermark: int | None = None
    head: Head | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)
    deltas: list[tuple[int, Delta]] = field(default_factory=list)

    @property
    def part(self) -> Part:
        assert self.head is not None
        return Part(self.version, self.head, datetime.fromtimestamp(self.version, UTC))

    def commit(
        self, items: Iterable[tuple[CellId, int]] = (), watermark: int | None = None, *, writer: str = "one"
    ) -> Delta:
        """Counts items of so many bytes, moves the watermark, and commits what changed."""
        changed: dict[CellId, Cell] = {}
        for identity, size in items:
            if self.watermark is not None and identity[2] + self.config.allowed_lateness <= self.watermark:
                continue  # late
            cell = self.cells.setdefault(identity, Cell(identity, Counting(self.config.exact_distinct, None)))
            cell.add(size, identity[4], f"workflow {size}", "COMPLETED")
            changed[identity] = cell
        self.watermark = max(filter(None, (self.watermark, watermark)), default=self.watermark)
        for identity, cell in self.cells.items():
            stage = self._stage(identity)
            if stage != cell.stage:
                cell.stage = stage
                changed[identity] = cell
        panes: list[Pane] = []
        for identity, cell in changed.items():
            cell.revision += 1
            if cell.stage != Stage.OPEN:
                panes.append(cell.pane(self._timing(identity), cell.stage == Stage.FINAL))
        delta = Delta(records=[cell.delta() for cell in changed.values()], panes=panes)
        self.version += 1
        before = self.head or Head(self.session, self.config, writer, False, 0, Progress(), "", 0, ())
        references = before.deltas
        if delta:
            (blob,) = delta.to_blobs()
            references = (*references, DeltaRef(digest_of(blob), self.version, self.version))
            self.blobs[digest_of(blob)] = blob
            self.deltas.append((self.version, Delta.from_bytes(blob)))
        progress = Progress(self.watermark, sum(cell.count for cell in self.cells.values()), 0, 0, 0)
        self.head = replace(before, writer=writer, offset=self.version, progress=progress, deltas=references)
        return delta

    def checkpoint(self, keep: int = 1) -> None:
        """Commits a checkpoint of all cells, keeping so many deltas before it."""
        assert self.head is not None
        self.version += 1
        pack = pack_to_bytes({"w0": [cell.record() for cell in self.cells.values()], "stale": [["no record"]]})
        shelf = checkpoint_to_bytes({"w0": Shelf([digest_of(pack)], 0)})
        self.blobs |= {digest_of(pack): pack, digest_of(shelf): shelf}
        kept = self.head.deltas[-keep:] if keep else ()
        self.deltas = [(version, delta) for version, delta in self.deltas if any(version == it.version for it in kept)]
        self.head = replace(self.head, checkpoint=digest_of(shelf), checkpoint_version=self.version, deltas=kept)

    def copies(self) -> dict[CellId, Cell]:
        """The cells of the checkpoint, as a reader builds them."""
        counting = Counting(self.config.exact_distinct, None)
        return {identity: Cell.of(cell.record(), counting) for identity, cell in self.cells.items()}

    def _stage(self, identity: CellId) -> Stage:
        end = identity[2]
        if self.watermark is None or self.watermark < end:
            return Stage.OPEN
        return Stage.FINAL if self.watermark >= end + self.config.allowed_lateness else Stage.ON_TIME

    def _timing(self, identity: CellId) -> Timing:
        shown = any(pane.cell == identity for _, delta in self.deltas for pane in delta.panes)
        return Timing.REVISED if shown else Timing.ON_TIME
