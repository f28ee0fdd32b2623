"""The demo as a user runs it: a real mesh, real workflows, and kill -9 of one of its nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COUNT = 60
NODES = [
    "orchestrator",
    "store",
    *(pytest.param(node, marks=pytest.mark.long) for node in ("reducer", "stamping")),
]


@pytest.mark.parametrize("node", NODES)
def test_a_killed_node_loses_and_doubles_nothing(node: str, tmp_path: Path) -> None:
    for number in range(COUNT):
        (tmp_path / f"answer_{number}.py").write_text(f"print({number})\n")

    command = [sys.executable, "-m", "services.cli.main", "demo", "--kill", node, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    assert done.returncode == 0, done.stderr
    assert f"kill -9 of the {node} node" in done.stdout
    assert f"COMPLETED: every one of {COUNT} workflows" in done.stdout
    assert (
        f"the ledger holds {COUNT} stamps for {COUNT} distinct contents: nothing is lost, nothing doubled"
        in done.stdout
    )
    assert f"the session workflows counted {COUNT} workflows: each once" in done.stdout
    assert f"validated: {COUNT} valid" in done.stdout
