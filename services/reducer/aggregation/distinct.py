"""How many different texts there were: exactly up to a limit, then by a HyperLogLog sketch. Pure.

A count knows what was added since it was last told, so that a delta holds that alone. What becomes of two counts merged, and of
texts added in any order, is the same.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, TypeAlias

from datasketches import hll_sketch, hll_union, tgt_hll_type

from services.reducer.aggregation.pane import Count

Form: TypeAlias = Sequence[str] | str | None
"""The texts in a tuple or list, or a sketch in base64; None for nothing."""

EMPTY_BYTES = 64
_LG_K = 12
"""4096 registers: a standard error of 1.6 %."""
_SKETCHES_BYTES = 2 * 4300
_MEMBER_BYTES = 80
"""Of a text beside its characters, with its place."""
_FEW = 8
"""So many texts stand in a tuple, which takes a quarter of a dictionary's memory: most cells see no more."""


class Distinct:
    """A set of texts of which only the number is wanted. Empty texts are not to be added."""

    __slots__ = ("_added", "_sketch", "_told", "members")

    members: tuple[str, ...] | dict[str, None]
    """In the order of their coming; none once the number is an estimate."""

    def __init__(self) -> None:
        self.members = ()
        self._told = 0
        self._sketch: Any = None
        self._added: Any = None

    def add(self, text: str, limit: int) -> int:
        """Counts the text, exactly up to `limit` of them; by how many bytes memory grew."""
        if self._sketch is not None:
            self._sketch.update(text)
            if self._added is None:
                self._added = hll_sketch(_LG_K, tgt_hll_type.HLL_8)
            self._added.update(text)
            return 0
        members = self.members
        if text in members:
            return 0
        if len(members) >= limit:
            before = self.size_bytes
            self._estimate()
            self.add(text, limit)
            return self.size_bytes - before
        if isinstance(members, dict):
            members[text] = None
        else:
            more = (*members, text)
            self.members = more if len(more) <= _FEW else dict.fromkeys(more)
        return _MEMBER_BYTES + len(text)

    def merge(self, other: Distinct, limit: int) -> None:
        """Counts what `other` counts."""
        if other._sketch is not None:
            self._unite(other._sketch)
        for text in other.members:
            self.add(text, limit)

    def apply(self, form: Form, limit: int) -> None:
        """Counts what a form tells, which may be the whole or what was added; it needs not be told again."""
        if isinstance(form, str):
            self._unite(hll_sketch.deserialize(base64.b64decode(form)))
        else:
            for text in form or ():
                self.add(text, limit)
        self.told()

    def form(self) -> Form:
        """The whole."""
        return tuple(self.members) if self._sketch is None else _sketch_form(self._sketch)

    def added(self) -> Form:
        """What was added since it was last told."""
        if self._sketch is None:
            return self._fresh() or None
        return None if self._added is None else _sketch_form(self._added)

    def told(self) -> None:
        """All of it is told."""
        self._told = len(self.members)
        self._added = None

    def count(self) -> Count:
        """How many there were."""
        if self._sketch is None:
            return Count(len(self.members), estimated=False)
        # A sketch's own estimate depends on the order of its updates. A union that was given two has none but the registers to
        # go by, and these are the same in any order.
        union = hll_union(_LG_K)
        union.update(self._sketch)
        union.update(self._sketch)
        return Count(round(union.get_estimate()), estimated=True)

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        if self._sketch is not None:
            return EMPTY_BYTES + _SKETCHES_BYTES
        return EMPTY_BYTES + sum(map(len, self.members)) + _MEMBER_BYTES * len(self.members)

    def _fresh(self) -> tuple[str, ...]:
        members = self.members
        if isinstance(members, tuple):
            return members[self._told :]
        return tuple(islice(reversed(members), len(members) - self._told))[::-1]

    def _estimate(self) -> None:
        if self._sketch is None:
            self._sketch, self._added = _sketch_of(self.members), _sketch_of(self._fresh())
            self.members, self._told = (), 0

    def _unite(self, sketch: Any) -> None:
        self._estimate()
        self._sketch = _union(self._sketch, sketch)
        self._added = sketch if self._added is None else _union(self._added, sketch)


class Sealed(Distinct):
    """The number alone, of what is neither added to nor merged any more."""

    __slots__ = ("_count",)

    def __init__(self, count: Count) -> None:
        super().__init__()
        self._count = count

    def count(self) -> Count:
        """How many there were."""
        return self._count


def _sketch_of(texts: Iterable[str]) -> Any:
    sketch = hll_sketch(_LG_K, tgt_hll_type.HLL_8)
    for text in texts:
        sketch.update(text)
    return sketch


def _union(a: Any, b: Any) -> Any:
    union = hll_union(_LG_K)
    union.update(a)
    union.update(b)
    return union.get_result(tgt_hll_type.HLL_8)


def _sketch_form(sketch: Any) -> str:
    return base64.b64encode(sketch.serialize_compact()).decode()
