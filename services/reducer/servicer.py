"""The reducer contract over gRPC: messages to the domain's values, the folder's outcomes to messages. No rules."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import grpc
from pydantic import ValidationError

from omninode.bridge.reducer.v1 import reducer_pb2, reducer_pb2_grpc
from omninode.bridge.store.v1 import store_pb2
from services.chassis import timestamp
from services.chassis.call_context import correlation_id
from services.chassis.errors import (
    BridgeError,
    FieldViolation,
    ResourceExhausted,
    Unavailable,
    from_validation,
    invalid_field,
    to_message,
)
from services.chassis.identity import event_id_text
from services.chassis.turns import in_turns
from services.reducer.aggregation.follower import Follower
from services.reducer.aggregation.servicer import AggregationServicer
from services.reducer.aggregation.sessions import Sessions
from services.reducer.domain import Action, Event, Limits, Reducers
from services.reducer.folding import Folded, Folder, GaveUp, Outcome

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_T = TypeVar("_T")


class FoldingServicer(reducer_pb2_grpc.ReducerServiceServicer):
    """Folds actions."""

    def __init__(self, reducers: Reducers, folder: Folder, limits: Limits) -> None:
        self._reducers = reducers
        self._folder = folder
        self._limits = limits

    async def Reduce(self, request: reducer_pb2.ReduceRequest, context: _Context) -> reducer_pb2.ReduceResponse:
        response = reducer_pb2.ReduceResponse()
        with _fields_below("action"):
            action = self._action(request.action)
            outcome: Outcome | Exception
            if request.dry_run:
                outcome = await self._folder.dry_run(action)
            else:
                (outcome,) = await self._folder.fold([action])
            if isinstance(outcome, Exception):
                raise outcome
        _fill(response, outcome, self._limits.answer_state_bytes)
        return response

    async def BatchReduce(
        self, request: reducer_pb2.BatchReduceRequest, context: _Context
    ) -> reducer_pb2.BatchReduceResponse:
        count, most = len(request.actions), self._limits.batch_items
        if not 1 <= count <= most:
            raise invalid_field("actions", f"must hold 1 to {most} actions", item_count=str(count))
        prepared = [self._prepared(message) async for message in in_turns(request.actions)]
        outcomes = iter(await self._folder.fold([action for action in prepared if isinstance(action, Action)]))
        response = reducer_pb2.BatchReduceResponse()
        room = self._limits.answer_state_bytes
        last = {action.key: index for index, action in enumerate(request.actions)} if request.last_states_only else None
        async for index, action in in_turns(enumerate(prepared)):
            outcome = action if isinstance(action, BridgeError) else next(outcomes)
            result = response.results.add()
            if isinstance(outcome, BridgeError) and not isinstance(outcome, Unavailable | ResourceExhausted):
                result.error.CopyFrom(to_message(outcome, f"actions[{index}]"))
            elif isinstance(outcome, Exception):
                raise outcome
            else:
                brief = last is not None
                shown = last is None or last[request.actions[index].key] == index
                room -= _fill(result, outcome, room if shown else -1, brief=brief)
        return response

    def _prepared(self, message: reducer_pb2.Action) -> Action | BridgeError:
        """What `_action` returns, or the refusal of an item of a batch."""
        try:
            return self._action(message)
        except BridgeError as error:
            return error
        except ValidationError as error:
            return from_validation(error)

    def _action(self, message: reducer_pb2.Action) -> Action:
        """The action of a message. Raises ValidationError, InvalidArgument, UnknownReducer."""
        if not message.HasField("occur_time"):
            raise invalid_field("occur_time", "must be set")
        try:
            occur_time = timestamp.to_time(message.occur_time)
        except ValueError as error:
            raise invalid_field("occur_time", str(error)) from None
        action = Action.model_validate(
            {
                "key": message.key,
                "action_id": message.action_id,
                "reducer": message.reducer,
                "type": message.type,
                "payload_json": message.payload_json,
                "occur_time": occur_time,
                "correlation_id": message.correlation_id or correlation_id.get(),
                # Nothing where there is nothing: pydantic reads a message's attributes at twice the cost of a mapping's.
                "guards": [_guard(guard) for guard in message.guards] if message.guards else (),
                "blobs": message.blobs or (),
                "blob_refs": message.blob_refs or (),
                "effect_id": message.effect_id,
                "actor": message.actor,
            }
        )
        self._reducers.get(action.reducer)
        return action


class ReducerServicer(FoldingServicer, AggregationServicer):
    """Answers the reducer contract."""

    def __init__(
        self, reducers: Reducers, folder: Folder, limits: Limits, *, sessions: Sessions, follower: Follower
    ) -> None:
        FoldingServicer.__init__(self, reducers, folder, limits)
        AggregationServicer.__init__(self, sessions, follower)


def _guard(guard: store_pb2.Guard) -> dict[str, object]:
    return {"lease": guard.lease, "epoch": guard.epoch, "condition": guard.condition}


@contextmanager
def _fields_below(path: str) -> Iterator[None]:
    """Gives the fields of a refusal their whole path in the request."""
    try:
        yield
    except ValidationError as error:
        raise from_validation(error, path) from error
    except BridgeError as error:
        # Its own: actions that were folded together may share the refusal.
        refusal = copy.copy(error)
        refusal.violations = tuple(
            FieldViolation(f"{path}.{violation.field}", violation.description) for violation in error.violations
        )
        raise refusal from error


def _fill(
    answer: reducer_pb2.ReduceResponse | reducer_pb2.BatchReduceResult,
    outcome: Outcome,
    room: int,
    *,
    brief: bool = False,
) -> int:
    """Fills what became of an action into its place; the bytes of its state, 0 where they are more than `room` and left out.

    `brief` leaves the events out.
    """
    match outcome:
        case Folded():
            return _fill_folded(answer.committed, outcome, room, brief=brief)
        case store_pb2.KnownAction():
            answer.duplicate.version = outcome.committed.version
            if not brief:
                answer.duplicate.events.extend(outcome.events)
            answer.duplicate.commit.CopyFrom(outcome.committed)
        case store_pb2.Fenced():
            answer.fenced.CopyFrom(outcome)
        case GaveUp():
            answer.gave_up.attempt_count = outcome.attempt_count
            answer.gave_up.actual_version = outcome.actual_version
    return 0


def _fill_folded(message: reducer_pb2.Folded, folded: Folded, room: int, *, brief: bool) -> int:
    action, fold = folded.action, folded.fold
    message.version = folded.version
    if folded.commit is not None:
        message.commit.CopyFrom(folded.commit)
    for index, event in enumerate(() if brief else fold.events):
        _fill_event(message.events.add(), event, action, index)
    if room < 0:
        return 0
    text = fold.state_json
    size = len(text) if text.isascii() else len(text.encode())
    if size > room:
        return 0
    message.state_json = text
    return size


def _fill_event(message: store_pb2.Event, event: Event, action: Action, index: int) -> None:
    # One by one: keyword arguments take half as long again.
    message.event_id = event_id_text(action.action_id, index)
    message.kind = store_pb2.EventKind.ValueType(event.kind)
    message.event_type = event.event_type
    message.topic = event.topic
    message.partition_key = action.key
    message.payload_json = event.payload_json
