"""The one writer of a session, or of one part of the mesh's own: folds items in memory, and commits what came of them.

What waits for what is `stream`'s and `intake`'s: here is how a session is taken up, committed, checkpointed, evicted and left. A
writer that another has taken over raises SessionTakenOver at its next commit, and what it holds in memory is worth nothing then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, groupby
from operator import attrgetter
from typing import NamedTuple

from omninode.bridge.store.v1 import store_pb2
from services.chassis.errors import NotFound
from services.reducer.aggregation import durable
from services.reducer.aggregation.aggregation import Aggregation
from services.reducer.aggregation.config import Config
from services.reducer.aggregation.contract import SessionStage, Terms
from services.reducer.aggregation.durable import Delta, DeltaRef, Head, Progress, Rejected, Shelf
from services.reducer.aggregation.error import SessionFinished, SessionTakenOver, SessionTooLarge
from services.reducer.aggregation.fold import CustomFold
from services.reducer.aggregation.item import Columns
from services.reducer.aggregation.pane import Pane
from services.reducer.aggregation.session import Part
from services.reducer.aggregation.storage import Storage, digest_of, releasable

_CROWDED_SECONDS = 1.0
"""Between two checkpoints for want of memory, which write, evict and may read back whole windows."""
_DUE_CELLS = 20_000
"""Cells that come due and are committed together: a window of a hundred thousand would take twice its memory while it closes."""
_SLICE_ITEMS = 1000
"""Items between two turns of the event loop: some milliseconds."""
_OPENINGS = 5
"""Times that a session is taken up anew because another did so at the same moment."""


class Committed(NamedTuple):
    """What one commit made true."""

    offset: int
    """Input is counted up to here."""
    watermark: int | None
    panes: Sequence[Pane]
    early: Sequence[Pane]
    rejected: Sequence[Rejected]
    is_part: bool = False
    """Whether more is due, which another commit is to hold."""


class Writer:
    """One session's state in memory, and its key in the store. `now` is the event loop's time in seconds."""

    def __init__(
        self,
        storage: Storage,
        key: str,
        part: Part,
        *,
        fold: CustomFold | None,
        terms: Terms,
        guards: Sequence[store_pb2.Guard],
        now: Callable[[], float],
        bound: Callable[[], int],
    ) -> None:
        """Of a key that this writer has taken up; `_restore` comes next."""
        self._storage = storage
        self._key = key
        self.part = part
        self._terms = terms
        self._guards = guards
        self._now = now
        self._bound = bound
        self._fold = fold
        self._lock = asyncio.Lock()
        """Held while the state in memory is looked at or changed; not while the store is asked to commit."""
        self._shelves: Mapping[str, Shelf] = {}
        """As the last checkpoint has them."""
        self._referred: set[str] = set()
        """Blobs to which the key refers."""
        self._aggregation = Aggregation(self.head.config, fold, self.head.progress)
        self._offset = self.head.offset
        self._newest = self.head.newest
        self._invalid = self.head.progress.invalid_count
        self._rejected: list[Rejected] = []
        self._continues = False
        """More was due at the last commit than it could hold."""
        self._is_torn = False
        """A message was counted in part: what is in memory must not be committed."""
        self._is_lost = False
        """A commit failed: what is in memory is not what the store has."""
        self._checkpointed_at = now()
        self._commits = 0
        """Since the last checkpoint."""
        self.stage = SessionStage.IDLE
        if not self.head.finished:
            self._move("opened")

    @classmethod
    async def open(
        cls,
        storage: Storage,
        key: str,
        head_of: Callable[[Part | None], Head],
        *,
        fold_of: Callable[[Config], CustomFold | None],
        terms: Terms,
        guards: Sequence[store_pb2.Guard] = (),
        now: Callable[[], float],
        bound: Callable[[], int],
    ) -> Writer:
        """Takes a session up, from whoever wrote it. Raises what `head_of` and `fold_of` raise, and SessionTakenOver.

        `head_of` gives what the head is to be, of what the key holds; a session that is finished stays as it is. `bound` gives the
        bytes that it may take in memory.
        """
        for _ in range(_OPENINGS):
            part = await storage.find(key)
            head = head_of(part)
            fold = fold_of(head.config)
            if part is None or not head.finished:
                try:
                    part = await storage.commit(
                        key,
                        part.version if part else 0,
                        head,
                        action_type="opened",
                        state=SessionStage.AGGREGATING,
                        blobs={},
                        guards=guards,
                    )
                except SessionTakenOver:
                    # Somebody else took it up in between. Who comes last writes.
                    continue
            writer = cls(storage, key, part, fold=fold, terms=terms, guards=guards, now=now, bound=bound)
            try:
                await writer._restore()
            except NotFound:
                # Somebody else wrote on meanwhile, and released what this head names.
                continue
            return writer
        raise SessionTakenOver(metadata={"session": durable.session_of(key)})

    async def answers_after(self, offset: int) -> AsyncIterator[Committed]:
        """What was answered to input after this offset, as far as it is kept, commit by commit."""
        for _, references in groupby(self.head.deltas, key=attrgetter("version")):
            pieces = list(references)
            if pieces[0].offset > offset:
                try:
                    deltas = [Delta.from_bytes(await self._storage.blob(piece.digest)) for piece in pieces]
                except NotFound as error:
                    raise SessionTakenOver(metadata={"session": self.head.session}) from error
                yield Committed(
                    min(pieces[0].offset, self.head.offset),
                    None,
                    list(chain.from_iterable(delta.panes for delta in deltas)),
                    (),
                    list(chain.from_iterable(delta.rejected for delta in deltas)),
                )

    @property
    def head(self) -> Head:
        """As it is committed."""
        return self.part.head

    @property
    def offset(self) -> int:
        """Input is taken in up to here; committed is what the head says."""
        return self._offset

    @property
    def size_bytes(self) -> int:
        """About what the session takes in memory."""
        return self._aggregation.size_bytes

    @property
    def progress(self) -> Progress:
        """How far it has come, with what is not committed yet."""
        return self._aggregation.progress._replace(invalid_count=self._invalid)

    async def add(
        self, columns: Columns, offsets: Sequence[int], last_offset: int, invalid: Sequence[Rejected] = ()
    ) -> None:
        """Counts items; input is then taken in up to `last_offset`. Raises SessionFinished, SessionTooLarge."""
        if self.head.finished:
            raise SessionFinished(metadata={"session": self.head.session})
        rejected = list(invalid)
        # Held for the whole message: a commit in between would hold items that its offset does not speak of.
        async with self._lock:
            try:
                for start in range(0, len(offsets), _SLICE_ITEMS):
                    part = Columns._make(column[start : start + _SLICE_ITEMS] for column in columns)
                    await self._load(self._aggregation.shelves_of(part))
                    late = self._aggregation.add(part)
                    rejected += [Rejected(offsets[start + item.place], item.watermark, item.counted) for item in late]
                    self._check_size()
                    await asyncio.sleep(0)
            except BaseException:
                self._is_torn = True
                raise
            self._invalid += len(rejected) - sum(item.watermark is not None for item in rejected)
            self._rejected += sorted(rejected) if invalid else rejected
            self._newest = max((self._newest, *columns.times))
            self._offset = last_offset

    async def advance(self, time: int, offset: int) -> None:
        """Moves the watermark to `time` at least. Raises SessionFinished."""
        if self.head.finished:
            raise SessionFinished(metadata={"session": self.head.session})
        async with self._lock:
            self._aggregation.advance(time)
            self._offset = offset

    async def commit(self, *, early: bool = False, finish: bool = False, leave: bool = False) -> Committed:
        """Commits what was taken in. Raises SessionTakenOver.

        `early` asks for panes of open windows, `finish` ends the session, `leave` says that nobody writes after this. Where more
        comes due at once than is to be in memory, a part of it is committed: `is_part` says so, and to call again.
        """
        async with self._lock:
            if self._is_torn:
                # What was acknowledged stands; the rest is sent again to whoever takes the session up.
                return Committed(self.head.offset, self.head.progress.watermark, (), (), ())
            if finish:
                self._aggregation.finish()
            lacks_room = await self._load_due()
            change = self._aggregation.take(early=early, limit=_DUE_CELLS)
            is_part = lacks_room or change.is_part
            rejected, self._rejected = self._rejected, []
            delta = change.delta._replace(rejected=rejected)
            finishes, leaves = finish and not is_part, leave and not is_part
            head = replace(
                self.head,
                writer="" if leaves else self.head.writer,
                finished=self.head.finished or finishes,
                offset=self._offset,
                progress=self.progress,
                newest=self._newest,
            )
            blobs = {digest_of(blob): blob for blob in delta.to_blobs()}
            # An end comes after all offsets, so that it is answered again to whoever has seen the last of them acknowledged; so
            # does what was due before.
            offset = head.offset + 1 if finish or self._continues else head.offset
            self._continues = is_part
            references = (DeltaRef(digest, self.part.version + 1, offset) for digest in blobs)
            head = replace(head, deltas=(*head.deltas, *references))
            shelves = self._shelves
            if self._is_checkpoint_due(head, leaves=leaves, lacks_room=lacks_room):
                head, shelves, packed = await self._checkpoint(head)
                blobs |= packed
        if head != self.head:
            await self._commit(head, shelves, blobs, "finished" if finishes else "left" if leaves else "aggregated")
            await self._evict()
        return Committed(head.offset, head.progress.watermark, delta.panes, change.early, rejected, is_part)

    async def leave(self) -> None:
        """Says that nobody writes any more, without what is not committed. Raises SessionTakenOver."""
        if self.head.writer and not self.head.finished and not self._is_lost:
            await self._commit(replace(self.head, writer=""), self._shelves, {}, "left")

    async def _commit(
        self, head: Head, shelves: Mapping[str, Shelf], blobs: Mapping[str, bytes], action_type: str
    ) -> None:
        needed = _referred(head, shelves)
        released = releasable(self._referred, needed)
        self._move("due")
        # Until it is known what became of it: what is in memory may be ahead of the store for good.
        self._is_lost = True
        self.part = await self._storage.commit(
            self._key,
            self.part.version,
            head,
            action_type=action_type,
            state=SessionStage.AGGREGATING if head.writer else SessionStage.IDLE,
            blobs=blobs,
            released=released,
            guards=self._guards,
        )
        self._is_lost = False
        if head.checkpoint_version == self.part.version:
            self._commits = 0
            self._checkpointed_at = self._now()
        self._shelves = shelves
        self._referred = (self._referred | blobs.keys()) - set(released)
        self._commits += 1
        self._move("committed")
        if not head.writer:
            self._move("left")

    async def _restore(self) -> None:
        """Brings the state in memory to where the head is; shelves are read when they are touched."""
        head = self.head
        if head.checkpoint:
            self._shelves = durable.checkpoint_from_bytes(await self._storage.blob(head.checkpoint))
        self._referred = _referred(head, self._shelves)
        evicted = {name: shelf.deadline for name, shelf in self._shelves.items()}
        self._aggregation = Aggregation(head.config, self._fold, head.progress, evicted)
        for reference in head.pending(head.checkpoint_version):
            delta = Delta.from_bytes(await self._storage.blob(reference.digest))
            await self._load(self._aggregation.shelves_of_records(delta.records, delta.removed))
            self._aggregation.apply(delta.records, delta.removed)
            self._commits += 1
        self._continues = bool(self._aggregation.due_shelves())

    async def _load_due(self) -> bool:
        """Reads what is due and evicted back, the earliest first, as much as memory takes; whether some is left."""
        due = self._aggregation.due_shelves()
        for place, name in enumerate(sorted(due, key=lambda name: (self._shelves[name].deadline or 0, name))):
            # One at least: or nothing would ever come of what is left.
            if place and self.size_bytes > self._bound():
                return True
            await self._load([name])
        return False

    async def _load(self, names: Iterable[str]) -> None:
        """Reads evicted shelves back."""
        packs: dict[str, durable.Pack] = {}
        for name in sorted(names):
            records: list[durable.Record] = []
            for digest in self._shelves[name].packs:
                if digest not in packs:
                    packs[digest] = durable.pack_from_bytes(await self._storage.blob(digest))
                records += packs[digest][name]
            self._aggregation.put(name, records)

    def _is_checkpoint_due(self, head: Head, *, leaves: bool, lacks_room: bool) -> bool:
        pending = len(head.pending(head.checkpoint_version))
        if pending >= self._terms.checkpoint_commits:
            # Also where no cell changed: what was refused is in the deltas, too.
            return True
        if not self._aggregation.dirty:
            return False
        since = self._now() - self._checkpointed_at
        return (
            self._commits + 1 >= self._terms.checkpoint_commits
            or since >= self._terms.checkpoint_seconds
            or ((lacks_room or since >= _CROWDED_SECONDS) and self.size_bytes > self._bound())
            or (leaves and pending > 1)
            or head.finished
        )

    async def _checkpoint(self, head: Head) -> tuple[Head, dict[str, Shelf], dict[str, bytes]]:
        """The head with a checkpoint of all that is in memory, its shelves, and its new blobs."""
        aggregation = self._aggregation
        for name in aggregation.expired():
            aggregation.forget(name)
        deadlines = aggregation.shelves()
        dirty = sorted(aggregation.dirty)
        shelves = {name: shelf for name, shelf in self._shelves.items() if name in deadlines and name not in dirty}
        packs: dict[str, list[str]] = {name: [] for name in dirty}
        blobs: dict[str, bytes] = {}
        # Final cells apart from the others: they stay while the others are written anew.
        for final in (False, True):
            names = [name for name in dirty if (deadlines[name] is None) is final]
            for pack in durable.packed((name, aggregation.records_of(name)) for name in names):
                blob = durable.pack_to_bytes(pack)
                digest = digest_of(blob)
                blobs[digest] = blob
                for name in pack:
                    packs[name].append(digest)
                await asyncio.sleep(0)
        shelves |= {name: Shelf(digests, deadlines[name]) for name, digests in packs.items()}
        aggregation.checkpointed(dirty)
        blob = durable.checkpoint_to_bytes(shelves)
        digest = digest_of(blob)
        blobs[digest] = blob
        dropped = [delta for delta in head.deltas if delta.version <= head.checkpoint_version]
        head = replace(
            head,
            checkpoint=digest,
            checkpoint_version=self.part.version + 1,
            deltas=head.deltas[len(dropped) :],
            released_offset=dropped[-1].offset if dropped else head.released_offset,
        )
        return head, shelves, blobs

    async def _evict(self) -> None:
        """Drops what is final and kept, and of the rest the coldest, where it is too much."""
        async with self._lock:
            shelves = self._aggregation.shelves()
            for name in list(self._aggregation.coldest()):
                if shelves[name] is None or self.size_bytes > self._bound():
                    self._aggregation.evict(name)

    def _check_size(self) -> None:
        # A commit evicts what it can; twice the bound is what one window and what gathers until then may take.
        limit = 2 * self._bound()
        if self.size_bytes > limit:
            raise SessionTooLarge(metadata={"session": self.head.session, "limit_bytes": str(limit)})

    def _move(self, on: str) -> None:
        self.stage = self._terms.moves.get((self.stage, on), self.stage)


def _referred(head: Head, shelves: Mapping[str, Shelf]) -> set[str]:
    """The blobs that a head needs, with the shelves of its checkpoint."""
    packs = chain.from_iterable(shelf.packs for shelf in shelves.values())
    return {delta.digest for delta in head.deltas} | set(packs) | ({head.checkpoint} - {""})
