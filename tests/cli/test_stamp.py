"""`omnibridge stamp`, against a fake node."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from blake3 import blake3

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.errors import InvalidArgument, Unavailable
from services.chassis.port import free_ports
from services.cli import document
from services.cli.batch import BATCH_BYTES, request_id
from services.cli.tree import File, OnError, find
from tests.cli.conftest import Run
from tests.cli.fake import MARK, FakeStamping

MIB = 1024 * 1024


def test_a_folder_is_stamped_with_paths_relative_to_it(run: Run, node: FakeStamping, tree: Path) -> None:
    ended = run("stamp", tree)

    assert ended.status == 0
    assert ended.err == ""
    assert [item.file_path for item in node.batches[0].items] == ["a.txt", "b.json", "deep/c.txt"]
    assert "3 stamped in" in ended.out
    assert re.search(r"application/json +1 +2 B +1 +0 +1", ended.out)


def test_a_file_given_by_itself_is_sent_under_its_name(run: Run, node: FakeStamping, tree: Path) -> None:
    assert run("stamp", tree / "deep" / "c.txt").status == 0

    assert [item.file_path for item in node.batches[0].items] == ["c.txt"]


def test_json_prints_one_record_a_file_and_nothing_else(run: Run, node: FakeStamping, tree: Path) -> None:
    ended = run("stamp", "--json", tree, tree / "missing")

    failure, *records = ended.records
    assert ended.status == 1
    assert failure["error"]["reason"] == "ENOENT"
    assert [Path(record["path"]).name for record in records] == ["a.txt", "b.json", "c.txt"]
    assert records[0]["stamp"]["digest"] == blake3(b"first\n").hexdigest()
    assert records[0]["created"] is True
    assert records[0]["placement"] == "detached"


def test_embedding_writes_the_stamp_and_keeps_the_mode(run: Run, node: FakeStamping, tree: Path) -> None:
    (tree / "a.txt").chmod(0o750)

    ended = run("stamp", "--embed", "--json", tree)

    assert ended.status == 0
    assert [record["placement"] for record in ended.records] == ["embedded", "detached", "embedded"]
    assert (tree / "a.txt").read_bytes() == MARK + blake3(b"first\n").hexdigest().encode() + b"\nfirst\n"
    assert stat.S_IMODE((tree / "a.txt").stat().st_mode) == 0o750
    assert (tree / "b.json").read_bytes() == b"{}"
    assert sorted(path.name for path in tree.iterdir()) == ["a.txt", "b.json", "deep"]


def test_embedding_twice_leaves_the_files_alone(run: Run, node: FakeStamping, tree: Path) -> None:
    run("stamp", "--embed", tree)
    before = (tree / "a.txt").stat()

    ended = run("stamp", "--embed", "--json", tree)

    assert [record["placement"] for record in ended.records] == ["current", "detached", "current"]
    after = (tree / "a.txt").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_embedding_leaves_a_file_that_changed_meanwhile_alone(run: Run, node: FakeStamping, tree: Path) -> None:
    node.on_batch = lambda: (tree / "a.txt").write_bytes(b"another's work\n")

    ended = run("stamp", "--embed", tree)

    assert ended.status == 1
    assert ended.err == f"omnibridge: {tree}/a.txt: EAGAIN: The file changed meanwhile\n"
    assert (tree / "a.txt").read_bytes() == b"another's work\n"
    assert (tree / "deep" / "c.txt").read_bytes().startswith(MARK)


def test_a_link_that_is_embedded_stays_a_link(run: Run, node: FakeStamping, tree: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.txt"
    link.symlink_to(tree / "a.txt")

    assert run("stamp", "--embed", link).status == 0

    assert link.is_symlink()
    assert (tree / "a.txt").read_bytes().startswith(MARK)


def test_a_retried_command_sends_the_same_request_ids(run: Run, node: FakeStamping, tree: Path) -> None:
    run("stamp", tree)
    run("stamp", tree)

    first, second = ([item.request_id for item in batch.items] for batch in node.batches)
    assert first == second
    assert len(set(first)) == 3


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(request_id("e" * 64, "a", "n", embed=True), id="content"),
        pytest.param(request_id("d" * 64, "b", "n", embed=True), id="path"),
        pytest.param(request_id("d" * 64, "a", "m", embed=True), id="namespace"),
        pytest.param(request_id("d" * 64, "a", "n", embed=False), id="embed"),
        pytest.param(request_id("d" * 64, "1\na", "n", embed=True), id="path with a newline"),
    ],
)
def test_a_request_id_differs_where_the_body_differs(other: str) -> None:
    one = request_id("d" * 64, "a", "n", embed=True)

    assert one == request_id("d" * 64, "a", "n", embed=True)
    assert one != other
    assert re.fullmatch(r"cli/[0-9a-f]{64}", one)


def test_requests_are_bounded_by_count(run: Run, node: FakeStamping, tmp_path: Path) -> None:
    for number in range(501):
        (tmp_path / f"{number}").write_bytes(b"%d" % number)

    assert run("stamp", tmp_path).status == 0

    assert sorted(len(batch.items) for batch in node.batches) == [1, 500]


def test_requests_are_bounded_by_bytes(run: Run, node: FakeStamping, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}").write_bytes(b"%d" % number * (3 * MIB))

    assert run("stamp", tmp_path).status == 0

    sizes = sorted(sum(len(item.content) for item in batch.items) for batch in node.batches)
    assert sizes == [3 * MIB, 6 * MIB, 6 * MIB]
    assert sizes[-1] <= BATCH_BYTES


def test_a_large_file_goes_by_stream_in_small_chunks(run: Run, node: FakeStamping, tmp_path: Path) -> None:
    content = os.urandom(11 * MIB + 17)
    (tmp_path / "a.bin").write_bytes(content)
    (tmp_path / "b.txt").write_bytes(b"small\n")

    ended = run("stamp", "--json", "--embed", tmp_path)

    assert ended.status == 0
    assert [record["placement"] for record in ended.records] == ["detached", "embedded"]
    assert ended.records[0]["stamp"]["digest"] == blake3(content).hexdigest()
    ((header, sizes),) = node.streams
    assert header.file_path == "a.bin"
    assert max(sizes) == 256 * 1024
    assert sum(sizes) == len(content)


@pytest.mark.parametrize(
    ("content", "streams"),
    [
        pytest.param(bytes(10 * MIB), 0, id="10 MiB"),
        pytest.param(bytes(10 * MIB + 1), 1, id="10 MiB and a byte"),
        pytest.param(MARK + b"0" * 64 + b"\n" + bytes(10 * MIB), 0, id="10 MiB and its stamp"),
    ],
)
def test_a_stamp_does_not_count_into_the_bound_of_a_unary_call(
    run: Run, node: FakeStamping, tmp_path: Path, content: bytes, streams: int
) -> None:
    (tmp_path / "a.bin").write_bytes(content)

    assert run("stamp", tmp_path).status == 0

    assert len(node.streams) == streams


def test_a_refused_file_does_not_stop_the_rest(run: Run, node: FakeStamping, tree: Path) -> None:
    node.item_refusals["b.json"] = InvalidArgument("file_path: is odd", metadata={"field": "file_path"})

    ended = run("stamp", "--json", tree)

    assert ended.status == 1
    assert ended.err == f"omnibridge: {tree}/b.json: INVALID_FIELD: file_path: is odd\n"
    assert [record.get("created") for record in ended.records] == [True, None, True]
    assert ended.records[1]["error"] == {"reason": "INVALID_FIELD", "message": "file_path: is odd"}


@pytest.mark.parametrize("per_item", [False, True], ids=["whole batch", "each item"])
def test_an_unavailable_database_is_one_line(run: Run, node: FakeStamping, tree: Path, per_item: bool) -> None:
    down = Unavailable("PostgreSQL is not there", reason=errors_pb2.ERROR_REASON_DATABASE_UNAVAILABLE)
    down.client_may_retry = False
    if per_item:
        node.item_refusals = dict.fromkeys(["a.txt", "b.json", "deep/c.txt"], down)
    else:
        node.refusals["BatchCreateStamps"] = down

    ended = run("stamp", tree)

    assert ended.status == 1
    assert ended.err == "omnibridge: stamping: DATABASE_UNAVAILABLE: PostgreSQL is not there\n"


def test_a_file_that_vanishes_is_its_own_failure(
    run: Run, node: FakeStamping, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_and_remove(paths: Sequence[Path], on_error: OnError) -> list[File]:
        files = find(paths, on_error)
        (tree / "a.txt").unlink()
        return files

    monkeypatch.setattr("services.cli.verb.stamp.find", find_and_remove)

    ended = run("stamp", tree)

    assert ended.status == 1
    assert ended.err == f"omnibridge: {tree}/a.txt: ENOENT: No such file or directory\n"
    assert len(node.ledger) == 2


def test_a_large_file_that_changes_while_it_is_read_is_not_stamped(
    run: Run, node: FakeStamping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(11 * MIB))
    monkeypatch.setattr(document, "digest", lambda path: "0" * 64)

    ended = run("stamp", tmp_path)

    assert ended.status == 1
    assert ended.err == f"omnibridge: {tmp_path}/a.bin: EAGAIN: The file changed meanwhile\n"
    assert not node.ledger


def test_a_name_that_is_not_utf8_is_reported_and_the_rest_is_stamped(run: Run, node: FakeStamping, tree: Path) -> None:
    odd = os.fsencode(tree) + b"/\xff.txt"
    try:
        Path(os.fsdecode(odd)).write_bytes(b"odd\n")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")

    ended = run("stamp", "--json", tree)

    assert ended.status == 1
    assert ended.err == f"omnibridge: {tree}/\N{REPLACEMENT CHARACTER}.txt: EILSEQ: The name is not UTF-8\n"
    assert os.fsencode(ended.records[0]["path"]) == odd
    assert len(node.ledger) == 3


def test_a_name_with_a_newline_stays_on_its_line(run: Run, tmp_path: Path) -> None:
    ended = run("stamp", tmp_path / "a\nomnibridge: forged\x1b[31m")

    assert ended.err.count("\n") == 1
    assert "\x1b" not in ended.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        pytest.param(["stamp"], "Missing argument 'PATH'", id="no path"),
        pytest.param(["stamp", ""], "a path is empty", id="empty path"),
        pytest.param(["stamp", ".", "--namespace", ""], "a namespace is 1 to 255 of", id="empty namespace"),
        pytest.param(["stamp", ".", "--namespace", "a/b"], "a namespace is 1 to 255 of", id="malformed namespace"),
        pytest.param(["stamp", ".", "--bogus"], "No such option: --bogus", id="unknown option"),
        pytest.param(["stamp", ".", "--target", "nowhere"], "--target nowhere", id="malformed target"),
        pytest.param(
            ["stamp", ".", "--workflow", "--target", "nowhere"], "--target nowhere", id="malformed and not needed"
        ),
        pytest.param(["bogus"], "No such command 'bogus'", id="unknown command"),
        pytest.param([], "Missing command", id="no command"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(run: Run, arguments: list[str], line: str) -> None:
    ended = run(*arguments)

    assert ended.status == 2
    assert ended.out == ""
    assert re.fullmatch(rf"omnibridge: .*{re.escape(line)}.*\n", ended.err)


@pytest.mark.parametrize("verb", [["stamp"], ["validate"], ["stamps", "show"]], ids=" ".join)
def test_a_node_that_is_not_there_is_named_with_the_way_to_start_it(run: Run, verb: list[str], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    target = f"127.0.0.1:{free_ports(1)[0]}"

    ended = run(*verb, tmp_path / "a", "--target", target)

    assert ended.status == 1
    assert ended.err == f"omnibridge: stamping: no node answers at {target}; start one by: omnibridge up\n"
