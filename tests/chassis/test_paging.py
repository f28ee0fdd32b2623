"""Pages: a token leads on in its own query and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.errors import InvalidArgument
from services.chassis.paging import decode, encode, page_size

positions = st.lists(st.integers() | st.text(st.characters(codec="utf-8")) | st.none(), max_size=4)
queries = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3)


@given(positions, queries)
def test_a_token_gives_back_the_position_in_its_query(
    position: list[int | str | None], query: dict[str, object]
) -> None:
    assert decode(encode(position, query), query) == position


@given(positions, queries, queries)
def test_a_token_of_another_query_is_refused(
    position: list[int | str | None], query: dict[str, object], other: dict[str, object]
) -> None:
    if query == other:
        other = {**query, "more": 1}
    with pytest.raises(InvalidArgument):
        decode(encode(position, query), other)


@given(positions, st.data())
def test_a_token_with_any_character_changed_is_refused(position: list[int | str | None], data: st.DataObject) -> None:
    token = encode(position, {})
    at = data.draw(st.integers(0, len(token) - 1))
    character = data.draw(st.characters(codec="ascii").filter(lambda new: new != token[at]))
    with pytest.raises(InvalidArgument) as caught:
        decode(token[:at] + character + token[at + 1 :], {})
    assert caught.value.reason == errors_pb2.ERROR_REASON_PAGE_TOKEN_MISMATCH
    assert caught.value.violations[0].field == "page_token"


@given(st.text(max_size=50))
def test_a_made_up_token_is_refused_and_never_fails_otherwise(token: str) -> None:
    with pytest.raises(InvalidArgument):
        decode(token, {})


@pytest.mark.parametrize(
    ("requested", "given_size"), [(0, 100), (1, 1), (100, 100), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)]
)
def test_a_page_size_is_coerced(requested: int, given_size: int) -> None:
    assert page_size(requested) == given_size


def test_a_negative_page_size_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument) as caught:
        page_size(-1)
    assert caught.value.violations[0].field == "page_size"
