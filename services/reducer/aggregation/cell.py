"""One cell: what is counted of the items of one window with one key, and how it is recorded. Pure.

Which items are a cell's, and when it is shown, is `aggregation`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import IntEnum
from sys import intern
from typing import Any, NamedTuple

from services.reducer.aggregation.distinct import EMPTY_BYTES, Distinct, Form, Sealed
from services.reducer.aggregation.durable import Record
from services.reducer.aggregation.fold import CustomFold, FoldItem
from services.reducer.aggregation.pane import CellId, Count, Pane, Timing
from services.reducer.domain import State

_CELL_BYTES = 340
"""Of a cell with its numbers and its place on a shelf, without the characters of its key."""
_STATES_BYTES = 200
_STATE_BYTES = 110
SHOWN_STATES = 100
"""Workflow states of a pane: the most frequent. There is a handful; a pane must fit into a message whatever is sent."""
_LARGEST = 2**63 - 1
_NONE = Count(0, estimated=False)


class Stage(IntEnum):
    """How far a cell has come."""

    OPEN = 0
    ON_TIME = 1
    """Its pane was shown; it may yet be revised."""
    FINAL = 2
    MERGED = 3
    """It is part of another; never recorded."""


class Counting(NamedTuple):
    """What the cells of a session have in common."""

    exact_distinct: int
    fold: CustomFold | None
    seals: bool = False
    """Whether final cells keep of what was distinct the number alone: they can be shown then, and neither recorded nor merged."""


class Cell:
    """A cell. Its record is `[*CellId, stage, revision, count, total, low, high, states, file types, workflows, custom]`.

    `stage`, `changed`, `told` and `due` are kept by `aggregation` and `shelf`.
    """

    __slots__ = (
        "_counting",
        "_custom",
        "_custom_bytes",
        "_file_types",
        "_high",
        "_low",
        "_states",
        "_total",
        "_workflows",
        "changed",
        "count",
        "due",
        "end",
        "key",
        "namespace",
        "revision",
        "stage",
        "start",
        "strategy",
        "told",
    )

    def __init__(self, cell_id: CellId, counting: Counting) -> None:
        self.strategy, self.start, self.end, self.namespace, self.key = cell_id
        self.stage: int = Stage.OPEN
        self.revision = 0
        self.changed = False
        """Since the last delta."""
        self.told = False
        """Whether a delta has told of it under its present id."""
        self.due: int | None = None
        """For when it is scheduled, if it is."""
        self.count = 0
        self._counting = counting
        self._total = 0
        self._low = _LARGEST
        self._high = 0
        # A set or dictionary for each cell would be most of the memory of 100,000 cells.
        self._states: dict[str, int] | None = None
        self._file_types: Distinct | None = None
        self._workflows: Distinct | None = None
        self._custom: State | None = None
        self._custom_bytes = 0

    @classmethod
    def of(cls, record: Record, counting: Counting) -> Cell:
        """The cell of a full record."""
        cell = cls(id_of(record), counting)
        cell.apply(record)
        return cell

    @property
    def id(self) -> CellId:
        """Its identity."""
        return (self.strategy, self.start, self.end, self.namespace, self.key)

    def add(  # noqa: PLR0912  # calls for its parts would double what every item costs
        self, size: int, file_type: str, workflow_id: str, workflow_state: str, item: FoldItem | None = None
    ) -> int:
        """Counts an item; by how many bytes memory grew, what a custom fold makes aside."""
        grown = 0
        self.count += 1
        self._total += size
        if size < self._low:  # noqa: PLR1730  # a call of min takes as long as all the rest
            self._low = size
        if size > self._high:  # noqa: PLR1730  # likewise
            self._high = size
        if file_type:
            types = self._file_types
            if types is None:
                types = self._file_types = Distinct()
                grown = EMPTY_BYTES
            if file_type not in types.members:
                grown += types.add(intern(file_type), self._counting.exact_distinct)
        if workflow_id:
            workflows = self._workflows
            if workflows is None:
                workflows = self._workflows = Distinct()
                grown += EMPTY_BYTES
            if workflow_id not in workflows.members:
                grown += workflows.add(workflow_id, self._counting.exact_distinct)
        if workflow_state:
            states = self._states
            if states is None:
                self._states = {intern(workflow_state): 1}
                grown += _STATES_BYTES + _STATE_BYTES
            elif workflow_state in states:
                states[workflow_state] += 1
            else:
                states[intern(workflow_state)] = 1
                grown += _STATE_BYTES
        if item is not None:
            fold = self._fold
            self._custom = fold.fold(fold.initial() if self._custom is None else self._custom, item)
        return grown

    def merge(self, other: Cell) -> None:
        """Counts what `other` counts, and adds its revision. Identity and stage stay."""
        limit = self._counting.exact_distinct
        self.count += other.count
        self._total += other._total
        self._low = min(self._low, other._low)
        self._high = max(self._high, other._high)
        self.revision += other.revision
        if other._states is not None:
            states = self._states = self._states or {}
            for state, count in other._states.items():
                states[state] = states.get(state, 0) + count
        if other._file_types is not None:
            self._file_types = self._file_types or Distinct()
            self._file_types.merge(other._file_types, limit)
        if other._workflows is not None:
            self._workflows = self._workflows or Distinct()
            self._workflows.merge(other._workflows, limit)
        if other._custom is not None:
            self._custom = other._custom if self._custom is None else self._fold.merge(self._custom, other._custom)
            self.weigh()

    def record(self) -> Record:
        """Everything."""
        return self._record(_form(self._file_types), _form(self._workflows))

    def delta(self) -> Record:
        """What brings a cell up to date that has all deltas before; everything where no delta told of it under this id."""
        told = self._record(_added(self._file_types), _added(self._workflows)) if self.told else self.record()
        self._settle()
        return told

    def apply(self, record: Record) -> None:
        """Brings it up to date by a delta, or makes a fresh cell what a full record says. Nothing may be added untold."""
        *_, stage, revision, count, total, low, high, states, file_types, workflows, custom = record
        self.stage, self.revision = stage, revision
        self.count, self._total, self._low, self._high = count, total, low, high
        self._states = None if states is None else {intern(state): number for state, number in states.items()}
        self._file_types = self._applied(self._file_types, file_types)
        self._workflows = self._applied(self._workflows, workflows)
        self._custom = custom
        self.weigh()
        if self._counting.seals and stage == Stage.FINAL:
            self._file_types = self._file_types and Sealed(self._file_types.count())
            self._workflows = self._workflows and Sealed(self._workflows.count())
        self._settle()

    def pane(self, timing: Timing, final: bool) -> Pane:
        """What is shown of it."""
        return Pane(
            self.id,
            self.count,
            self._total,
            self._low,
            self._high,
            _NONE if self._file_types is None else self._file_types.count(),
            _NONE if self._workflows is None else self._workflows.count(),
            _most(self._states or {}),
            # Sorted: the order of its names is the order of the items' coming.
            ""
            if self._custom is None
            else json.dumps(self._custom, ensure_ascii=False, separators=(",", ":"), sort_keys=True),
            self.revision,
            timing,
            final,
        )

    def weigh(self) -> int:
        """By how many bytes what the custom fold made has grown since it was last weighed."""
        before = self._custom_bytes
        self._custom_bytes = 0 if self._custom is None else _weight(self._custom)
        return self._custom_bytes - before

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        size = new_bytes(self.key) + self._custom_bytes
        if self._file_types is not None:
            size += self._file_types.size_bytes
        if self._workflows is not None:
            size += self._workflows.size_bytes
        if self._states is not None:
            size += _STATES_BYTES + _STATE_BYTES * len(self._states)
        return size

    @property
    def _fold(self) -> CustomFold:
        fold = self._counting.fold
        assert fold is not None, "only cells of a custom fold have what it makes"
        return fold

    def _record(self, file_types: Form, workflows: Form) -> Record:
        return (
            self.strategy,
            self.start,
            self.end,
            self.namespace,
            self.key,
            int(self.stage),
            self.revision,
            self.count,
            self._total,
            self._low,
            self._high,
            # A copy: a record is written later than it is made.
            self._states and self._states.copy(),
            file_types,
            workflows,
            self._custom,
        )

    def _applied(self, distinct: Distinct | None, form: Form) -> Distinct | None:
        if form is not None:
            distinct = distinct or Distinct()
            distinct.apply(form, self._counting.exact_distinct)
        return distinct

    def _settle(self) -> None:
        self.told = True
        if self._file_types is not None:
            self._file_types.told()
        if self._workflows is not None:
            self._workflows.told()


def id_of(record: Record) -> CellId:
    """The cell that a record is of."""
    strategy, start, end, namespace, key = record[:5]
    return (strategy, start, end, namespace, key)


def stage_of(record: Record) -> int:
    """The stage of the cell that a record is of."""
    stage: int = record[5]
    return stage


def new_bytes(key: str) -> int:
    """About what a cell without items takes in memory."""
    return _CELL_BYTES + len(key)


def _most(states: Mapping[str, int]) -> dict[str, int]:
    """The states that a pane shows; which they are does not depend on the order of the items."""
    if len(states) <= SHOWN_STATES:
        return dict(states)
    return dict(sorted(states.items(), key=lambda held: (-held[1], held[0]))[:SHOWN_STATES])


def _form(distinct: Distinct | None) -> Form:
    return None if distinct is None else distinct.form()


def _added(distinct: Distinct | None) -> Form:
    return None if distinct is None else distinct.added()


def _weight(value: Any) -> int:
    match value:
        case str():
            return 56 + len(value)
        case dict():
            return 240 + sum(110 + len(name) + _weight(held) for name, held in value.items())
        case Sequence():
            return 72 + sum(8 + _weight(held) for held in value)
        case _:
            return 32
