"""Which nodes there are, how they are started, and the calls that are shown."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from services.cli.example import EXAMPLES, Example, grpcurl
from services.cli.mesh import CALLS, NODES, configured_addresses, environment_of
from services.cli.target import ORCHESTRATOR, STAMPING, STORE, Peer
from tests.cli.conftest import Run


def test_a_node_answers_at_its_own_port_and_its_metrics_a_thousand_above() -> None:
    nodes = configured_addresses({})

    assert {node.node: node.port for node in nodes} == NODES
    stamping = nodes[0]
    assert (stamping.target, stamping.metrics_url) == ("127.0.0.1:50051", "http://127.0.0.1:51051/metrics")
    assert stamping.argv[-2:] == ("serve", "stamping")
    assert environment_of(stamping, nodes) == {
        "OMNIBRIDGE_STAMPING__SERVER__HOST": "127.0.0.1",
        "OMNIBRIDGE_STAMPING__SERVER__PORT": "50051",
        "OMNIBRIDGE_STAMPING__SERVER__METRICS_PORT": "51051",
    }


def test_the_environment_sets_a_nodes_ports() -> None:
    moved = configured_addresses({"OMNIBRIDGE_STAMPING__SERVER__PORT": "4000"})[0]
    apart = configured_addresses({"OMNIBRIDGE_STAMPING__SERVER__METRICS_PORT": "4000"})[0]

    assert (moved.port, moved.metrics_port) == (4000, 5000)
    assert (apart.port, apart.metrics_port) == (50051, 4000)


def test_a_node_finds_the_nodes_that_it_calls_where_they_are() -> None:
    nodes = configured_addresses({"OMNIBRIDGE_STORE__SERVER__PORT": "4000"})
    targets = {
        name: value
        for node in nodes
        for name, value in environment_of(node, nodes).items()
        if name.endswith("__TARGET")
    }

    assert targets == {
        "OMNIBRIDGE_REDUCER__STORE__TARGET": "127.0.0.1:4000",
        "OMNIBRIDGE_ORCHESTRATOR__STAMPING__TARGET": "127.0.0.1:50051",
        "OMNIBRIDGE_ORCHESTRATOR__REDUCER__TARGET": "127.0.0.1:50053",
        "OMNIBRIDGE_ORCHESTRATOR__STORE__TARGET": "127.0.0.1:4000",
    }


def test_a_node_is_stopped_before_those_that_it_calls() -> None:
    order = list(NODES)

    assert CALLS.keys() <= NODES.keys()
    for node, called in CALLS.items():
        assert all(order.index(other) < order.index(node) for other in called)


@pytest.mark.parametrize(
    ("peer", "default"),
    [(STAMPING, "127.0.0.1:50051"), (ORCHESTRATOR, "127.0.0.1:50052"), (STORE, "127.0.0.1:50054")],
    ids=["stamping", "orchestrator", "store"],
)
def test_the_command_looks_for_a_node_where_up_has_it(peer: Peer[object], default: str) -> None:
    assert peer.default == default


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "\N{ARABIC-INDIC DIGIT FIVE}"])
def test_a_port_that_is_none_is_refused_by_its_name(run: Run, monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("OMNIBRIDGE_STAMPING__SERVER__PORT", port)

    ended = run("up")

    assert ended.status == 2
    assert f"OMNIBRIDGE_STAMPING__SERVER__PORT={port}" in ended.err
    assert ended.err.count("\n") == 1


def test_an_empty_variable_counts_as_not_set() -> None:
    assert configured_addresses({"OMNIBRIDGE_STAMPING__SERVER__PORT": ""}) == configured_addresses({})


def test_two_servers_on_one_port_are_refused_by_both_names() -> None:
    with pytest.raises(ValueError, match=r"METRICS_PORT=4000: the port of OMNIBRIDGE_STAMPING__SERVER__PORT"):
        configured_addresses(
            {"OMNIBRIDGE_STAMPING__SERVER__PORT": "4000", "OMNIBRIDGE_STAMPING__SERVER__METRICS_PORT": "4000"}
        )


def test_an_unknown_node_is_one_line_with_the_known_ones(run: Run) -> None:
    ended = run("serve", "bogus")

    assert ended.status == 2
    assert ended.err == f"omnibridge: serve: there is no node 'bogus'; there are: {', '.join(NODES)}\n"


def test_serving_a_node_imports_no_other_verb() -> None:
    program = (
        "import sys; from services.cli.main import main; main(['serve', 'bogus'])\n"
        "print(*sorted({'rich', 'blake3', 'alembic', 'grpc'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.purpose for example in EXAMPLES])
def test_an_example_is_one_line_for_the_shell(example: Example) -> None:
    line = grpcurl(example, "127.0.0.1:1")

    words = shlex.split(line)
    assert words[:2] == ["grpcurl", "-plaintext"]
    assert "127.0.0.1:1" in words
    assert "\n" not in line
