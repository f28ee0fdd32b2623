"""Lines as records, records as columns, and how both get to where they are sent."""

from __future__ import annotations

import asyncio
import os
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from services.cli import backlog, lines
from services.cli.backlog import Backlog, Batch
from services.cli.lines import Lines
from services.cli.record import LINE_BYTES, Record, parse, to_columns

NOON = 1_772_366_400_000_000


@pytest.mark.parametrize(
    ("time", "microseconds"),
    [
        pytest.param('"2026-03-01T12:00:00Z"', NOON, id="UTC"),
        pytest.param('"2026-03-01T13:00:00.000001+01:00"', NOON + 1, id="another zone"),
        pytest.param("1772366400", NOON, id="seconds"),
        pytest.param("1772366400.000001", NOON + 1, id="a fraction of a second"),
        pytest.param("-1", -1_000_000, id="before 1970"),
        pytest.param("null", 0, id="none"),
    ],
)
def test_a_time_is_read_to_the_microsecond(time: str, microseconds: int) -> None:
    assert parse(f'{{"event_time": {time}}}'.encode()).time == microseconds


def test_a_record_has_every_field_of_its_line() -> None:
    line = (
        '{"event_time": 1, "namespace": "n", "file_type": "f", "workflow_id": "w", "workflow_state": "s",'
        ' "size_bytes": -1, "payload": {"a": [1, "ü"]}, "more": 1}\r'
    )

    assert parse(line.encode()) == Record(1_000_000, -1, "n", "f", "w", "s", '{"a":[1,"ü"]}')


@pytest.mark.parametrize(
    ("line", "why"),
    [
        pytest.param(b'{"event_time": 1', "is no JSON: ", id="cut off"),
        pytest.param(b"\xff", "is no JSON: ", id="bytes"),
        pytest.param(rb'{"namespace": "\ud800"}', "is no JSON: ", id="half a character"),
        pytest.param(b"1", "is no JSON object", id="number"),
        pytest.param(b'{"a": "' + b"a" * LINE_BYTES + b'"}', "is longer than 1,048,576 bytes", id="long"),
        pytest.param(b'{"event_time": "yesterday"}', "event_time: must be a time", id="no time"),
        pytest.param(b'{"event_time": "2026-03-01T12:00:00"}', "event_time: must be a time", id="no zone"),
        pytest.param(b'{"event_time": true}', "event_time: must be a time", id="bool"),
        pytest.param(b'{"event_time": 1e400}', "event_time: must be a time", id="infinity"),
        pytest.param(b'{"event_time": 0}', "event_time: must be a time", id="1970 itself"),
        pytest.param(b'{"event_time": 253402300800}', "event_time: must be a time", id="year 10000"),
        pytest.param(b'{"size_bytes": 1.5}', "size_bytes: must be a whole number", id="fraction"),
        pytest.param(b'{"size_bytes": 9223372036854775808}', "size_bytes: must be a whole number", id="65 bits"),
        pytest.param(b'{"workflow_id": 1}', "workflow_id: must be a text", id="text"),
        pytest.param(b'{"payload": "{}"}', "payload: must be an object", id="payload"),
        pytest.param(b'{"payload": {"a": 1e400}}', "payload: holds a number that is too large", id="payload's number"),
    ],
)
def test_a_line_that_is_no_record_says_why(line: bytes, why: str) -> None:
    with pytest.raises(ValueError, match="^" + why):
        parse(line)


text = st.sampled_from(["", "a", "b"])
records = st.lists(
    st.builds(Record, st.integers(1, 2**40), st.integers(-1, 2), text, text, text, text, text), min_size=1, max_size=6
)


def read(message: pb.ItemColumns) -> list[Record]:
    """Columns as the contract explains them."""
    count = len(message.event_times_us)
    names = ("namespaces", "file_types", "workflow_ids", "workflow_states", "payloads_json")
    texts = [[message.texts[place] for place in getattr(message, name)] or [""] * count for name in names]
    return [
        Record(*each) for each in zip(message.event_times_us, message.sizes_bytes or [0] * count, *texts, strict=True)
    ]


@settings(max_examples=80)
@given(records)
def test_columns_say_what_the_records_say(given_records: list[Record]) -> None:
    message = to_columns(7, given_records)

    assert read(message) == given_records
    assert message.first_offset == 7
    assert len(set(message.texts)) == len(message.texts)


async def _lines_in_pieces(content: bytes, cuts: list[int]) -> list[bytes]:
    begin, end = os.pipe()
    edges = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    pieces = [content[a:b] for a, b in pairwise(edges) if a < b]
    found: list[bytes] = []

    async def write() -> None:
        for piece in pieces:
            os.write(end, piece)
            await asyncio.sleep(0)
        os.close(end)

    writing = asyncio.create_task(write())
    async for some in Lines(begin, 100).read():
        found += some
    await writing
    os.close(begin)
    return found


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([b"", b"a", b"bc"]), max_size=6), st.booleans(), st.lists(st.integers(0, 30)))
def test_a_pipe_has_the_same_lines_however_they_come(parts: list[bytes], is_ended: bool, cuts: list[int]) -> None:
    content = b"\n".join(parts) + (b"\n" if is_ended and parts else b"")

    found = asyncio.run(_lines_in_pieces(content, cuts))

    assert found == (content.removesuffix(b"\n").split(b"\n") if content else [])


async def test_a_line_that_is_too_long_is_cut_off_and_the_next_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "CHUNK_BYTES", 10)
    begin, end = os.pipe()
    os.write(end, b"a" * 95 + b"\nnext\n")
    os.close(end)

    found = [line async for some in Lines(begin, 20).read() for line in some]
    os.close(begin)

    assert [len(line) > 20 for line in found] == [True, False]
    assert len(found[0]) < 95
    assert found[1] == b"next"


async def test_a_pause_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "PAUSE_SECONDS", 0.001)
    begin, end = os.pipe()
    os.write(end, b"a\n")
    found = []

    async for some in Lines(begin, 20).read():
        found.append(some)
        if not some:
            os.write(end, b"b\n") if len(found) == 2 else os.close(end)
    os.close(begin)

    assert found == [[b"a"], [], [b"b"], []]


def batch(first: int, count: int, size: int = 1) -> Batch:
    return Batch(pb.ItemColumns(first_offset=first, event_times_us=[1] * count), size)


async def test_a_backlog_that_is_full_waits_until_something_is_struck_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "BATCHES", 2)
    held = Backlog()
    await held.add(batch(1, 5))
    await held.add(batch(6, 5))
    adding = asyncio.create_task(held.add(batch(11, 5)))
    for _ in range(5):
        await asyncio.sleep(0)

    assert not adding.done()
    assert await held.strike(4) == 0
    assert await held.strike(5) == 5
    await asyncio.wait_for(adding, 10)


async def test_a_backlog_is_bounded_in_bytes_but_takes_one_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "BYTES", 10)
    held = Backlog()
    await held.add(batch(1, 1, 50))
    adding = asyncio.create_task(held.add(batch(2, 1, 1)))
    for _ in range(5):
        await asyncio.sleep(0)

    assert not adding.done()
    await held.strike(1)
    await asyncio.wait_for(adding, 10)


async def test_what_follows_an_offset_is_waited_for_until_the_end() -> None:
    held = Backlog()
    following = asyncio.create_task(held.following(0))
    await held.add(batch(1, 5))
    await held.add(batch(7, 2))

    assert (await following, await held.following(3)) == (batch(1, 5), batch(1, 5))
    assert await held.following(5) == batch(7, 2)
    await held.end()
    assert await held.following(8) is None
    assert not held.is_done
    await held.strike(8)
    assert held.is_done
