"""Reducers and custom folds of other distributions, found by their entry points.

What a reducer is, domain.py says, and what a fold is, aggregation/fold.py; the node's own reducers come from its contract.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from services.chassis.errors import FailedPrecondition
from services.reducer.aggregation.fold import CustomFold, Folds, SizeHistogram
from services.reducer.domain import Reducer, Reducers

REDUCERS = "omnibridge.reducers"
FOLDS = "omnibridge.folds"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}")


class EntryPointError(FailedPrecondition):
    """An entry point that gives nothing with which the node can start; the message begins with its name and distribution."""

    def __init__(self, entry_point: EntryPoint, why: str) -> None:
        distribution = entry_point.dist.name if entry_point.dist else ""
        super().__init__(
            f"entry point {_described(entry_point)}: {why}",
            metadata={"entry_point": entry_point.name, "value": entry_point.value, "distribution": distribution},
        )


def registered(own: Sequence[Reducer]) -> Reducers:
    """The node's own reducers and those of every distribution that is installed beside it.

    An entry point names a reducer, or what makes one without an argument: a class, a function. Raises EntryPointError for one that
    cannot be loaded or made, is no reducer, or has the name and version of another.
    """
    taken = {(reducer.name, reducer.version): "the node's own" for reducer in own}
    found = list(own)
    for entry_point, reducer in _loaded(REDUCERS, Reducer, "reducer", ("name", "version", "opens", "fold")):
        if type(reducer.version) is not int or not 0 < reducer.version < 2**31:
            raise EntryPointError(entry_point, "is no reducer: its version must be an integer from 1 to 2147483647")
        of = (reducer.name, reducer.version)
        if of in taken:
            raise EntryPointError(entry_point, f"{reducer.name} of version {reducer.version} is {taken[of]} already")
        taken[of] = f"that of {_described(entry_point)}"
        found.append(reducer)
    return Reducers(found)


def folds(own: Iterable[CustomFold] = (SizeHistogram(),)) -> Folds:
    """The node's own custom folds and those of every distribution, as `registered` finds reducers. Raises EntryPointError."""
    found = {fold.name: fold for fold in own}
    for entry_point, fold in _loaded(FOLDS, CustomFold, "fold", ("name", "key", "initial", "fold", "merge")):
        if fold.name in found:
            raise EntryPointError(entry_point, f"there is a fold {fold.name} already")
        found[fold.name] = fold
    return Folds(found.values())


def _loaded(group: str, protocol: Any, what: str, members: Iterable[str]) -> Iterator[tuple[EntryPoint, Any]]:
    """What the group's entry points give, each checked to be what it must be."""
    for entry_point in sorted(entry_points(group=group), key=_described):
        try:
            loaded = entry_point.load()
            # A class has what its instances have, and looks like one of them.
            made = loaded if isinstance(loaded, protocol) and not isinstance(loaded, type) else loaded()
        except Exception as error:
            raise EntryPointError(entry_point, f"{type(error).__name__}: {error}") from error
        if not isinstance(made, protocol):
            lacking = [name for name in members if not hasattr(made, name)]
            raise EntryPointError(entry_point, f"is no {what}: it has no {', '.join(lacking)}")
        if not isinstance(made.name, str) or not _NAME.fullmatch(made.name):
            raise EntryPointError(entry_point, f"is no {what}: its name must be 1 to 255 of A-Za-z0-9_.-")
        yield entry_point, made


def _described(entry_point: EntryPoint) -> str:
    distribution = entry_point.dist.name if entry_point.dist else "an unknown distribution"
    return f"{entry_point.name} of {distribution}"
