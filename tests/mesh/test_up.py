"""Stories of a real mesh: `omnibridge up` with a real PostgreSQL, real processes and real faults."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2

from omninode.bridge.stamping.v1 import stamping_pb2 as pb
from omninode.bridge.stamping.v1 import stamping_pb2_grpc
from services.chassis.client import ClientSettings, connect
from services.chassis.errors import Unavailable
from services.chassis.port import free_ports
from services.cli.example import EXAMPLES, Example, grpcurl
from tests.mesh.running import Mesh, running_mesh, start_up

BUF = str(Path(sys.executable).with_name("buf"))
BOUND = 30.0
"""Seconds within which the mesh must have mended itself."""


def until(condition: Callable[[], bool], what: str) -> None:
    """Returns once `condition` holds, and fails after the bound."""
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline, f"not within {BOUND} s: {what}"
        # Another process is watched: there is no event to wait for.
        time.sleep(0.02)


def offspring(mesh: Mesh) -> list[psutil.Process]:
    return psutil.Process(mesh.process.pid).children(recursive=True)


def node_process(mesh: Mesh, name: str) -> psutil.Process:
    return next(process for process in offspring(mesh) if process.cmdline()[-2:] == ["serve", name])


def postmaster(mesh: Mesh) -> psutil.Process:
    return psutil.Process(int((mesh.data / "postgres" / "postmaster.pid").read_text().split()[0]))


def hash_works(mesh: Mesh) -> bool:
    with grpc.insecure_channel(mesh.addresses["stamping"]) as channel:
        call: Any = channel.unary_unary(
            "/omninode.bridge.stamping.v1.StampingService/Hash", None, pb.HashResponse.FromString
        )
        try:
            return bool(call(b"", timeout=5).digest)
        except grpc.RpcError:
            return False


def buf_curl(mesh: Mesh, example: Example) -> subprocess.CompletedProcess[str]:
    target = f"http://{mesh.addresses[example.node]}"
    match example.verb:
        case "list":
            words = ["--list-services", target]
        case "describe":
            words = ["--list-methods", target]
        case _:
            words = ["-d", json.dumps(example.request), f"{target}/{example.method}"]
    command = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_lines_that_up_prints_work_one_after_another_for_a_foreign_client(mesh: Mesh) -> None:
    for example in EXAMPLES:
        assert grpcurl(example, mesh.addresses[example.node]) in mesh.printed
        done = buf_curl(mesh, example)
        assert done.returncode == 0, f"{example.purpose}: {done.stderr}"
        assert done.stdout.strip(), example.purpose
    # The last one asks for the state of a workflow that has ended.
    assert json.loads(json.loads(done.stdout)["state"]["stateJson"])["state"] == "COMPLETED"


def test_a_foreign_client_reads_a_refusal_with_its_reason_and_field(mesh: Mesh) -> None:
    bad = Example(
        "a refusal",
        "stamping",
        "omninode.bridge.stamping.v1.StampingService/CreateStamp",
        {"request_id": "r", "namespace": "a b"},
    )
    done = buf_curl(mesh, bad)
    assert done.returncode != 0
    details = {
        detail["type"]: base64.b64decode(detail["value"] + "==") for detail in json.loads(done.stderr)["details"]
    }
    info = error_details_pb2.ErrorInfo.FromString(details["google.rpc.ErrorInfo"])
    bad_request = error_details_pb2.BadRequest.FromString(details["google.rpc.BadRequest"])
    assert (info.reason, info.domain) == ("INVALID_FIELD", "bridge.omninode")
    assert [violation.field for violation in bad_request.field_violations] == ["namespace"]


def test_metrics_are_served_over_http(mesh: Mesh) -> None:
    assert hash_works(mesh)
    with urllib.request.urlopen(mesh.nodes["stamping"].metrics_url, timeout=10) as answer:
        text = answer.read().decode()
    for name in (
        "grpc_server_handled_total",
        "grpc_server_handling_seconds",
        "pool_exhaustion_warnings_total",
        "process_cpu",
    ):
        assert name in text


def test_a_second_up_on_the_same_folder_is_refused_with_pid_folder_and_port(mesh: Mesh) -> None:
    second = start_up(mesh.data, mesh.nodes)
    printed, _ = second.communicate(timeout=60)
    assert second.returncode == 1
    assert len(printed.strip().splitlines()) == 1
    for named in (str(mesh.process.pid), str(mesh.data), str(mesh.nodes["stamping"].port)):
        assert named in printed


def test_a_second_up_on_the_same_ports_is_refused_with_pid_folder_and_port(mesh: Mesh, tmp_path: Path) -> None:
    second = start_up(tmp_path / "other", mesh.nodes)
    printed, _ = second.communicate(timeout=60)
    assert second.returncode == 1
    for named in (str(mesh.process.pid), str(mesh.data), str(mesh.nodes["stamping"].port)):
        assert named in printed


def test_the_end_of_up_ends_every_process_and_a_new_start_finds_what_was_acknowledged(tmp_path: Path) -> None:
    request = pb.CreateStampRequest(request_id="r", content=b"kept")
    with running_mesh(tmp_path) as mesh:
        processes = offspring(mesh)
        with grpc.insecure_channel(mesh.addresses["stamping"]) as channel:
            first = _create(channel)(request, timeout=10)
    assert not [process for process in processes if process.is_running()]
    with running_mesh(tmp_path) as mesh, grpc.insecure_channel(mesh.addresses["stamping"]) as channel:
        assert _create(channel)(request, timeout=10) == first


def _create(channel: grpc.Channel) -> grpc.UnaryUnaryMultiCallable[pb.CreateStampRequest, pb.CreateStampResponse]:
    return channel.unary_unary(
        "/omninode.bridge.stamping.v1.StampingService/CreateStamp",
        pb.CreateStampRequest.SerializeToString,
        pb.CreateStampResponse.FromString,
    )


def test_killing_the_supervisor_leaves_no_orphan_and_no_loss(tmp_path: Path) -> None:
    request = pb.CreateStampRequest(request_id="r", content=b"kept")
    with running_mesh(tmp_path) as mesh:
        processes = offspring(mesh)
        assert len(processes) > 2
        with grpc.insecure_channel(mesh.addresses["stamping"]) as channel:
            first = _create(channel)(request, timeout=10)
        os.kill(mesh.process.pid, signal.SIGKILL)
        mesh.process.wait(10)
        until(lambda: not [process for process in processes if process.is_running()], "every process has ended")
    with running_mesh(tmp_path) as mesh, grpc.insecure_channel(mesh.addresses["stamping"]) as channel:
        assert _create(channel)(request, timeout=10) == first


def test_a_killed_node_is_back_and_healthy(tmp_path: Path) -> None:
    with running_mesh(tmp_path) as mesh:
        killed = node_process(mesh, "stamping")
        killed.kill()
        until(lambda: not killed.is_running() and hash_works(mesh), "the node answers again")
        assert node_process(mesh, "stamping").pid != killed.pid


async def test_a_killed_postgres_means_unavailable_and_then_no_loss(tmp_path: Path) -> None:
    with running_mesh(tmp_path) as mesh:
        # One attempt: by its own retries a channel hides an outage as short as this one.
        async with connect(mesh.addresses["stamping"], ClientSettings(attempts=1)) as channel:
            stub = stamping_pb2_grpc.StampingServiceStub(channel)
            requests = [pb.CreateStampRequest(request_id=f"r{n}", content=b"%d" % n) for n in range(25)]
            answers = {request.request_id: await stub.CreateStamp(request) for request in requests}
            postmaster(mesh).kill()
            refusals: list[Unavailable] = []
            deadline = time.monotonic() + BOUND
            # Its children serve on for a moment.
            while not refusals:
                number = len(requests)
                request = pb.CreateStampRequest(request_id=f"r{number}", content=b"%d" % number)
                requests.append(request)
                while request.request_id not in answers:
                    assert time.monotonic() < deadline
                    try:
                        answers[request.request_id] = await stub.CreateStamp(request)
                    except Unavailable as refusal:
                        refusals.append(refusal)
            assert {refusal.reason_name for refusal in refusals} == {"DATABASE_UNAVAILABLE"}
            assert all(refusal.retry_delay is not None for refusal in refusals)
            for request in requests:
                assert (await stub.CreateStamp(request)).stamp == answers[request.request_id].stamp


def test_a_node_asked_to_stop_finishes_and_exits_with_0() -> None:
    port, metrics_port = free_ports(2)
    environment = {
        **os.environ,
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "OMNIBRIDGE_STAMPING__SERVER__PORT": str(port),
        "OMNIBRIDGE_STAMPING__SERVER__METRICS_PORT": str(metrics_port),
    }
    command = [sys.executable, "-m", "services.cli.main", "serve", "stamping"]
    node = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert node.stderr is not None
    serving = json.loads(node.stderr.readline())
    assert (serving["message"], serving["node"], serving["port"]) == ("serving", "stamping", port)
    node.send_signal(signal.SIGTERM)
    _, rest = node.communicate(timeout=30)
    assert node.returncode == 0
    messages = [json.loads(line)["message"] for line in rest.splitlines()]
    assert [message for message in messages if "PostgreSQL" not in message] == ["stopping", "stopped"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OMNIBRIDGE_STAMPING__SERVER__PROT", "1"), ("OMNIBRIDGE_STAMPING__LIMITS__BATCH_ITEMS", "many")],
)
def test_a_setting_that_is_wrong_stops_a_node_at_its_start_by_name(variable: str, value: str) -> None:
    environment = {**os.environ, "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", variable: value}
    command = [sys.executable, "-m", "services.cli.main", "serve", "stamping"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert variable in done.stderr
