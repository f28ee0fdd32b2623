"""Custom folds: the one that is built in keeps the law of all, and an unknown one is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omninode.bridge.errors.v1 import errors_pb2
from services.reducer.aggregation.fold import FoldItem, Folds, SizeHistogram, UnknownFold
from services.reducer.domain import State

FOLD = SizeHistogram()
SIZES = st.lists(st.integers(0, 2**40), max_size=6)


def item(size: int) -> FoldItem:
    return FoldItem(size, "docs", "", "", "", {})


def folded(sizes: list[int]) -> State:
    state = FOLD.initial()
    for size in sizes:
        state = FOLD.fold(state, item(size))
    return state


@pytest.mark.parametrize(("size", "bound"), [(0, "1"), (1, "2"), (1023, "1024"), (1024, "2048")])
def test_the_histogram_counts_under_the_power_of_two_above(size: int, bound: str) -> None:
    assert folded([size, size]) == {bound: 2}


@settings(max_examples=50)
@given(SIZES, SIZES, SIZES)
def test_the_histogram_is_a_commutative_monoid_over_items(a: list[int], b: list[int], c: list[int]) -> None:
    x, y, z = folded(a), folded(b), folded(c)
    assert FOLD.merge(x, y) == FOLD.merge(y, x) == folded(a + b)
    assert FOLD.merge(FOLD.merge(x, y), z) == FOLD.merge(x, FOLD.merge(y, z))
    assert FOLD.merge(x, FOLD.initial()) == x
    assert (x, y, z) == (folded(a), folded(b), folded(c)), "nothing was changed in place"


def test_its_key_is_the_namespace() -> None:
    assert FOLD.key(item(1)) == "docs"


def test_an_unknown_fold_is_refused_with_those_that_are_known() -> None:
    assert Folds().get("size_histogram").name == "size_histogram"
    with pytest.raises(UnknownFold) as refusal:
        Folds().get("percentiles")
    assert refusal.value.reason == errors_pb2.ERROR_REASON_UNKNOWN_FOLD
    assert refusal.value.metadata == {
        "field": "open.config.custom_fold",
        "fold": "percentiles",
        "known": "size_histogram",
    }
    assert [violation.field for violation in refusal.value.violations] == ["open.config.custom_fold"]
