"""What a batch is answered where the database itself failed; the commits are a fake, for no database fails on request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from services.chassis.coalesce import QueueFull
from services.chassis.errors import BridgeError
from services.chassis.postgres_error import DatabaseUnavailable, PoolExhausted
from services.store.domain import BlobMissing, Commit, Limits
from services.store.metrics import CommitMetrics
from services.store.servicer.commit import CommitServicer
from tests.store.sample import commit


class FailingCommits:
    """Answers each commit with the same failure."""

    def __init__(self, failure: BridgeError) -> None:
        self._failure = failure

    async def commit_many(self, commits: Sequence[Commit]) -> list[BridgeError]:
        return [self._failure] * len(commits)


async def batch(failure: BridgeError) -> pb.BatchTryCommitResponse:
    unused: Any = None
    commits: Any = FailingCommits(failure)
    servicer: Any = CommitServicer
    batches = servicer(commits, unused, Limits(), CommitMetrics(CollectorRegistry()))
    items = [commit("no collection"), commit(), commit()]
    response: pb.BatchTryCommitResponse = await batches.BatchTryCommit(pb.BatchTryCommitRequest(items=items), unused)
    return response


@pytest.mark.parametrize(
    "failure", [DatabaseUnavailable(), PoolExhausted(), QueueFull()], ids=lambda kind: kind.reason_name
)
async def test_a_database_that_is_away_or_full_ends_the_batch_as_a_whole(failure: BridgeError) -> None:
    with pytest.raises(type(failure)) as caught:
        await batch(failure)
    assert caught.value is failure


async def test_what_is_an_items_own_fault_is_its_own_answer() -> None:
    results = (await batch(BlobMissing())).results
    assert [result.error.reason for result in results] == [
        errors_pb2.ERROR_REASON_INVALID_FIELD,
        *[errors_pb2.ERROR_REASON_BLOB_MISSING] * 2,
    ]
