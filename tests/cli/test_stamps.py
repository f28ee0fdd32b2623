"""`omnibridge stamps`, against a fake node."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from blake3 import blake3

from omninode.bridge.stamping.v1 import stamping_pb2 as pb
from tests.cli.conftest import Run
from tests.cli.fake import FakeStamping


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [
        pytest.param(5, [5], id="part of a page"),
        pytest.param(1200, [1000, 200], id="two pages"),
        pytest.param(9999, [1000, 1000], id="more than there are"),
    ],
)
def test_a_list_follows_the_pages_up_to_its_limit(run: Run, node: FakeStamping, limit: int, sizes: list[int]) -> None:
    for number in range(1500):
        node.add(b"%d" % number, f"{number}.txt")

    ended = run("stamps", "list", "--json", "--limit", str(limit))

    assert ended.status == 0
    assert [record["file_path"] for record in ended.records] == [f"{number}.txt" for number in range(1499, -1, -1)][
        :limit
    ]
    assert [request.page_size for request in node.listed] == sizes


def test_every_filter_of_the_contract_is_sent(run: Run, node: FakeStamping) -> None:
    ended = run(
        *(
            "stamps",
            "list",
            "--namespace",
            "docs",
            "--content-type",
            "text/x",
            "--path-prefix",
            "a/",
            "--state",
            "revoked",
        ),
        *("--created-after", "2026-01-02T03:04:05Z", "--created-before", "2026-01-03T00:00:00+02:00"),
    )

    (request,) = node.listed
    assert ended.status == 0
    assert (request.namespace, request.content_type, request.file_path_prefix) == ("docs", "text/x", "a/")
    assert request.state == pb.STAMP_STATE_REVOKED
    assert request.created_after.ToDatetime(UTC) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert request.created_before.ToDatetime(UTC) == datetime(2026, 1, 2, 22, tzinfo=UTC)


def test_a_table_has_a_row_a_stamp(run: Run, node: FakeStamping) -> None:
    stamp = node.add(b"a", "docs/[bold]a.txt")

    ended = run("stamps", "list")

    assert stamp.digest in ended.out
    assert "docs/[bold]a.txt" in ended.out
    assert ended.out.endswith("1 stamp\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        pytest.param(["--limit", "0"], "Invalid value for '--limit'", id="limit"),
        pytest.param(["--state", "odd"], "'odd' is not one of", id="state"),
        pytest.param(["--created-after", "yesterday"], "a time is written as", id="time"),
    ],
)
def test_a_malformed_filter_is_wrong_usage(run: Run, arguments: list[str], line: str) -> None:
    ended = run("stamps", "list", *arguments)

    assert ended.status == 2
    assert line in ended.err
    assert ended.err.count("\n") == 1


def test_a_stamp_is_shown_by_its_digest_and_by_its_file(run: Run, node: FakeStamping, tmp_path: Path) -> None:
    stamp = node.add(b"a", "a.txt")
    (tmp_path / "copy").write_bytes(b"a")

    for subject in (stamp.digest, stamp.digest.upper(), tmp_path / "copy"):
        (record,) = run("stamps", "show", "--json", subject).records
        assert record["stamp_id"] == stamp.stamp_id
    assert stamp.stamp_id in run("stamps", "show", stamp.digest).out


def test_a_stamp_that_is_not_there_is_one_line(run: Run, node: FakeStamping, tmp_path: Path) -> None:
    ended = run("stamps", "show", blake3(b"unknown").hexdigest())
    missing = run("stamps", "show", tmp_path / "missing")

    assert (ended.status, missing.status) == (1, 1)
    assert ended.err == "omnibridge: stamping: STAMP_NOT_FOUND: there is no such stamp\n"
    assert missing.err == f"omnibridge: {tmp_path}/missing: ENOENT: No such file or directory\n"


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        pytest.param(
            pb.RevokeStampResponse(), "noted: that request has not come; it is refused when it comes", id="early"
        ),
        pytest.param(
            pb.RevokeStampResponse(stamp=pb.Stamp(digest="d", version=2), revoked=True),
            "revoked: stamp d, version 2",
            id="the last claim",
        ),
        pytest.param(
            pb.RevokeStampResponse(stamp=pb.Stamp(digest="d", version=2), remaining_claim_count=1),
            "released: stamp d, version 2; it stands, by 1 claim",
            id="another claims it",
        ),
        pytest.param(
            pb.RevokeStampResponse(stamp=pb.Stamp(digest="d", version=2)),
            "released before: stamp d, version 2; nobody claims it any more",
            id="once more",
        ),
    ],
)
def test_a_revocation_says_what_became_of_the_claim(
    run: Run, node: FakeStamping, answer: pb.RevokeStampResponse, line: str
) -> None:
    node.revocation = answer

    ended = run("stamps", "revoke", "build-17", "--namespace", "docs", "--reason", "wrong file", "--request-id", "r1")

    assert (ended.status, ended.out) == (0, f"{line}\n")
    assert node.revocations == [
        pb.RevokeStampRequest(creation_request_id="build-17", request_id="r1", namespace="docs", reason="wrong file")
    ]


def test_a_revocation_has_an_id_of_its_own_unless_one_is_given(run: Run, node: FakeStamping) -> None:
    records = [run("stamps", "revoke", "build-17", "--json").records[0] for _ in range(2)]

    ids = [request.request_id for request in node.revocations]
    assert [str(uuid.UUID(each)) for each in ids] == ids
    assert [record["request_id"] for record in records] == ids
    assert len(set(ids)) == 2


def _event(kind: pb.StampEventKind.ValueType) -> pb.StampEvent:
    event = pb.StampEvent(kind=kind, namespace="docs")
    event.occur_time.FromJsonString("2026-03-01T12:00:00Z")
    return event


def test_what_happens_to_stamps_is_a_line_each(run: Run, node: FakeStamping) -> None:
    revoked = _event(pb.STAMP_EVENT_KIND_REVOKED)
    revoked.stamp.CopyFrom(pb.Stamp(digest="d", version=2, file_path="a\n.txt"))
    revoked.reason = "wrong file"
    batch = _event(pb.STAMP_EVENT_KIND_BATCH_PROCESSED)
    batch.stamped_count, batch.refused_count = 498, 2
    node.feed.then(pb.WatchStampsResponse(items=[revoked, batch], cursor="c1"))

    ended = run("stamps", "watch", "--count", "2")

    assert ended.out.splitlines() == [
        "2026-03-01 12:00:00.000Z  revoked  docs  d  v2  a\\n.txt  wrong file",
        "2026-03-01 12:00:00.000Z  batch_processed  docs  498 stamped, 2 refused",
    ]
    assert node.feed.requests == [pb.WatchStampsRequest()]


def test_a_watch_of_stamps_asks_with_every_filter_of_the_contract(run: Run, node: FakeStamping) -> None:
    node.feed.then(pb.WatchStampsResponse(items=[_event(pb.STAMP_EVENT_KIND_CREATED)], cursor="c2"))

    (record,) = run(
        *("stamps", "watch", "--namespace", "docs", "--kind", "created", "--kind", "batch_processed"),
        *("--digest", "a" * 64, "--cursor", "c1", "--count", "1", "--json"),
    ).records

    assert node.feed.requests == [
        pb.WatchStampsRequest(
            namespace="docs",
            kinds=[pb.STAMP_EVENT_KIND_CREATED, pb.STAMP_EVENT_KIND_BATCH_PROCESSED],
            digest="a" * 64,
            cursor="c1",
        )
    ]
    assert (record["kind"], record["cursor"]) == ("STAMP_EVENT_KIND_CREATED", "c2")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        pytest.param(["--kind", "odd"], "'odd' is not one of", id="kind"),
        pytest.param(["--namespace", ""], "a namespace is 1 to 255 of", id="namespace"),
    ],
)
def test_a_malformed_filter_of_a_watch_is_wrong_usage(run: Run, arguments: list[str], line: str) -> None:
    ended = run("stamps", "watch", *arguments)

    assert ended.status == 2
    assert line in ended.err
