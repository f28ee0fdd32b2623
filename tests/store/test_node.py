"""The node as a whole: its metrics, its settings, and its replicas' share of the work."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis import contracts, settings
from services.chassis.client import ClientSettings, connect
from services.chassis.server import ServerSettings
from services.chassis.settings import SettingsError
from services.store.node import CONTRACT, StoreSettings
from tests.store.node import store_node, store_stub
from tests.store.sample import ABSENT, commit, new_key, sql
from tests.store.watching import QUIET, watching

FIGURES = {
    "canonical_store_state_commits_total": 3.0,
    "canonical_store_state_conflicts_total": 1.0,
    "action_dedup_hits_total": 1.0,
    "canonical_store_get_state_total": 2.0,
    "canonical_store_commit_latency_ms_count": 4.0,
    "projection_materializer_projections_materialized_total": 3.0,
    "projection_materializer_wm_lag_ms": 0.0,
    "projection_fallback_count_total": 1.0,
    "wm_regressions_total": 0.0,
}


async def test_the_metrics_have_the_names_of_the_field_and_no_label_that_grows_with_the_data(database_url: str) -> None:
    registry = CollectorRegistry()
    async with (
        store_node(database_url, registry=registry) as target,
        connect(target, ClientSettings(attempts=1)) as channel,
    ):
        stub = StoreServiceStub(channel)
        key = new_key()
        first = commit(key, expected=ABSENT)
        await stub.TryCommit(first)
        await stub.TryCommit(first)
        await stub.TryCommit(commit(key, expected=ABSENT))
        await stub.BatchTryCommit(pb.BatchTryCommitRequest(items=[commit(), commit()]))
        await stub.GetState(pb.GetStateRequest(key=key))
        await stub.BatchGetStates(pb.BatchGetStatesRequest(keys=[key]))
        never = pb.GetProjectionRequest(key=key, min_version=2)
        assert (await stub.GetProjection(never)).source == pb.PROJECTION_SOURCE_CANONICAL
        async with asyncio.timeout(15):
            while registry.get_sample_value("projection_materializer_projections_materialized_total") != 3:
                # Each answer is a turn of the node, which is in this process.
                await stub.GetWatermarks(pb.GetWatermarksRequest())
        await stub.GetWatermarks(pb.GetWatermarksRequest())
    figures = {name: registry.get_sample_value(name) for name in FIGURES}
    figures["projection_materializer_wm_lag_ms"] = (
        0.0 if figures["projection_materializer_wm_lag_ms"] is not None else -1
    )
    assert figures == FIGURES
    text = generate_latest(registry).decode()
    assert "projection_materializer_batch_size_bucket" in text
    assert key not in text


def load(environ: dict[str, str]) -> StoreSettings:
    given = {"DATABASE_URL": "postgresql://x", **environ}
    return settings.load(StoreSettings, node="store", contract=contracts.load(Path(CONTRACT)), environ=given)


def test_the_earlier_bridges_names_are_read_in_their_units() -> None:
    tuned = load(
        {
            "CANONICAL_STORE_POOL_SIZE": "20",
            "CANONICAL_STORE_TIMEOUT_MS": "2500",
            "PROJECTION_BATCH_SIZE": "50",
            "PROJECTION_LAG_THRESHOLD_MS": "300",
            "ACTION_DEDUP_TTL_HOURS": "12",
            "ACTION_DEDUP_CLEANUP_INTERVAL_HOURS": "0.5",
        }
    )
    assert (tuned.database.pool_max, tuned.database.statement_timeout) == (20, 2.5)
    assert (tuned.projection.batch_size, tuned.projection.lag_warning_ms) == (50, 300)
    assert (tuned.retention.dedup_hours, tuned.retention.sweep_interval_hours) == (12, 0.5)


def test_the_nodes_own_name_comes_before_the_earlier_one_and_in_its_own_unit() -> None:
    tuned = load({"CANONICAL_STORE_TIMEOUT_MS": "2500", "OMNIBRIDGE_STORE__DATABASE__STATEMENT_TIMEOUT": "7"})
    assert tuned.database.statement_timeout == 7


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"CANONICAL_STORE_TIMEOUT_MS": "soon"}, "CANONICAL_STORE_TIMEOUT_MS"),
        ({"CANONICAL_STORE_POOL_SIZE": "0"}, "CANONICAL_STORE_POOL_SIZE"),
        ({"PROJECTION_BATCH_SIZE": "-1"}, "PROJECTION_BATCH_SIZE"),
        ({"ACTION_DEDUP_TTL_HOURS": "169"}, "commit_log_hours"),
        ({"OMNIBRIDGE_STORE__RETENTION__FINISHED_HOURS": "5"}, "finished_hours"),
    ],
    ids=str,
)
def test_settings_that_are_wrong_or_contradict_each_other_are_refused_by_their_names(
    environ: dict[str, str], named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        load(environ)


async def test_two_replicas_share_the_partitions_and_one_takes_over_from_the_other(database_url: str) -> None:
    owners = (
        "SELECT owner, count(*) FROM leases WHERE name LIKE 'store/log/%' AND expires_at > clock_timestamp() GROUP BY 1"
    )
    async with store_stub(database_url, feed=QUIET) as one, sql(database_url) as session:
        async with store_stub(database_url, feed=QUIET):
            async with asyncio.timeout(15):
                while sorted(row["count"] for row in await session.fetch(owners)) != [8, 8]:
                    pass
        answer = (await one.TryCommit(commit())).committed
        async with watching(one.WatchLeases(pb.WatchLeasesRequest(prefix="store/log/", from_beginning=True))) as watch:
            while [row["count"] for row in await session.fetch(owners)] != [16]:
                await watch.hear()
        assert answer.version == 1


async def test_a_stop_answers_who_waits_for_a_projection_and_does_not_wait_for_who_reads_nothing(
    database_url: str,
) -> None:
    stopped = asyncio.Event()

    async def run(started: asyncio.Future[str], stopping: asyncio.Event) -> None:
        async with store_node(database_url, server=ServerSettings(drain_notice_seconds=0, drain_seconds=60)) as target:
            started.set_result(target)
            await stopping.wait()
        stopped.set()

    started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stopping = asyncio.Event()
    running = asyncio.create_task(run(started, stopping))
    async with connect(await started, ClientSettings(attempts=1)) as channel:
        stub = StoreServiceStub(channel)
        key = new_key()
        large = '{"x":"' + "y" * 900_000 + '"}'
        for _ in range(8):
            await stub.TryCommit(commit(key, state_json=large))
        stuck = stub.WatchCommits(pb.WatchCommitsRequest(from_beginning=True, include_states=True))
        await anext(aiter(stuck))
        asked = pb.GetProjectionRequest(key=key, min_version=9)
        asked.max_wait.FromSeconds(30)
        waiting = stub.GetProjection(asked)
        await stub.GetState(pb.GetStateRequest(key=key))
        stopping.set()
        async with asyncio.timeout(20):
            assert (await waiting).source == pb.PROJECTION_SOURCE_CANONICAL
            await stopped.wait()
        stuck.cancel()
    await running
