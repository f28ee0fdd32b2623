"""`omnibridge stamps`, against a fake node."""

from __future__ import annotations

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
