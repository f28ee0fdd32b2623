"""The durable form of a session: what stands in its key's state and in its blobs. Pure.

A session is a key, `aggregate/<session>`; the mesh's own has a key for each partition. Its state is a `Head`: how far the input is
counted, and the digests of the rest. Each commit brings a `Delta`: the cells that changed, and what was answered. Now and then a
`Checkpoint` says in which packs the records of all cells are, shelf by shelf; the deltas before it are then needed no more. So a
session is its checkpoint and the deltas after it, and what is not in memory is a shelf in a pack.

A record is a cell as `cell` writes and reads it: a list that begins with the parts of its CellId.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

from pydantic_core import from_json, to_json

from services.reducer.aggregation.config import Config, Gap, Hopping, Strategy, Tumbling
from services.reducer.aggregation.pane import CellId, Count, Pane, Timing

COLLECTION = "aggregate"
SCHEMA_VERSION = 1
OWN_SESSION = "workflows"
"""The mesh's own: fed by the intents of workflows that have ended, a part for each partition of the store."""

Record: TypeAlias = Sequence[Any]

_PIECE_RECORDS = 20_000
"""Records, and panes, of one blob: some MiB, below what the store takes, and read in some hundred ms."""


def key_of(session: str, part: int | None = None) -> str:
    """The key of a session, or of one part of it."""
    return f"{COLLECTION}/{session}" if part is None else f"{COLLECTION}/{session}/{part}"


def session_of(key: str) -> str:
    """The session of a key."""
    return key.split("/")[1]


class Progress(NamedTuple):
    """How far a session has come."""

    watermark: int | None = None
    """In microseconds; None before the first item."""
    item_count: int = 0
    late_count: int = 0
    invalid_count: int = 0
    open_windows: int = 0


class DeltaRef(NamedTuple):
    """Where a commit's delta is, or a piece of it: those of one version belong together."""

    digest: str
    version: int
    """The version that the commit made."""
    offset: int
    """The offset up to which input is counted with it."""


@dataclass(frozen=True, slots=True)
class Head:
    """The state of a session's key."""

    session: str
    config: Config
    writer: str
    """The id of the stream that writes; empty when it has ended cleanly."""
    finished: bool
    offset: int
    """Input is counted up to this offset."""
    progress: Progress
    checkpoint: str
    """The digest of the checkpoint; empty where there is none yet."""
    checkpoint_version: int
    """Up to this version the checkpoint holds everything; 0 where there is none."""
    deltas: tuple[DeltaRef, ...]
    """In order. Those up to `checkpoint_version` are kept for what was answered then."""
    released_offset: int = 0
    """What was answered up to this offset is not kept any more."""
    newest: int = 0
    """The newest event time of an item that came, in microseconds."""

    def pending(self, after: int) -> list[DeltaRef]:
        """The deltas of the versions after this one."""
        return [delta for delta in self.deltas if delta.version > after]

    def to_json(self) -> str:
        """The state as text."""
        document = asdict(self)
        document["config"] = _config_document(self.config)
        return to_json(document).decode()

    @classmethod
    def from_json(cls, text: str) -> Head:
        """The head that `to_json` wrote; trusted."""
        document = from_json(text)
        return cls(
            **document
            | {
                "config": _config(document["config"]),
                "progress": Progress(*document["progress"]),
                "deltas": tuple(DeltaRef(*delta) for delta in document["deltas"]),
            }
        )


class Rejected(NamedTuple):
    """An item that was not counted, or not in all its windows."""

    offset: int
    watermark: int | None
    """Where the watermark was; None where the item is malformed."""
    counted: bool
    """Whether it is counted in other windows."""
    field: str = ""
    """The field at fault, such as `items[3].event_time`; empty where the item is late."""
    description: str = ""


class Delta(NamedTuple):
    """What one commit changed, and what was answered."""

    records: Sequence[Record] = ()
    """The cells that changed, final ones too."""
    removed: Sequence[CellId] = ()
    """Cells that are there no more: windows that were merged with others."""
    panes: Sequence[Pane] = ()
    """Those that became on time, were revised, or became final."""
    rejected: Sequence[Rejected] = ()

    def __bool__(self) -> bool:
        return any(self)

    def to_blobs(self) -> Iterator[bytes]:
        """The delta as blobs, each a delta itself; more than one where it is large."""
        for start in range(0, max(map(len, self)), _PIECE_RECORDS):
            yield to_json([part[start : start + _PIECE_RECORDS] for part in self])

    @classmethod
    def from_bytes(cls, blob: bytes) -> Delta:
        """The delta of one of the blobs that `to_blobs` wrote; trusted."""
        records, removed, panes, rejected = from_json(blob)
        return cls(
            records,
            [_cell_id(cell) for cell in removed],
            [_pane(pane) for pane in panes],
            [Rejected(*it) for it in rejected],
        )


class Shelf(NamedTuple):
    """Cells that are kept together, as a checkpoint knows them."""

    packs: Sequence[str]
    """The digests of the packs that hold their records; more than one where they are many."""
    deadline: int | None
    """Where the watermark must be for something to become of them, in microseconds; None where all are final."""


Checkpoint: TypeAlias = Mapping[str, Shelf]
"""Every shelf by its name."""
Pack: TypeAlias = Mapping[str, Sequence[Record]]
"""The records of some shelves by their names."""


def checkpoint_to_bytes(checkpoint: Checkpoint) -> bytes:
    """A checkpoint as a blob."""
    return to_json(checkpoint)


def checkpoint_from_bytes(blob: bytes) -> dict[str, Shelf]:
    """The checkpoint that `checkpoint_to_bytes` wrote; trusted."""
    return {name: Shelf(*shelf) for name, shelf in from_json(blob).items()}


def packed(shelves: Iterable[tuple[str, Iterator[Record]]]) -> Iterator[Pack]:
    """Shelves in packs of a size that is read at once; a large one is in several."""
    pack: dict[str, Sequence[Record]] = {}
    room = _PIECE_RECORDS
    for name, records in shelves:
        while piece := list(islice(records, _PIECE_RECORDS)):
            pack[name] = piece
            room -= len(piece)
            if room <= 0:
                yield pack
                pack, room = {}, _PIECE_RECORDS
    if pack:
        yield pack


def pack_to_bytes(pack: Pack) -> bytes:
    """A pack as a blob."""
    return to_json(pack)


def pack_from_bytes(blob: bytes) -> dict[str, list[Record]]:
    """The pack that `pack_to_bytes` wrote; trusted."""
    pack: dict[str, list[Record]] = from_json(blob)
    return pack


def _cell_id(cell: Sequence[Any]) -> CellId:
    strategy, start, end, namespace, key = cell
    return (strategy, start, end, namespace, key)


def _pane(pane: Sequence[Any]) -> Pane:
    made = Pane(*pane)
    return made._replace(
        cell=_cell_id(made.cell),
        file_types=Count(*made.file_types),
        workflows=Count(*made.workflows),
        timing=Timing(made.timing),
    )


_WINDOWS = {"tumbling": Tumbling, "hopping": Hopping, "gap": Gap}


def _config_document(config: Config) -> dict[str, Any]:
    (kind,) = (name for name, window in _WINDOWS.items() if isinstance(config.window, window))
    return asdict(config) | {"window": {kind: asdict(config.window)}}


def _config(document: Mapping[str, Any]) -> Config:
    ((kind, window),) = document["window"].items()
    return replace(
        Config(**document),
        strategies=tuple(map(Strategy, document["strategies"])),
        size_bounds=tuple(document["size_bounds"]),
        window=_WINDOWS[kind](**window),
    )
