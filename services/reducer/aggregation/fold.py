"""Custom folds: what a session of the strategy CUSTOM makes of its items, by functions registered by name. Pure.

Which folds a node has is found elsewhere: those here, and those of the entry-point group `omnibridge.folds`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.errors import FieldViolation, InvalidArgument
from services.reducer.domain import State

_FIELD = "open.config.custom_fold"


class UnknownFold(InvalidArgument):
    """The node has no custom fold of this name."""

    reason = errors_pb2.ERROR_REASON_UNKNOWN_FOLD


class FoldItem(NamedTuple):
    """What a fold sees of an item."""

    size: int
    """Bytes."""
    namespace: str
    file_type: str
    workflow_id: str
    workflow_state: str
    payload: Mapping[str, Any]
    """The item's payload_json, parsed; trusted to be nothing but a JSON object."""


@runtime_checkable
class CustomFold(Protocol):
    """A commutative monoid over items: the states of a cell's items are the same in whatever order and parts they are folded.

    States are JSON objects, and are values: no call changes one that it was given. No call raises.
    """

    @property
    def name(self) -> str:
        """What configurations call it by."""

    def key(self, item: FoldItem) -> str:
        """The key of the item's cell."""

    def initial(self) -> State:
        """The state of no items; merged with another it is that other."""

    def fold(self, state: State, item: FoldItem) -> State:
        """What the item makes of the state: the same as `merge(state, fold(initial(), item))`."""

    def merge(self, a: State, b: State) -> State:
        """The state of the items of both; associative and commutative."""


class SizeHistogram:
    """Counts items by the power of two that their size in bytes is below, for each namespace: 1024 counts under `2048`."""

    name = "size_histogram"

    def key(self, item: FoldItem) -> str:
        """The namespace, or empty."""
        return item.namespace

    def initial(self) -> State:
        """No counts."""
        return {}

    def fold(self, state: State, item: FoldItem) -> State:
        """One more in the item's class."""
        return self.merge(state, {str(1 << item.size.bit_length()): 1})

    def merge(self, a: State, b: State) -> State:
        """The sums."""
        sums: dict[str, Any] = {**a}
        for bound, count in b.items():
            sums[bound] = sums.get(bound, 0) + count
        return sums


class Folds:
    """The custom folds of a node."""

    def __init__(self, folds: Iterable[CustomFold] = (SizeHistogram(),)) -> None:
        self._by_name = {fold.name: fold for fold in folds}

    def get(self, name: str) -> CustomFold:
        """The fold of this name. Raises UnknownFold."""
        fold = self._by_name.get(name)
        if fold is None:
            known = ",".join(sorted(self._by_name))
            raise UnknownFold(
                f"{_FIELD}: there is no {name}; known are {known}",
                metadata={"field": _FIELD, "fold": name, "known": known},
                violations=[FieldViolation(_FIELD, "must be the name of a custom fold")],
            )
        return fold
