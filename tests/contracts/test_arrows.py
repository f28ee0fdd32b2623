"""The arrows between rooms: which module may import which."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ROOT / "services"
NODES = sorted(path.parent.name for path in SERVICES.glob("*/node.py"))

IMPURE = {
    "aiokafka",
    "asyncio",
    "asyncpg",
    "grpc",
    "os",
    "pathlib",
    "random",
    "secrets",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "uvloop",
}
"""What a pure room has no use for: I/O, clocks, randomness, other tasks."""
PURE_CHASSIS = {
    "services.chassis.boundary",
    "services.chassis.errors",
    "services.chassis.feed.log",
    "services.chassis.identity",
    "services.chassis.json_struct",
    "services.chassis.settings",
    "services.chassis.timestamp",
    "services.chassis.yaml_document",
}
IMPURE_ROOMS = {"servicer", "repository", "node"}
"""The rooms of every node that do I/O."""
WORKERS = {
    "orchestrator": {"admission", "peer", "run", "runner"},
    "stamping": {"journal"},
    "reducer": {
        *("entry_point", "folding", "mailbox", "store", "turn"),
        *(
            f"aggregation/{name}"
            for name in (
                *("composition", "feed", "follower", "intake", "metrics", "reader", "servicer", "sessions"),
                *("storage", "stream", "writer"),
            )
        ),
    },
    "store": {"expirer", "feeds", "local", "materializer", "metrics", "reader", "rebuild", "sweeper"},
}
"""The rooms of a node where its tasks work and its calls to other nodes are made. Every other module of a node is pure."""


def imports(path: Path) -> Iterator[str]:
    """The absolute names that a module imports: modules, and names from modules, which may be modules too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it leads"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def room(path: Path, node: str) -> str:
    return path.relative_to(SERVICES / node).parts[0].removesuffix(".py")


def is_pure(path: Path, node: str) -> bool:
    inner = path.relative_to(SERVICES / node).with_suffix("").as_posix()
    return not {room(path, node), inner} & (IMPURE_ROOMS | WORKERS.get(node, set()))


def begins(name: str, prefixes: set[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def every_module_of_nodes() -> list[tuple[str, Path]]:
    return [(node, path) for node in NODES for path in modules(SERVICES / node)]


def test_there_are_nodes_to_look_at() -> None:
    assert "stamping" in NODES


@pytest.mark.parametrize(("node", "path"), every_module_of_nodes(), ids=str)
def test_a_node_imports_no_other_node_and_no_command(node: str, path: Path) -> None:
    foreign = {f"services.{other}" for other in NODES if other != node} | {"services.cli"}
    assert not [name for name in imports(path) if begins(name, foreign)]


@pytest.mark.parametrize("path", modules(SERVICES / "chassis"), ids=lambda path: path.stem)
def test_the_chassis_knows_no_node(path: Path) -> None:
    assert not [
        name for name in imports(path) if begins(name, {"services.cli", *(f"services.{node}" for node in NODES)})
    ]


@pytest.mark.parametrize("path", modules(SERVICES / "cli"), ids=lambda path: path.stem)
def test_the_command_meets_nodes_through_their_contracts_alone(path: Path) -> None:
    assert not [name for name in imports(path) if begins(name, {f"services.{node}" for node in NODES})]


@pytest.mark.parametrize(
    ("node", "path"),
    [(node, path) for node, path in every_module_of_nodes() if is_pure(path, node)],
    ids=str,
)
def test_a_pure_room_imports_nothing_that_does_io_or_reads_a_clock(node: str, path: Path) -> None:
    impure = {f"services.{node}.{room.replace('/', '.')}" for room in IMPURE_ROOMS | WORKERS.get(node, set())}
    for name in imports(path):
        assert not begins(name, IMPURE), name
        assert not begins(name, impure), name
        if name.startswith("services.chassis"):
            assert begins(name, PURE_CHASSIS), name


@pytest.mark.parametrize("node", NODES)
def test_sql_stays_in_the_repository_and_messages_in_the_servicer(node: str) -> None:
    for path in modules(SERVICES / node):
        names = list(imports(path))
        if room(path, node) != "repository":
            assert not [name for name in names if begins(name, {"asyncpg"})], path
        if room(path, node) == "repository":
            assert not [name for name in names if begins(name, {"grpc", f"services.{node}.servicer"})], path
        if room(path, node) != "node":
            assert not [name for name in names if begins(name, {f"services.{node}.node"})], path
