"""States over gRPC."""

from __future__ import annotations

from pydantic import ValidationError

from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.chassis import paging, timestamp
from services.chassis.errors import BridgeError, from_validation, to_message
from services.store.domain import Limits, OpenKeysQuery, PastState, StateKey, StateNotFound
from services.store.message import StateAllowance, fill_state
from services.store.metrics import StateMetrics
from services.store.repository.log import HistoryRepository
from services.store.repository.partition import PartitionRepository
from services.store.repository.state import StateRepository
from services.store.servicer.call import Context, check_count
from services.store.view import to_committed_action


class StateServicer(store_pb2_grpc.StoreServiceServicer):
    """Shows states and their past, and which keys are open."""

    def __init__(
        self,
        states: StateRepository,
        history: HistoryRepository,
        partitions: PartitionRepository,
        limits: Limits,
        metrics: StateMetrics,
    ) -> None:
        self._states = states
        self._history = history
        self._state_metrics = metrics
        self._partitions = partitions
        self._state_limits = limits

    async def DescribeStore(
        self, request: store_pb2.DescribeStoreRequest, context: Context
    ) -> store_pb2.DescribeStoreResponse:
        return store_pb2.DescribeStoreResponse(partition_count=await self._partitions.count())

    async def GetState(self, request: store_pb2.GetStateRequest, context: Context) -> store_pb2.GetStateResponse:
        self._state_metrics.reads.inc()
        asked = PastState.model_validate(request)
        past = await self._history.get(asked.key, asked.at_version) if asked.at_version else None
        state = past or await self._states.get(asked.key)
        response = store_pb2.GetStateResponse()
        fill_state(response.state, state, StateAllowance(self._state_limits.answer_state_bytes))
        return response

    async def BatchGetStates(
        self, request: store_pb2.BatchGetStatesRequest, context: Context
    ) -> store_pb2.BatchGetStatesResponse:
        check_count("keys", len(request.keys), self._state_limits)
        self._state_metrics.reads.inc(len(request.keys))
        asked = [_asked(key) for key in request.keys]
        states = await self._states.find_many(list({key for key in asked if isinstance(key, str)}))
        response = store_pb2.BatchGetStatesResponse()
        allowance = StateAllowance(self._state_limits.answer_state_bytes)
        for index, key in enumerate(asked):
            result = response.results.add()
            if isinstance(key, BridgeError):
                result.error.CopyFrom(to_message(key, f"keys[{index}]"))
            elif state := states.get(key):
                fill_state(result.state, state, allowance)
            else:
                result.error.CopyFrom(to_message(StateNotFound(metadata={"key": key})))
        return response

    async def ListOpenKeys(
        self, request: store_pb2.ListOpenKeysRequest, context: Context
    ) -> store_pb2.ListOpenKeysResponse:
        query = OpenKeysQuery.model_validate({"collection": request.collection, "partitions": request.partitions})
        size = paging.page_size(request.page_size)
        filters = query.model_dump(mode="json")
        after = None
        if request.page_token:
            number, key = paging.decode(request.page_token, filters)
            after = (int(number or 0), str(key))
        partitions = query.partitions or range(await self._partitions.count())
        keys = await self._states.list_open(query, partitions, after, size + 1)
        response = store_pb2.ListOpenKeysResponse()
        for open_key in keys[:size]:
            message = response.keys.add(key=open_key.key, version=open_key.version, partition=open_key.partition)
            timestamp.fill(message.update_time, open_key.updated_at)
        if len(keys) > size:
            response.next_page_token = paging.encode((keys[size - 1].partition, keys[size - 1].key), filters)
        return response

    async def ListCommits(
        self, request: store_pb2.ListCommitsRequest, context: Context
    ) -> store_pb2.ListCommitsResponse:
        key = StateKey.model_validate(request).key
        size = paging.page_size(request.page_size)
        filters = {"commits of": key}
        before = None
        if request.page_token:
            version, index = paging.decode(request.page_token, filters)
            before = (int(version or 0), int(index or 0))
        actions = await self._history.list(key, before, size + 1)
        response = store_pb2.ListCommitsResponse()
        for action in actions[:size]:
            response.actions.append(to_committed_action(action, states=False, events=False))
        if len(actions) > size:
            last = actions[size - 1]
            response.next_page_token = paging.encode((last.version, last.action_index), filters)
        return response


def _asked(key: str) -> str | BridgeError:
    try:
        return StateKey(key=key).key
    except ValidationError as error:
        return from_validation(error)
