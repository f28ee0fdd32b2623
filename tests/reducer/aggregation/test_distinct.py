"""Counting distinct texts: the same number in any order and in any parts, and deltas that hold what is new."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.reducer.aggregation.distinct import Distinct, Form
from services.reducer.aggregation.pane import Count

LIMITS = st.sampled_from([0, 1, 3, 12, 100])
TEXTS = st.lists(st.integers(0, 30).map(lambda number: f"text-{number}"), max_size=60)


def counted(texts: list[str], limit: int) -> Distinct:
    distinct = Distinct()
    for text in texts:
        distinct.add(text, limit)
    return distinct


@pytest.mark.parametrize(
    ("number", "limit", "estimated"),
    [(0, 0, False), (1, 0, True), (9, 9, False), (10, 9, True), (500, 500, False)],
    ids=["nothing", "limit of none", "at the limit", "above it", "many"],
)
def test_a_count_is_exact_up_to_its_limit(number: int, limit: int, estimated: bool) -> None:
    texts = [f"text-{place}" for place in range(number)]
    assert counted(texts * 2, limit).count() == Count(number, estimated)


def test_an_estimate_of_thousands_is_near_and_depends_on_no_order() -> None:
    texts = [f"workflow-{place}" for place in range(5000)]
    counts = set()
    for seed in range(3):
        random.Random(seed).shuffle(texts)
        whole, part = counted(texts, 100), counted(texts[:2000], 100)
        part.merge(counted(texts[1000:], 100), 100)
        counts |= {whole.count(), part.count()}
    ((number, estimated),) = counts
    assert estimated
    assert number == pytest.approx(5000, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS, LIMITS)
def test_merged_counts_are_the_count_of_all(a: list[str], b: list[str], limit: int) -> None:
    merged = counted(a, limit)
    merged.merge(counted(b, limit), limit)
    assert merged.count() == counted(b + a, limit).count()


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, max_size=4), LIMITS)
def test_deltas_one_after_another_make_the_same_count(parts: list[list[str]], limit: int) -> None:
    origin, copy = Distinct(), Distinct()
    for part in parts:
        for text in part:
            origin.add(text, limit)
        copy.apply(origin.added(), limit)
        origin.told()
        assert copy.count() == origin.count()
        assert origin.added() is None
    whole = Distinct()
    whole.apply(origin.form(), limit)
    assert whole.count() == origin.count()
    assert whole.added() is None


@settings(max_examples=60, deadline=None)
@given(TEXTS, LIMITS)
def test_its_size_is_what_it_grew_by(texts: list[str], limit: int) -> None:
    distinct = Distinct()
    size = distinct.size_bytes
    for text in texts:
        size += distinct.add(text, limit)
    assert size == distinct.size_bytes


@pytest.mark.parametrize("limit", [100, 12], ids=["exact", "estimated"])
def test_a_delta_holds_only_what_is_new(limit: int) -> None:
    distinct = counted([f"text-{place}" for place in range(60)], limit)
    distinct.told()
    distinct.add("new", limit)
    form: Form = distinct.added()
    assert form is not None
    if limit == 100:
        assert form == ("new",)
    alone = Distinct()
    alone.apply(form, 100)
    assert alone.count().number == 1
