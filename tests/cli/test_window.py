"""Bounded work with results in order, and the packing of batches."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cli.window import in_order, pack


@settings(max_examples=100)
@given(sizes=st.lists(st.integers(0, 12), max_size=30), count=st.integers(1, 5), total=st.integers(1, 20))
def test_batches_keep_the_order_and_the_bounds_and_are_as_full_as_they_can_be(
    sizes: list[int], count: int, total: int
) -> None:
    batches = list(pack(sizes, lambda size: size, count, total))

    assert [size for batch in batches for size in batch] == sizes
    assert all(len(batch) <= count and (sum(batch) <= total or len(batch) == 1) for batch in batches)
    assert all(batches)
    for batch, following in pairwise(batches):
        assert len(batch) == count or sum(batch) + following[0] > total


async def test_results_come_in_the_order_of_the_items_and_no_more_run_than_allowed() -> None:
    running = most = 0
    gates = [asyncio.Event() for _ in range(7)]

    async def work(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        # Each opens the one before it, so that they end in reverse within a window.
        if item % 3:
            gates[item - 1].set()
        if item % 3 != 2 and item != 6:
            await gates[item].wait()
        running -= 1
        return item * 10

    async with asyncio.timeout(5):
        assert [result async for result in in_order(range(7), work, 3)] == [0, 10, 20, 30, 40, 50, 60]
    assert most == 3


@pytest.mark.parametrize("leave", [True, False], ids=["the caller leaves", "one fails"])
async def test_work_that_is_not_wanted_any_more_is_cancelled_and_waited_for(leave: bool) -> None:
    ended = []

    async def work(item: int) -> int:
        if item == 0:
            return 0
        if item == 1 and not leave:
            raise ValueError("one")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(item)
        return item

    async def use() -> None:
        async with aclosing(in_order(range(4), work, 3)) as results:
            async for _ in results:
                if leave:
                    return

    async with asyncio.timeout(5):
        if leave:
            await use()
        else:
            with pytest.raises(ValueError, match="one"):
                await use()
    # The last one was cancelled before it began.
    assert ended == ([1, 2] if leave else [2])
