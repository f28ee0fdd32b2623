"""The reducer as a process: it starts from its contract, and SIGTERM ends it only when what waits has its answer."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from omninode.bridge.reducer.v1 import reducer_pb2 as pb
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from services.chassis import contracts, settings
from services.chassis.client import ClientSettings, connect
from services.chassis.errors import Unavailable
from services.chassis.port import free_ports
from services.reducer.node import CONTRACT, ReducerSettings
from tests.reducer.workflow import message
from tests.store.node import store_node

BOUND = 20.0
"""Seconds that anything waited for here may take on a busy machine."""


@asynccontextmanager
async def reducer_process(store_target: str) -> AsyncIterator[tuple[Process, str]]:
    """The node's own program, serving; and its target. Killed at the end."""
    port, metrics_port = free_ports(2)
    variables = {
        "OMNIBRIDGE_REDUCER__SERVER__PORT": str(port),
        "OMNIBRIDGE_REDUCER__SERVER__METRICS_PORT": str(metrics_port),
        "OMNIBRIDGE_REDUCER__STORE__TARGET": store_target,
    }
    program = "import sys; from services.reducer.node import main; sys.exit(main())"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stderr=PIPE, env={**os.environ, **variables}
    )
    try:
        await said(process, "serving")
        yield process, f"127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def said(process: Process, message: str) -> None:
    """Waits for the process' log line."""
    assert process.stderr is not None
    async with asyncio.timeout(BOUND):
        while json.loads(await process.stderr.readline())["message"] != message:
            pass


async def blocked_commits(connection: asyncpg.Connection) -> None:
    """Waits until a commit waits for the lock that the connection holds."""
    async with asyncio.timeout(BOUND):
        while not await connection.fetchval(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'workflow_state'::regclass"
        ):
            pass


async def test_sigterm_ends_the_node_when_what_waits_has_its_answer(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    async with (
        store_node(database_url) as store_target,
        reducer_process(store_target) as (process, target),
        connect(target, ClientSettings(attempts=1)) as channel,
    ):
        stub = ReducerServiceStub(channel)
        await connection.execute("BEGIN; LOCK TABLE workflow_state IN EXCLUSIVE MODE")
        requests = [pb.ReduceRequest(action=message("submitted", key=f"workflow/{n % 10}")) for n in range(30)]
        calls = [asyncio.ensure_future(stub.Reduce(request)) for request in requests]
        await blocked_commits(connection)
        process.terminate()
        await said(process, "stopping")
        await connection.execute("COMMIT")
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await said(process, "stopped")
        async with asyncio.timeout(BOUND):
            assert await process.wait() == 0
    await connection.close()
    opened = [answer for answer in answers if isinstance(answer, pb.ReduceResponse)]
    assert 1 <= len(opened) <= 10, "each key was opened once at most"
    others = [answer for answer in answers if answer not in opened]
    # What had not arrived when the node stopped was not taken in.
    refused = [answer for answer in others if not isinstance(answer, Unavailable)]
    assert {getattr(answer, "metadata", {}).get("allowed") for answer in refused} <= {"started,failed"}


def test_the_settings_come_from_the_contract_and_the_environment() -> None:
    contract = contracts.load(CONTRACT)
    environ = {"OMNIBRIDGE_REDUCER__FOLDING__ATTEMPTS": "7"}
    tuned = settings.load(ReducerSettings, node="reducer", contract=contract, environ=environ)
    assert (tuned.server.port, tuned.store.target, tuned.folding.attempts) == (50053, "127.0.0.1:50054", 7)


def test_the_names_of_the_earlier_bridge_are_read_and_its_own_go_before() -> None:
    contract = contracts.load(CONTRACT)
    environ = {"REDUCER_MAX_RETRIES": "7", "REDUCER_INITIAL_BACKOFF_MS": "20", "REDUCER_MAX_BACKOFF_MS": "400"}
    folding = settings.load(ReducerSettings, node="reducer", contract=contract, environ=environ).folding
    assert (folding.attempts, folding.backoff_initial, folding.backoff_max) == (7, 0.02, 0.4)
    environ["OMNIBRIDGE_REDUCER__FOLDING__ATTEMPTS"] = "8"
    assert settings.load(ReducerSettings, node="reducer", contract=contract, environ=environ).folding.attempts == 8


def test_every_setting_of_its_own_gives_its_reason() -> None:
    contract = contracts.load(CONTRACT)
    described = settings.describe(ReducerSettings, node="reducer", contract=contract)
    unsaid = [f"{setting.section}.{setting.field}" for setting in described if not setting.description]
    assert not unsaid
