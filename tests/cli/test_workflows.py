"""`omnibridge workflows` and `omnibridge stamp --workflow`, against fake nodes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from blake3 import blake3

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    invalid_field,
)
from services.chassis.port import free_ports
from services.cli import batch, workflow
from tests.cli.conftest import Run
from tests.cli.fake import MARK, FakeStamping
from tests.cli.fake_orchestrator import FakeOrchestrator

MIB = 1024 * 1024
PATHS = ["a.txt", "b.json", "deep/c.txt"]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (
        ("OUTAGE_SECONDS", 0.5),
        ("RETRY_SECONDS", 0.01),
        ("FIRST_POLL_SECONDS", 0.001),
        ("LONGEST_POLL_SECONDS", 0.01),
    ):
        monkeypatch.setattr(workflow, name, seconds)


def _unavailable() -> Unavailable:
    error = Unavailable("PostgreSQL is not there", reason=errors_pb2.ERROR_REASON_DATABASE_UNAVAILABLE)
    error.client_may_retry = False
    return error


def test_a_folder_is_submitted_with_paths_relative_to_it(run: Run, orchestrator: FakeOrchestrator, tree: Path) -> None:
    ended = run("workflows", "submit", "--namespace", "docs", tree)

    (request,) = orchestrator.batches
    assert (ended.status, ended.err) == (0, "")
    assert [item.file_path for item in request.items] == PATHS
    assert {item.namespace for item in request.items} == {"docs"}
    *lines, summary = ended.out.splitlines()
    assert lines == [f"{id_}  {tree}/{path}" for id_, path in zip(orchestrator.workflows, PATHS, strict=True)]
    assert summary.startswith("3 workflows submitted in ")
    assert not orchestrator.polls


def test_a_repeated_command_finds_the_workflows_that_it_made(
    run: Run, orchestrator: FakeOrchestrator, tree: Path
) -> None:
    first, second = run("workflows", "submit", "--json", tree), run("workflows", "submit", "--json", tree)

    assert [record["workflow_id"] for record in first.records] == [record["workflow_id"] for record in second.records]
    assert [record["created"] for record in first.records + second.records] == [True] * 3 + [False] * 3
    assert [record["path"] for record in first.records] == [f"{tree}/{path}" for path in PATHS]


def test_waiting_ends_when_every_workflow_has(run: Run, orchestrator: FakeOrchestrator, tree: Path) -> None:
    orchestrator.polls_to_end = 4

    plain, as_json = run("workflows", "submit", "--wait", tree), run("workflows", "submit", "--wait", "--json", tree)

    assert (plain.status, as_json.status) == (0, 0)
    assert "3 workflows completed in " in plain.out
    assert [record["workflow"]["state"] for record in as_json.records] == ["WORKFLOW_STATE_COMPLETED"] * 3
    assert as_json.records[0]["workflow"]["stamp"]["digest"] == blake3(b"first\n").hexdigest()


@pytest.mark.parametrize("verb", [["workflows", "submit", "--wait"], ["stamp", "--workflow"]], ids=" ".join)
def test_a_workflow_that_failed_is_its_own_files_failure(
    run: Run, orchestrator: FakeOrchestrator, tree: Path, verb: list[str]
) -> None:
    orchestrator.failures["b.json"] = FailedPrecondition("odd", reason=errors_pb2.ERROR_REASON_BLOB_MISSING)

    ended = run(*verb, "--json", tree)

    assert ended.status == 1
    assert re.fullmatch(rf"omnibridge: {tree}/b\.json: BLOB_MISSING: workflow \S+ failed: odd\n", ended.err)
    assert [record.get("error", {}).get("reason") for record in ended.records] == [None, "BLOB_MISSING", None]


def test_a_refused_file_does_not_stop_the_rest(run: Run, orchestrator: FakeOrchestrator, tree: Path) -> None:
    orchestrator.item_refusals["b.json"] = invalid_field("file_path", "is odd")

    ended = run("workflows", "submit", tree, tree / "missing")

    assert ended.status == 1
    assert ended.err.splitlines() == [
        f"omnibridge: {tree}/missing: ENOENT: No such file or directory",
        f"omnibridge: {tree}/b.json: INVALID_FIELD: file_path: is odd",
    ]
    assert "2 workflows submitted, 2 failed in " in ended.out


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(bytes(10 * MIB + 64 * 1024 + 1), id="too large to send"),
        pytest.param(bytes(10 * MIB + 1), id="too large for the node"),
    ],
)
def test_a_file_that_is_too_large_is_refused_with_the_reason(
    run: Run, orchestrator: FakeOrchestrator, tree: Path, content: bytes
) -> None:
    (tree / "large.bin").write_bytes(content)

    ended = run("stamp", "--workflow", tree)

    assert ended.status == 1
    assert ended.err.startswith(f"omnibridge: {tree}/large.bin: CONTENT_TOO_LARGE: ")
    assert ended.err.count("\n") == 1
    assert "3 stamped, 1 failed in " in ended.out


def test_requests_are_bounded_by_count(
    run: Run, orchestrator: FakeOrchestrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "BATCH_COUNT", 3)
    for number in range(7):
        (tmp_path / f"{number}").write_bytes(b"%d" % number)

    ended = run("workflows", "submit", "--wait", "--json", tmp_path)

    assert sorted(len(request.items) for request in orchestrator.batches) == [1, 3, 3]
    assert [Path(record["path"]).name for record in ended.records] == [str(number) for number in range(7)]


@pytest.mark.parametrize("method", ["BatchSubmitWorkflows", "GetWorkflow"])
def test_a_node_that_restarts_is_waited_for(run: Run, orchestrator: FakeOrchestrator, tree: Path, method: str) -> None:
    orchestrator.outages[method] = 3

    ended = run("workflows", "submit", "--wait", tree)

    assert (ended.status, ended.err) == (0, "")
    assert orchestrator.outages[method] == 0
    assert len(orchestrator.workflows) == 3


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(Unavailable("the store is away"), id="UNAVAILABLE"),
        pytest.param(ResourceExhausted("full", reason=errors_pb2.ERROR_REASON_QUEUE_FULL), id="QUEUE_FULL"),
    ],
)
def test_a_batch_of_which_one_item_met_an_outage_is_sent_again(
    run: Run, orchestrator: FakeOrchestrator, tree: Path, error: Unavailable | ResourceExhausted
) -> None:
    orchestrator.item_refusals["b.json"] = error

    ended = run("workflows", "submit", "--json", tree)

    assert (ended.status, ended.err) == (0, "")
    first, second = orchestrator.batches
    assert first == second
    assert [record["created"] for record in ended.records] == [False, True, False]


@pytest.mark.parametrize("method", ["BatchSubmitWorkflows", "GetWorkflow"])
def test_an_outage_that_lasts_is_one_line(
    run: Run, orchestrator: FakeOrchestrator, tree: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(workflow, "OUTAGE_SECONDS", 0.05)
    orchestrator.refusals[method] = _unavailable()

    ended = run("stamp", "--workflow", tree)

    assert ended.status == 1
    assert ended.err == "omnibridge: orchestrator: DATABASE_UNAVAILABLE: PostgreSQL is not there\n"


@pytest.mark.parametrize("error", [InvalidArgument("odd"), Aborted("odd")], ids=lambda error: type(error).__name__)
def test_a_refusal_of_all_is_one_line_at_once(
    run: Run, orchestrator: FakeOrchestrator, tree: Path, error: InvalidArgument | Aborted
) -> None:
    orchestrator.refusals["BatchSubmitWorkflows"] = error

    ended = run("workflows", "submit", tree)

    assert ended.status == 1
    assert re.fullmatch(r"omnibridge: orchestrator: [A-Z_]+: odd\n", ended.err)


def test_a_workflow_that_does_not_end_is_left_to_itself(
    run: Run, orchestrator: FakeOrchestrator, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "STALL_SECONDS", 1.0)
    orchestrator.endless.add("b.json")

    ended = run("workflows", "submit", "--wait", tree)

    assert ended.status == 1
    assert re.fullmatch(
        rf"omnibridge: {tree}/b\.json: DEADLINE_EXCEEDED: workflow \S+ has not ended; it goes on without us\n",
        ended.err,
    )
    assert "2 workflows completed, 1 failed in " in ended.out


@pytest.mark.parametrize(
    "arguments",
    [["workflows", "submit", "FILE"], ["stamp", "--workflow", "FILE"], ["workflows", "show", "x"]],
    ids=" ".join,
)
def test_a_node_that_is_not_there_is_named_at_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    # A second try would end in another line.
    monkeypatch.setattr(workflow, "RETRY_SECONDS", None)
    monkeypatch.setattr(workflow, "OUTAGE_SECONDS", 60.0)
    (tmp_path / "a").write_bytes(b"a")
    target = f"127.0.0.1:{free_ports(1)[0]}"
    words = [str(tmp_path / "a") if word == "FILE" else word for word in arguments]

    ended = run(*words, "--orchestrator", target)

    assert ended.status == 1
    assert ended.err == f"omnibridge: orchestrator: no node answers at {target}; start one by: omnibridge up\n"


def test_a_malformed_target_is_wrong_usage(run: Run) -> None:
    ended = run("workflows", "show", "x", "--orchestrator", "nowhere")

    assert ended.status == 2
    assert ended.err.startswith("omnibridge: --orchestrator nowhere: ")


def test_a_workflow_is_shown_as_a_table_and_as_json(run: Run, orchestrator: FakeOrchestrator, tree: Path) -> None:
    (submitted,) = run("workflows", "submit", "--wait", "--json", tree / "a.txt").records
    workflow_id = submitted["workflow"]["workflow_id"]

    table, (record,) = run("workflows", "show", workflow_id), run("workflows", "show", "--json", workflow_id).records

    assert record == submitted["workflow"]
    assert re.search(r"^ *state +WORKFLOW_STATE_COMPLETED *$", table.out, re.MULTILINE)
    assert re.search(rf"^ *stamp\.digest +{record['stamp']['digest']} *$", table.out, re.MULTILINE)


@pytest.mark.parametrize(
    ("workflow_id", "status", "line"),
    [
        pytest.param("x", 1, "orchestrator: WORKFLOW_NOT_FOUND: there is no such workflow", id="unknown"),
        pytest.param(
            "\udcff", 2, "Invalid value for 'WORKFLOW_ID': it is not UTF-8; see: omnibridge --help", id="bytes"
        ),
    ],
)
def test_a_workflow_that_cannot_be_shown_is_one_line(
    run: Run, orchestrator: FakeOrchestrator, workflow_id: str, status: int, line: str
) -> None:
    ended = run("workflows", "show", workflow_id)

    assert (ended.status, ended.err) == (status, f"omnibridge: {line}\n")


def test_stamping_by_workflow_says_which_stamps_are_new(run: Run, orchestrator: FakeOrchestrator, tree: Path) -> None:
    (tree / "deep" / "d.txt").write_bytes(b"first\n")

    ended = run("stamp", "--workflow", "--json", tree)

    assert (ended.status, ended.err) == (0, "")
    assert [Path(record["path"]).name for record in ended.records] == ["a.txt", "b.json", "c.txt", "d.txt"]
    created = [record["created"] for record in ended.records]
    assert created[1:3] == [True, True]
    # Of the two with the same content, the one that ended first.
    assert sorted((created[0], created[3])) == [False, True]
    assert {record["placement"] for record in ended.records} == {"detached"}
    assert ended.records[0]["stamp"]["stamp_id"] == ended.records[3]["stamp"]["stamp_id"]


def test_stamping_by_workflow_embeds_what_the_ledger_has(
    run: Run, orchestrator: FakeOrchestrator, node: FakeStamping, tree: Path
) -> None:
    ended = run("stamp", "--workflow", "--embed", "--json", tree)
    again = run("stamp", "--workflow", "--embed", "--json", tree)

    assert [record["placement"] for record in ended.records] == ["embedded", "detached", "embedded"]
    assert [record["created"] for record in ended.records] == [True, True, True]
    assert (tree / "a.txt").read_bytes() == MARK + blake3(b"first\n").hexdigest().encode() + b"\nfirst\n"
    assert [record["placement"] for record in again.records] == ["current", "detached", "current"]
    assert len(node.ledger) == 3


def test_what_failed_as_a_workflow_is_not_embedded(run: Run, orchestrator: FakeOrchestrator, tree: Path) -> None:
    orchestrator.failures["a.txt"] = FailedPrecondition("odd")

    ended = run("stamp", "--workflow", "--embed", "--json", tree)

    assert ended.status == 1
    assert (tree / "a.txt").read_bytes() == b"first\n"
    assert (tree / "deep" / "c.txt").read_bytes().startswith(MARK)


def test_an_outage_of_the_stamping_node_is_told_in_its_own_name(
    run: Run, orchestrator: FakeOrchestrator, node: FakeStamping, tree: Path
) -> None:
    node.refusals["BatchCreateStamps"] = _unavailable()

    ended = run("stamp", "--workflow", "--embed", tree)

    assert ended.status == 1
    assert ended.err == "omnibridge: stamping: DATABASE_UNAVAILABLE: PostgreSQL is not there\n"
