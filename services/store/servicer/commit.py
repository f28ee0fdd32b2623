"""Commits over gRPC."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.chassis.errors import BridgeError, ResourceExhausted, Unavailable, from_validation
from services.store.domain import Commit, Limits, NotApplied, Outcome, refuse_repeated_actions
from services.store.message import StateAllowance, fill_batch_outcome, fill_outcome, to_commit
from services.store.repository.commit import CommitRepository
from services.store.servicer.call import Context, check_count


class CommitServicer(store_pb2_grpc.StoreServiceServicer):
    """Takes commits."""

    def __init__(self, commits: CommitRepository, limits: Limits) -> None:
        self._commits = commits
        self._commit_limits = limits

    async def TryCommit(self, request: store_pb2.TryCommitRequest, context: Context) -> store_pb2.TryCommitResponse:
        outcome = await self._commits.commit(to_commit(request))
        response = store_pb2.TryCommitResponse()
        fill_outcome(response, outcome, StateAllowance(self._commit_limits.answer_state_bytes))
        return response

    async def BatchTryCommit(
        self, request: store_pb2.BatchTryCommitRequest, context: Context
    ) -> store_pb2.BatchTryCommitResponse:
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
        response = store_pb2.BatchTryCommitResponse()
        allowance, rest = StateAllowance(self._commit_limits.answer_state_bytes), iter(outcomes)
        for index, commit in enumerate(prepared):
            outcome = commit if isinstance(commit, BridgeError) else next(rest)
            if isinstance(outcome, Unavailable | ResourceExhausted):
                raise outcome
            fill_batch_outcome(response.results.add(), outcome, allowance, f"items[{index}]")
        return response


def _prepared(item: store_pb2.TryCommitRequest) -> Commit | BridgeError:
    try:
        return to_commit(item)
    except BridgeError as error:
        return error
    except ValidationError as error:
        return from_validation(error)
