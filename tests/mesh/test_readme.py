"""What the README tells a newcomer to type works as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.mesh.running import Mesh

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ".venv/bin/omnibridge "


def lines_of_the_readme() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line.partition("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_every_command_of_the_readme_is_make_or_omnibridge() -> None:
    assert all(line.startswith(("make ", COMMAND)) for line in lines_of_the_readme())


def test_the_readmes_commands_work_one_after_another(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "answer.py").write_text("print(42)\n")
    targets = {f"OMNIBRIDGE_{node.upper()}_TARGET": address for node, address in mesh.addresses.items()}
    environment = {**os.environ, **targets}
    commands = [line.removeprefix(COMMAND).split() for line in lines_of_the_readme() if line.startswith(COMMAND)]
    assert [words[0] for words in commands] == ["stamp", "validate", "stamps", "workflows", "aggregates"]
    shown = {}
    for words in commands:
        command = [sys.executable, "-m", "services.cli.main", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        shown[words[0]] = done.stdout
    assert "ONEX STAMP" in (tmp_path / "src" / "answer.py").read_text()
    assert "answer.py" in shown["workflows"]
    assert "workflows" in shown["aggregates"]
