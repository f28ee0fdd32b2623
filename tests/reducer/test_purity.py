"""Every reducer is pure: in a process of its own it folds the same bytes, with nothing of the world within its reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.reducer.node import stamping_workflow
from tests.reducer.workflow import WALK, action

_PROGRAM = """
import builtins, io, json, os, pathlib, random, secrets, socket, sys, time, uuid

import services.reducer.cache, services.reducer.domain, services.reducer.fsm, services.reducer.machine
from services.chassis import contracts
from tests.reducer.workflow import WALK, action

found = contracts.load(pathlib.Path("services/reducer/contract.yaml")).subcontracts
machine = services.reducer.fsm.read(found["fsm"], found["state_management"])
actions = [action(type_, payload) for type_, payload in WALK]


def forbidden(*args, **kwargs):
    raise AssertionError("a pure function reached for the world")


class Forbidden:
    def __new__(cls, *args, **kwargs):
        forbidden()


for module, names in {
    builtins: ["open", "input"],
    io: ["open"],
    os: ["open", "urandom", "getenv", "system", "listdir", "stat"],
    random: ["random", "randint", "choice", "uniform", "getrandbits"],
    secrets: ["token_bytes", "token_hex"],
    time: ["time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "sleep", "localtime", "gmtime"],
    uuid: ["uuid1", "uuid4"],
}.items():
    for name in names:
        setattr(module, name, forbidden)
socket.socket = Forbidden
write = sys.stdout.write

state = None
for step in actions:
    fold = machine.fold(state, step)
    state = fold.state
    write(json.dumps([fold.state_json, fold.events, fold.projection, fold.final]) + "\\n")
"""


def test_a_reducer_folds_the_same_bytes_in_another_process_without_the_world() -> None:
    # Another seed of hashes, so that the order of a set or of hashed keys cannot hide.
    environment = {**os.environ, "PYTHONHASHSEED": "17"}
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM], check=False, capture_output=True, text=True, timeout=60, env=environment
    )
    assert run.returncode == 0, run.stderr
    machine, state, lines = stamping_workflow(), None, []
    for type_, payload in WALK:
        fold = machine.fold(state, action(type_, payload))
        state = fold.state
        lines.append(json.dumps([fold.state_json, fold.events, fold.projection, fold.final]))
    assert run.stdout.splitlines() == lines
