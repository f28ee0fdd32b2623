"""Commits over gRPC, and their feed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence

from pydantic import ValidationError

from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.chassis.errors import BridgeError, ResourceExhausted, Unavailable, from_validation
from services.chassis.feed import Feed
from services.store.domain import Commit, Limits, LoggedAction, NotApplied, Outcome, refuse_repeated_actions
from services.store.message import StateAllowance, fill_batch_outcome, fill_outcome, to_commit
from services.store.metrics import CommitMetrics
from services.store.repository.commit import CommitRepository
from services.store.servicer.call import Context, check_count
from services.store.view import CommitView


class CommitServicer(store_pb2_grpc.StoreServiceServicer):
    """Takes commits, and shows them."""

    def __init__(
        self, commits: CommitRepository, feed: Feed[LoggedAction], limits: Limits, metrics: CommitMetrics
    ) -> None:
        self._commits = commits
        self._commit_feed = feed
        self._commit_limits = limits
        self._commit_metrics = metrics

    async def TryCommit(self, request: store_pb2.TryCommitRequest, context: Context) -> store_pb2.TryCommitResponse:
        began = time.perf_counter()
        outcome = await self._commits.commit(to_commit(request))
        self._commit_metrics.ended(began, (outcome,))
        response = store_pb2.TryCommitResponse()
        fill_outcome(response, outcome, StateAllowance(self._commit_limits.answer_state_bytes))
        return response

    async def BatchTryCommit(
        self, request: store_pb2.BatchTryCommitRequest, context: Context
    ) -> store_pb2.BatchTryCommitResponse:
        began = time.perf_counter()
        check_count("items", len(request.items), self._commit_limits)
        prepared = [_prepared(item) for item in request.items]
        if request.atomic:
            prepared = refuse_repeated_actions(prepared)
        commits = [commit for commit in prepared if isinstance(commit, Commit)]
        outcomes: Sequence[Outcome | NotApplied | BridgeError]
        if request.atomic:
            outcomes = await self._commits.commit_atomically(commits, whole=len(commits) == len(prepared))
        else:
            outcomes = await self._commits.commit_many(commits)
        self._commit_metrics.ended(began, outcomes)
        response = store_pb2.BatchTryCommitResponse()
        allowance, rest = StateAllowance(self._commit_limits.answer_state_bytes), iter(outcomes)
        for index, commit in enumerate(prepared):
            outcome = commit if isinstance(commit, BridgeError) else next(rest)
            if isinstance(outcome, Unavailable | ResourceExhausted):
                raise outcome
            fill_batch_outcome(response.results.add(), outcome, allowance, f"items[{index}]")
        return response

    async def WatchCommits(
        self, request: store_pb2.WatchCommitsRequest, context: Context
    ) -> AsyncIterator[store_pb2.WatchCommitsResponse]:
        view = CommitView.model_validate(
            {
                "collection": request.collection or None,
                "keys": request.keys,
                "types": request.types,
                "partitions": request.partitions,
                "include_states": request.include_states,
                "include_events": request.include_events,
            }
        )
        async for response in self._commit_feed.watch(view, request.cursor, from_beginning=request.from_beginning):
            yield response


def _prepared(item: store_pb2.TryCommitRequest) -> Commit | BridgeError:
    try:
        return to_commit(item)
    except BridgeError as error:
        return error
    except ValidationError as error:
        return from_validation(error)
