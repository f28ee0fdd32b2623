"""Generates gen/ from protos/: messages, gRPC stubs, and typed stubs for both. `--check` only says whether gen/ is current."""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "protos"
GEN = ROOT / "gen"


def generate(out: Path) -> None:
    """Writes the generated tree of every contract below `out`; raises RuntimeError where protoc refuses."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    well_known = str(resources.files("grpc_tools") / "_proto")
    plugins = Path(sys.executable).parent
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTOS}",
            f"--proto_path={well_known}",
            f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet,only_async:{out}",
            *sources,
        ]
    )
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")


def differences(fresh: Path) -> list[str]:
    """The paths, relative to gen/, that differ between `fresh` and what is committed."""
    paths = {path.relative_to(base) for base in (fresh, GEN) for path in base.rglob("*.py*") if path.suffix != ".pyc"}
    return sorted(
        str(path)
        for path in paths
        if not (
            (fresh / path).exists() and (GEN / path).exists() and filecmp.cmp(fresh / path, GEN / path, shallow=False)
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="say what differs, write nothing")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        stale = differences(fresh)
        if check:
            for path in stale:
                print(f"gen/{path} is not what protos/ generates: run make gen", file=sys.stderr)
            return 1 if stale else 0
        if stale:
            shutil.rmtree(GEN, ignore_errors=True)
            shutil.copytree(fresh, GEN)
    return 0


if __name__ == "__main__":
    sys.exit(main())
