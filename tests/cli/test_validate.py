"""`omnibridge validate`, against a fake node."""

from __future__ import annotations

from pathlib import Path

import pytest
from blake3 import blake3

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.errors import InvalidArgument, Unavailable
from tests.cli.conftest import Run
from tests.cli.fake import MARK, FakeStamping

MIB = 1024 * 1024


def _stamped(content: bytes) -> bytes:
    return MARK + blake3(content).hexdigest().encode() + b"\n" + content


@pytest.fixture
def known(node: FakeStamping, tmp_path: Path) -> Path:
    """A path, beside a ledger that knows the content `known`."""
    node.add(b"known", "x")
    return tmp_path / "x"


@pytest.mark.parametrize(
    ("content", "verdict", "status", "strict"),
    [
        pytest.param(_stamped(b"known"), "valid", 0, 0, id="valid"),
        pytest.param(_stamped(b"unknown"), "valid", 0, 0, id="valid and unknown to the ledger"),
        pytest.param(_stamped(b"known") + b"!", "invalid", 1, 1, id="changed"),
        pytest.param(b"known", "recorded", 0, 0, id="stamped detached"),
        pytest.param(b"unknown", "unstamped", 0, 1, id="without a stamp"),
        pytest.param(bytes(11 * MIB), "unstamped", 0, 1, id="large and unknown"),
    ],
)
def test_each_verdict_has_its_exit_status(
    run: Run, known: Path, content: bytes, verdict: str, *, status: int, strict: int
) -> None:
    known.write_bytes(content)

    plain, stricter = run("validate", "--json", known), run("validate", "--strict", "--json", known)

    assert (plain.status, stricter.status) == (status, strict)
    assert [record["verdict"] for record in plain.records + stricter.records] == [verdict, verdict]


@pytest.mark.parametrize(
    "content", [bytes(11 * MIB), bytes(10 * MIB + 1)], ids=["too large to send", "too large for the node"]
)
def test_a_large_file_is_looked_up_by_its_digest(run: Run, node: FakeStamping, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    node.add(content, "x")

    (record,) = run("validate", "--json", tmp_path).records

    assert record["verdict"] == "recorded"
    assert record["ledger_stamp"]["digest"] == blake3(content).hexdigest()


def test_what_was_found_is_said_line_by_line_and_summed_up(run: Run, node: FakeStamping, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(_stamped(b"a") + b"!")
    (tmp_path / "foreign").write_bytes(b"a\n# === foreign\n")
    (tmp_path / "good").write_bytes(_stamped(b"a"))

    ended = run("validate", tmp_path)

    declared, current = blake3(b"a").hexdigest(), blake3(b"a!").hexdigest()
    assert ended.out.splitlines() == [
        f"{tmp_path}/bad:1: invalid: the content was changed (declares {declared}, the content is {current})",
        f"{tmp_path}/foreign:2: foreign: a block of another tool, not judged",
        f"{tmp_path}/foreign: no stamp",
        "1 valid (1 of them unknown to the ledger), 1 invalid, 0 stamped detached, 1 without a stamp",
    ]
    assert ended.err == ""
    assert ended.status == 1


def test_a_missing_file_fails_and_the_rest_is_validated(run: Run, node: FakeStamping, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(_stamped(b"a"))

    ended = run("validate", tmp_path / "missing", tmp_path / "x")

    assert ended.status == 1
    assert ended.err == f"omnibridge: {tmp_path}/missing: ENOENT: No such file or directory\n"
    assert ended.out.startswith("1 valid")
    assert ended.out.endswith(", 1 failed\n")


def test_a_refusal_of_one_file_is_its_own_and_an_unavailable_node_ends_all(
    run: Run, node: FakeStamping, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"x")
    node.refusals["ValidateStamp"] = InvalidArgument("file_path: is odd")
    refused = run("validate", tmp_path)
    down = Unavailable("PostgreSQL is not there", reason=errors_pb2.ERROR_REASON_DATABASE_UNAVAILABLE)
    down.client_may_retry = False
    node.refusals["ValidateStamp"] = down
    unavailable = run("validate", tmp_path)

    assert (refused.status, unavailable.status) == (1, 1)
    assert refused.err == f"omnibridge: {tmp_path}/x: INVALID_FIELD: file_path: is odd\n"
    assert unavailable.err == "omnibridge: stamping: DATABASE_UNAVAILABLE: PostgreSQL is not there\n"
