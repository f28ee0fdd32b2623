"""`omnibridge outbox`, against a fake store."""

from __future__ import annotations

import pytest

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from services.chassis.errors import NotFound, Unavailable
from services.cli import following
from tests.cli.conftest import Run
from tests.cli.fake_store import FakeStore


def response(cursor: str, *places: tuple[int, int], complete: bool = True) -> pb.WatchOutboxResponse:
    """Events by their offset and index; the last offset has more of them unless it is complete."""
    last, _ = places[-1]
    answer = pb.WatchOutboxResponse(cursor=cursor, next_offset=last + 1 if complete else last)
    for offset, index in places:
        event = pb.Event(
            event_id=f"id-{offset}-{index}", kind=pb.EVENT_KIND_INTENT, event_type="fold", topic="t", partition_key="k"
        )
        item = answer.items.add(
            event=event,
            partition=3,
            offset=offset,
            index=index,
            key="workflow/x",
            version=1,
        )
        item.commit_time.FromJsonString("2026-03-01T12:00:00Z")
    return answer


def acknowledged(store: FakeStore) -> list[int]:
    return [request.offset for request in store.requests if isinstance(request, pb.AckOutboxRequest)]


@pytest.fixture
def relay(store: FakeStore) -> FakeStore:
    """A consumer of two partitions."""
    consumer = pb.Consumer(consumer="relay", lag=1200)
    consumer.register_time.FromJsonString("2026-03-01T00:00:00Z")
    for partition, lag, time in ((0, 1100, "2026-03-02T00:00:00Z"), (1, 100, "2026-03-01T06:00:00Z")):
        part = consumer.partitions.add(partition=partition, next_offset=5 + partition, lag=lag)
        part.ack_time.FromJsonString(time)
    store.consumers = [consumer, pb.Consumer(consumer="audit", partitions=[pb.ConsumerPartition(partition=0)])]
    return store


def test_a_consumer_is_a_row_with_its_last_acknowledgement(run: Run, relay: FakeStore) -> None:
    ended = run("outbox", "consumers")

    *_, first, second, _blank, count = ended.out.splitlines()
    assert first.split()[0] == "relay"
    assert "1,200" in first
    assert "2026-03-01 00:00:00Z" in first
    assert "2026-03-02 00:00:00Z" in first
    assert second.split()[0] == "audit"
    assert second.split()[-1] == "never"
    assert count == "2 consumers"


def test_partitions_of_consumers_are_rows(run: Run, relay: FakeStore) -> None:
    ended = run("outbox", "consumers", "--partitions")

    rows = [line.split() for line in ended.out.splitlines()]
    assert ["relay", "1", "6", "100", "2026-03-01", "06:00:00Z"] in rows
    assert ["audit", "0", "0", "0", "never"] in rows


def test_consumers_are_json_lines(run: Run, relay: FakeStore) -> None:
    first, second = run("outbox", "consumers", "--json").records

    assert (first["consumer"], first["lag"], first["partitions"][1]["next_offset"]) == ("relay", "1200", "6")
    assert second["consumer"] == "audit"


def test_an_event_is_a_line_and_nothing_is_acknowledged_unasked(run: Run, store: FakeStore) -> None:
    store.outbox.then(response("c1", (8, 0)))

    ended = run("outbox", "watch", "relay", "--partition", "3", "--count", "1")

    assert ended.out == "2026-03-01 12:00:00.000Z  intent  fold  t  k  3:8.0  id-8-0\n"
    (request,) = store.outbox.requests
    assert request == pb.WatchOutboxRequest(consumer="relay", partition=3)
    assert not store.requests


def test_what_was_printed_is_acknowledged_response_by_response(run: Run, store: FakeStore) -> None:
    store.outbox.then(response("c1", (8, 0), (8, 1), (9, 0)), response("c2", (12, 0)))

    ended = run("outbox", "watch", "relay", "--partition", "3", "--count", "4", "--ack", "--json")

    assert ended.status == 0
    assert [record["event"]["event_id"] for record in ended.records] == ["id-8-0", "id-8-1", "id-9-0", "id-12-0"]
    assert store.requests[0] == pb.AckOutboxRequest(consumer="relay", partition=3, offset=9)
    assert acknowledged(store) == [9, 12]


@pytest.mark.parametrize(
    ("count", "offsets"),
    [
        pytest.param(1, [8], id="at the end of an offset"),
        pytest.param(2, [8], id="in the middle of an offset"),
        pytest.param(3, [9], id="at the end of the next"),
    ],
)
def test_an_offset_is_acknowledged_only_when_all_its_events_were_printed(
    run: Run, store: FakeStore, count: int, offsets: list[int]
) -> None:
    store.outbox.then(response("c1", (8, 0), (9, 0), (9, 1), (10, 0)))

    run("outbox", "watch", "relay", "--partition", "3", "--count", str(count), "--ack")

    assert acknowledged(store) == offsets


def test_an_offset_cut_in_its_first_event_is_not_acknowledged(run: Run, store: FakeStore) -> None:
    store.outbox.then(response("c1", (0, 0), (0, 1)))

    run("outbox", "watch", "relay", "--partition", "3", "--count", "1", "--ack")

    assert acknowledged(store) == []


def test_an_acknowledgement_waits_for_a_node_that_is_away(
    run: Run, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "FIRST_PAUSE_SECONDS", 0.01)
    away = Unavailable("no database", reason=errors_pb2.ERROR_REASON_DATABASE_UNAVAILABLE)
    away.client_may_retry = False
    store.refusals = [away, away]
    store.outbox.then(response("c1", (8, 0)))

    ended = run("outbox", "watch", "relay", "--partition", "3", "--count", "1", "--ack")

    assert ended.status == 0
    assert acknowledged(store) == [8, 8, 8]
    assert ended.err.count("DATABASE_UNAVAILABLE") == 1


def test_an_offset_that_spans_responses_is_acknowledged_at_its_end(run: Run, store: FakeStore) -> None:
    store.outbox.then(response("c1", (8, 0), (9, 0), complete=False), response("c2", (9, 1)))

    run("outbox", "watch", "relay", "--partition", "3", "--count", "3", "--ack")

    assert acknowledged(store) == [8, 9]


def test_a_consumer_is_forgotten(run: Run, store: FakeStore) -> None:
    ended = run("outbox", "forget", "relay")

    assert (ended.status, ended.out) == (0, "forgot relay\n")
    assert store.requests == [pb.DeleteConsumerRequest(consumer="relay")]


def test_a_consumer_that_is_not_there_is_one_line(run: Run, store: FakeStore) -> None:
    store.refusal = NotFound("no such consumer", reason=errors_pb2.ERROR_REASON_CONSUMER_NOT_FOUND)

    ended = run("outbox", "forget", "relay")

    assert (ended.status, ended.err) == (1, "omnibridge: store: CONSUMER_NOT_FOUND: no such consumer\n")


def test_a_watch_needs_its_partition(run: Run) -> None:
    ended = run("outbox", "watch", "relay")

    assert ended.status == 2
    assert "Missing option '--partition'" in ended.err
