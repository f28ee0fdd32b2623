"""Mailboxes: what waits for the same key is taken out together, in order, and within bounds."""

from __future__ import annotations

import asyncio
import contextvars
import uuid
from collections.abc import Sequence
from typing import Any

import pytest

from services.chassis.coalesce import QueueFull, Stopped
from services.reducer.domain import Action
from services.reducer.mailbox import Letter, Mailboxes
from tests.reducer.workflow import DIGEST, action

GUARD = {"lease": "orchestrator/runner/3", "epoch": 1, "condition": 1}
BLOB = {"digest": DIGEST, "content": b"x"}


class Owner:
    """Settles groups when a test lets it; answers each letter with its action's type."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.open = asyncio.Event()
        self.began = asyncio.Event()

    async def settle(self, letters: Sequence[Letter[str]]) -> None:
        self.groups.append([letter.action.type for letter in letters])
        self.began.set()
        await self.open.wait()
        for letter in letters:
            letter.end(letter.action.type)


@pytest.fixture
def owner() -> Owner:
    return Owner()


def mailboxes(owner: Owner, **bounds: int) -> Mailboxes[str]:
    limits = {"max_actions": 100, "max_bytes": 1000, "max_waiting": 1000, "max_waiting_bytes": 100_000}
    return Mailboxes(owner.settle, **{**limits, **bounds})


def numbered(count: int, **fields: Any) -> list[Action]:
    return [action(str(number), "{}", **fields) for number in range(count)]


async def under_way(boxes: Mailboxes[str], owner: Owner, *actions: Action) -> asyncio.Task[Any]:
    """A send of which something is being settled."""
    owner.began.clear()
    task = asyncio.create_task(boxes.send(actions))
    async with asyncio.timeout(5):
        await owner.began.wait()
    return task


async def test_what_arrives_while_a_group_is_settled_is_the_next_group(owner: Owner) -> None:
    boxes = mailboxes(owner)
    first = await under_way(boxes, owner, action("first"))
    rest = [asyncio.create_task(boxes.send([item])) for item in numbered(5)]
    await asyncio.sleep(0)
    owner.open.set()
    assert await asyncio.gather(first, *rest) == [["first"], ["0"], ["1"], ["2"], ["3"], ["4"]]
    assert owner.groups == [["first"], ["0", "1", "2", "3", "4"]]


async def test_keys_do_not_wait_for_each_other(owner: Owner) -> None:
    boxes = mailboxes(owner)
    await under_way(boxes, owner, action("a", key="workflow/a"))
    await under_way(boxes, owner, action("b", key="workflow/b"))
    assert owner.groups == [["a"], ["b"]]
    owner.open.set()
    await boxes.aclose()


@pytest.mark.parametrize(
    ("actions", "groups"),
    [
        (numbered(3), [["0", "1", "2"]]),
        ([action("a"), action("b", guards=[GUARD]), action("c", guards=[GUARD]), action("d")], [["a"], ["b", "c"], ["d"]]),
        ([action("a", guards=[GUARD]), action("b", guards=[{**GUARD, "epoch": 2}])], [["a"], ["b"]]),
        ([action("a"), action("b", reducer="other"), action("c")], [["a"], ["b"], ["c"]]),
        ([action("a", blobs=[BLOB] * 10), action("b", blobs=[BLOB] * 6), action("c", blobs=[BLOB])], [["a", "b"], ["c"]]),
        ([action("a", blob_refs=[DIGEST] * 99), action("b", blob_refs=[DIGEST] * 2)], [["a"], ["b"]]),
        ([action("a", '{"a":"' + "x" * 2000 + '"}'), action("b"), action("c")], [["a"], ["b", "c"]]),
        (numbered(101), [[str(number) for number in range(100)], ["100"]]),
        ([action(name, action_id=str(uuid.UUID(int=1))) for name in "ab"] + [action("c")], [["a"], ["b", "c"]]),
    ],
    ids=["alike", "guards", "epochs", "reducers", "blobs", "references", "bytes", "actions", "the same action"],
)  # fmt: skip
async def test_a_group_holds_what_one_commit_can(owner: Owner, actions: list[Action], groups: list[list[str]]) -> None:
    owner.open.set()
    answers = await mailboxes(owner).send(actions)
    assert owner.groups == groups
    assert answers == [item.type for item in actions]


async def test_a_sender_that_leaves_takes_only_its_own_actions_along(owner: Owner) -> None:
    boxes = mailboxes(owner)
    first = await under_way(boxes, owner, action("first"))
    leaving, staying = (asyncio.create_task(boxes.send([action(name)])) for name in ("leaves", "stays"))
    await asyncio.sleep(0)
    leaving.cancel()
    owner.open.set()
    assert await staying == ["stays"]
    assert owner.groups == [["first"], ["stays"]]
    assert await first == ["first"]


async def test_more_actions_than_may_wait_are_refused_and_those_that_wait_are_not_harmed(owner: Owner) -> None:
    boxes = mailboxes(owner, max_waiting=3)
    first = await under_way(boxes, owner, action("first"))
    waiting = asyncio.create_task(boxes.send(numbered(2)))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull) as refusal:
        await boxes.send(numbered(2))
    assert refusal.value.metadata == {"limit": "3"}
    owner.open.set()
    assert await waiting == ["0", "1"]
    assert await first == ["first"]
    assert await boxes.send(numbered(3)) == ["0", "1", "2"]


async def test_more_bytes_than_may_wait_are_refused_unless_nothing_waits(owner: Owner) -> None:
    boxes = mailboxes(owner, max_waiting_bytes=100)
    large = action("large", '{"a":"' + "x" * 200 + '"}')
    first = await under_way(boxes, owner, large)
    with pytest.raises(QueueFull) as refusal:
        await boxes.send([action("refused", "{}")])
    assert refusal.value.metadata == {"limit_bytes": "100"}
    owner.open.set()
    assert await first == ["large"]
    assert await boxes.send([large]) == ["large"]


async def test_what_is_under_way_takes_room_until_it_has_its_outcome(owner: Owner) -> None:
    text = '{"a":"' + "x" * 32 + '"}'
    boxes = mailboxes(owner, max_waiting_bytes=2 * len(text))
    owner.open.set()
    for _ in range(3):
        two = [action(name, text) for name in "ab"]
        assert await boxes.send(two) == ["a", "b"]
    owner.open.clear()
    first = await under_way(boxes, owner, action("first", text))
    second = asyncio.create_task(boxes.send([action("second", text)]))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await boxes.send([action("third", text)])
    owner.open.set()
    assert (await first, await second) == (["first"], ["second"])
    assert await boxes.send([action("third", text)]) == ["third"]


async def test_a_group_is_not_settled_in_its_first_senders_context() -> None:
    correlation = contextvars.ContextVar("correlation", default="nobody's")

    async def settle(letters: Sequence[Letter[str]]) -> None:
        for letter in letters:
            letter.end(correlation.get())

    boxes = Mailboxes(settle, max_actions=100, max_bytes=1000, max_waiting=1000, max_waiting_bytes=100_000)
    correlation.set("the first sender's")
    assert await boxes.send(numbered(2)) == ["nobody's"] * 2


async def test_a_group_that_is_broken_off_stops_its_senders_and_those_behind_it_but_none_to_come() -> None:
    began, ends, groups = asyncio.Event(), asyncio.Event(), 0

    async def settle(letters: Sequence[Letter[str]]) -> None:
        nonlocal groups
        groups += 1
        began.set()
        await ends.wait()
        if groups == 1:
            raise asyncio.CancelledError
        for letter in letters:
            letter.end("settled")

    boxes = Mailboxes(settle, max_actions=100, max_bytes=1000, max_waiting=1000, max_waiting_bytes=100_000)
    first = asyncio.create_task(boxes.send(numbered(1)))
    await began.wait()
    behind = asyncio.create_task(boxes.send(numbered(2)))
    await asyncio.sleep(0)
    ends.set()
    async with asyncio.timeout(5):
        outcomes = [*await first, *await behind]
        assert [type(outcome) for outcome in outcomes] == [Stopped] * 3
        assert await boxes.send(numbered(2)) == ["settled"] * 2


async def test_closing_waits_for_what_was_taken_in_and_takes_no_more(owner: Owner) -> None:
    boxes = mailboxes(owner)
    first = await under_way(boxes, owner, action("first"))
    waiting = asyncio.create_task(boxes.send(numbered(2)))
    await asyncio.sleep(0)
    closing = asyncio.create_task(boxes.aclose())
    await asyncio.sleep(0)
    with pytest.raises(Stopped):
        await boxes.send(numbered(1))
    assert not closing.done()
    owner.open.set()
    await closing
    assert (await first, await waiting) == (["first"], ["0", "1"])


async def test_nothing_is_answered_with_nothing(owner: Owner) -> None:
    assert await mailboxes(owner).send([]) == []
