"""The wheel holds all that a mesh needs, and runs without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_mesh_runs_from_the_wheel_alone(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    assert not [path.name for path in unpacked.iterdir() if path.name in {"google", "buf", "tests", "benchmarks"}]
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.py").write_text("print(1)\n")
    # The wheel's own packages come first; their dependencies come from this environment.
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    where = [
        sys.executable,
        "-c",
        "import services, omninode.bridge.stamping.v1.stamping_pb2 as pb; print(services.__file__, pb.__file__)",
    ]
    found = subprocess.run(
        where, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.split()
    assert all(Path(path).is_relative_to(unpacked) for path in found)
    demo = [sys.executable, "-m", "services.cli.main", "demo", str(tmp_path / "files")]
    done = subprocess.run(demo, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
