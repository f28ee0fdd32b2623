"""The cache of states: what was put last stays, within its bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.reducer.cache import StateCache
from services.reducer.domain import Current


def current(version: int, size: int = 1) -> Current:
    return Current(version, {"state": "OPEN"}, size, 1)


def test_what_is_taken_is_kept_no_more() -> None:
    cache = StateCache(10, 100)
    cache.put("a", current(1))
    assert cache.take("a") == current(1)
    assert cache.take("a") is None


def test_what_was_put_longest_ago_makes_room() -> None:
    cache = StateCache(2, 100)
    for key in ("a", "b", "a", "c"):
        cache.put(key, current(1))
    assert cache.take("b") is None
    assert cache.take("a")
    assert cache.take("c")


def test_a_state_that_is_larger_than_the_cache_is_not_kept() -> None:
    cache = StateCache(10, 100)
    cache.put("a", current(1, 101))
    assert cache.take("a") is None


@given(
    puts=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 60), st.booleans()), max_size=30),
)
def test_the_cache_holds_the_latest_states_that_fit(puts: list[tuple[str, int, bool]]) -> None:
    cache = StateCache(3, 100)
    expected: dict[str, Current] = {}
    for version, (key, size, take) in enumerate(puts, 1):
        held = expected.pop(key, None)
        if take:
            assert cache.take(key) == held
            continue
        cache.put(key, current(version, size))
        expected[key] = current(version, size)
        while len(expected) > 3 or sum(state.size for state in expected.values()) > 100:
            del expected[next(iter(expected))]
    assert {key: cache.take(key) for key in expected} == expected
