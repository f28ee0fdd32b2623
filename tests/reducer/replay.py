"""Folds the recorded actions with nothing of the world within reach, and says what came of each: `python -m tests.reducer.replay`.

Before that it imports the modules of the reducers once more, for their import must not reach for the world either.
"""

from __future__ import annotations

import builtins
import importlib
import io
import json
import os
import random
import secrets
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from blake3 import blake3

from services.chassis.errors import BridgeError
from services.reducer.domain import ABSENT, Action, Current, Reducers
from tests.reducer.pure import GOLDEN, MODULES, reducers

_WORLD = {
    os: ("urandom", "system"),
    random: ("random", "randint", "choice", "uniform", "getrandbits"),
    secrets: ("token_bytes", "token_hex"),
    socket: ("socket", "create_connection", "getaddrinfo"),
    time: ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "sleep", "localtime", "gmtime"),
    uuid: ("uuid1", "uuid4"),
}
_FILES = {builtins: ("open", "input"), io: ("open",), os: ("open", "listdir", "stat", "getenv")}


def logs() -> dict[str, list[dict[str, Any]]]:
    """The recorded actions of each key, by the name of their file."""
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in GOLDEN.glob("*.jsonl")}


def replayed(recorded: dict[str, list[dict[str, Any]]], found: Reducers) -> dict[str, list[str]]:
    """BLAKE3 of what each action made of its key's state, or of its refusal, by log; `found` are the reducers."""
    return {name: list(_folded(actions, found)) for name, actions in sorted(recorded.items())}


def _folded(recorded: list[dict[str, Any]], found: Reducers) -> Iterator[str]:
    current = ABSENT
    for fields in recorded:
        given = {"correlation_id": "", "guards": (), "blobs": (), "blob_refs": (), "actor": "", **fields}
        action = Action.model_validate(given)
        reducer = found.of(action.reducer, current)
        try:
            fold = reducer.fold(current.state, action)
        except BridgeError as refusal:
            made: list[Any] = [refusal.reason_name, refusal.message, refusal.metadata]
        else:
            current = Current(current.version + 1, fold.state, len(fold.state_json), reducer.version)
            made = [fold.state_json, fold.events, fold.projection, fold.final]
        yield blake3(json.dumps(made).encode()).hexdigest()


def _forbid(world: Mapping[Any, Sequence[str]]) -> None:
    for module, names in world.items():
        for name in names:
            setattr(module, name, _forbidden)


def _forbidden(*_args: object, **_options: object) -> NoReturn:
    raise AssertionError("a pure function reached for the world")


def _import_anew(names: list[str]) -> None:
    for name in names:
        del sys.modules[name]
    for name in names:
        importlib.import_module(name)


def main() -> None:
    found, recorded = reducers(), logs()
    for name in MODULES:
        importlib.import_module(name)
    write = sys.stdout.write
    _forbid(_WORLD)
    # With files and environment: pydantic reads its models' docstrings and its own settings of them.
    _import_anew([*MODULES, *sorted({type(reducer).__module__ for reducer in found} - set(MODULES))])
    _forbid(_FILES)
    digests = replayed(recorded, found)
    write(json.dumps(digests))


if __name__ == "__main__":
    main()
