"""Writers: each keeps sending a change until the store says where it stands, and folds anew on what a conflict carries."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

import grpc
from google.protobuf.empty_pb2 import Empty

from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import Aborted, BridgeError, DeadlineExceeded, ResourceExhausted, Unavailable, from_message
from tests.chaos.history import Attempt, Change, History, Known, Outcome, Place, new_change
from tests.store.sample import milliseconds

COLLECTION = "chaos"
NAMESPACE = "chaos"
LEASE_MILLISECONDS = 700
"""Short, so that leases end under the writers all the time."""
_LONGEST_BACKOFF = 4
"""Doublings of the wait: half a second at most, so that nobody hurries past a store that has just come back."""
Belief: TypeAlias = "tuple[int, str | None]"
Answer: TypeAlias = "pb.TryCommitResponse | pb.BatchTryCommitResult"


@dataclass(frozen=True, slots=True)
class Sending:
    """How writers send."""

    stub: StoreServiceStub
    history: History
    random: Random
    shared: Sequence[str]
    """Keys that all writers write."""
    timeout: float
    """Seconds after which a call's outcome is unknown."""
    pause: float
    """The longest wait between two changes of a writer, in seconds; before one is sent again it is doubled each time."""

    projections: bool
    """Whether they read their own writes, now and then."""

    def new_id(self) -> uuid.UUID:
        return uuid.UUID(int=self.random.getrandbits(128), version=4)


@dataclass(slots=True)
class Writer:
    """One caller. What it believes of a key is what it was last told, so on shared keys it is often wrong."""

    name: str
    sending: Sending
    believed: dict[str, Belief] = field(default_factory=dict)
    _count: int = 0

    async def write(self, stop: asyncio.Event) -> None:
        """Changes one after another, until `stop`; the last one is seen to its end."""
        random = self.sending.random
        while not stop.is_set():
            if random.random() < 0.5:
                await self._settle([self._change()], atomic=False)
            else:
                changes = [self._change() for _ in range(random.randint(2, 12))]
                await self._settle(changes, atomic=random.random() < 0.3)
            if random.random() < 0.1:
                await self._replay()
            if self.sending.projections and random.random() < 0.1:
                await self._read()
            await self._wait()

    async def hold(self, lease: str, stop: asyncio.Event) -> None:
        """Changes of one key under a lease that ends all the time and that rivals take over; a fenced change is given up."""
        key = f"{COLLECTION}/guarded-{lease}"
        epoch: int | None = None
        while not stop.is_set():
            if epoch is None:
                epoch = await self._acquire(lease)
            else:
                change = self.sending.history.add(new_change(key, [1], self.sending.new_id, epoch=epoch))
                guard = pb.Guard(lease=lease, epoch=epoch, condition=pb.GUARD_CONDITION_HELD)
                if not await self._settle([change], atomic=False, guards=[guard]):
                    epoch = None
            await self._wait()

    async def _acquire(self, lease: str) -> int | None:
        request = pb.AcquireLeaseRequest(name=lease, owner=self.name, ttl=milliseconds(LEASE_MILLISECONDS))
        try:
            answer = await self.sending.stub.AcquireLease(request, timeout=self.sending.timeout)
        except (Unavailable, DeadlineExceeded, Aborted, ResourceExhausted):
            return None
        return answer.lease.epoch if answer.acquired else None

    def _change(self) -> Change:
        random = self.sending.random
        counts = [random.randint(0, 2) for _ in range(random.choice((1, 1, 1, 2, 3)))]
        kind = random.random()
        if kind < 0.4:
            key, blind = random.choice(self.sending.shared), False
        elif kind < 0.5:
            key, blind = f"{COLLECTION}/blind-{random.randrange(4)}", True
        else:
            # A few commits for each key of its own, the first of which expects that there is none.
            key, blind = f"{COLLECTION}/own-{self.name}-{self._count // 4}", False
            self._count += 1
        return self.sending.history.add(new_change(key, counts, self.sending.new_id, blind=blind))

    async def _settle(self, changes: Sequence[Change], *, atomic: bool, guards: Sequence[pb.Guard] = ()) -> bool:
        """Sends the changes until each is committed, or known to be; whether they are: a fenced one is given up."""
        failures = 0
        while open_changes := [change for change in changes if not change.settled]:
            together = open_changes if atomic else _independent(open_changes)
            outcomes = await self._send(together, atomic=atomic, guards=guards)
            if Outcome.FENCED in outcomes:
                return False
            if not {Outcome.UNKNOWN, Outcome.REFUSED}.isdisjoint(outcomes):
                failures += 1
                await self._wait(2 ** min(failures, _LONGEST_BACKOFF))
        return True

    async def _replay(self) -> None:
        """Sends an acknowledged change again, of any writer; it is to be answered as a duplicate of its first result."""
        history = self.sending.history
        change = self.sending.random.choice(history.changes)
        if change.settled and change.epoch is None:
            history.replays += 1
            await self._send([change], atomic=False)

    async def _read(self) -> None:
        """Asks for the projection of a key at the version to which it believes it came: it is never shown an older one."""
        if not self.believed:
            return
        key = self.sending.random.choice(sorted(self.believed))
        version, _ = self.believed[key]
        request = pb.GetProjectionRequest(key=key, min_version=version, max_wait=milliseconds(500))
        try:
            answer = await self.sending.stub.GetProjection(request, timeout=self.sending.timeout)
        except (Unavailable, DeadlineExceeded, Aborted, ResourceExhausted):
            return
        self.sending.history.reads += 1
        if answer.projection.version < version:
            self.sending.history.bugs.append(f"{key} is at {version}, and was shown at {answer.projection.version}")

    async def _send(self, changes: Sequence[Change], *, atomic: bool, guards: Sequence[pb.Guard] = ()) -> list[Outcome]:
        """One call with all the changes; what became of each."""
        requests, expected = self._requests(changes, guards)
        sending = self.sending
        try:
            answers: Sequence[Answer]
            if len(requests) == 1 and not atomic:
                answers = [await sending.stub.TryCommit(requests[0], timeout=sending.timeout)]
            else:
                batch = pb.BatchTryCommitRequest(items=requests, atomic=atomic)
                answers = (await sending.stub.BatchTryCommit(batch, timeout=sending.timeout)).results
            attempts = [self._attempt(version, answer) for version, answer in zip(expected, answers, strict=True)]
        except (BridgeError, grpc.aio.AioRpcError) as error:
            attempts = [Attempt(version, self._of_error(error)) for version in expected]
        for change, request, attempt in zip(changes, requests, attempts, strict=True):
            self._believe(change, request, attempt)
            sending.history.answer(change, attempt)
        return [attempt.outcome for attempt in attempts]

    def _requests(
        self, changes: Sequence[Change], guards: Sequence[pb.Guard]
    ) -> tuple[list[pb.TryCommitRequest], list[int | None]]:
        """Each change upon what those before it will have made, and the version that each expects."""
        local: dict[str, Belief] = {}
        requests, expected = [], []
        for change in changes:
            version, state = local.get(change.key) or self.believed.get(change.key, (0, None))
            folded = change.fold(state)
            local[change.key] = (version + 1, folded)
            expectation = pb.Expectation(any=Empty()) if change.blind else pb.Expectation(version=version)
            requests.append(_request(change, expectation, folded, guards))
            expected.append(None if change.blind else version)
        return requests, expected

    def _attempt(self, expected: int | None, answer: Answer) -> Attempt:
        match answer.WhichOneof("outcome"):
            case "committed":
                return Attempt(expected, Outcome.COMMITTED, place=_place(answer.committed))
            case "duplicate":
                known = tuple(
                    Known(action.action_id, _place(action.committed), tuple(event.event_id for event in action.events))
                    for action in answer.duplicate.known
                )
                return Attempt(expected, Outcome.DUPLICATE, known=known)
            case "conflict":
                conflict = answer.conflict
                state = conflict.current.state_json if conflict.HasField("current") else None
                return Attempt(expected, Outcome.CONFLICT, current=(conflict.actual_version, state))
            case "fenced":
                return Attempt(expected, Outcome.FENCED)
            case "not_applied":
                return Attempt(expected, Outcome.REFUSED)
            case "error" if isinstance(answer, pb.BatchTryCommitResult):
                return Attempt(expected, self._of_error(from_message(answer.error)))
            case other:
                raise AssertionError(f"no outcome of a commit: {other}")

    def _of_error(self, error: BridgeError | grpc.aio.AioRpcError) -> Outcome:
        match error:
            case Unavailable() | DeadlineExceeded():
                return Outcome.UNKNOWN
            case Aborted() | ResourceExhausted():
                return Outcome.REFUSED
            case BridgeError():
                self.sending.history.bugs.append(f"{self.name}: {error!r}")
            case _:
                self.sending.history.bugs.append(f"{self.name}: {error.code().name}: {error.details()}")
        return Outcome.UNKNOWN

    def _believe(self, change: Change, request: pb.TryCommitRequest, attempt: Attempt) -> None:
        match attempt:
            case Attempt(outcome=Outcome.COMMITTED, place=Place(version=version)):
                self.believed[change.key] = (version, request.state_json)
            case Attempt(outcome=Outcome.CONFLICT, current=tuple() as current):
                self.believed[change.key] = current
            case _:
                # Of a duplicate the version is known, and not the state that has become of it: the next conflict tells.
                pass

    async def _wait(self, factor: int = 1) -> None:
        await asyncio.sleep(self.sending.random.uniform(0, self.sending.pause * factor))


def tag_of(state: str) -> str:
    """What a projection of the state is to show as its tag."""
    return state[:40]


def _independent(changes: Sequence[Change]) -> list[Change]:
    """The first change of each key, and all blind ones.

    A second one would expect the version after the first's. Where the first meets a conflict, another writer's commit may stand at
    that very version, and the second would be committed upon a state that it never saw.
    """
    first = {change.key: change for change in reversed(changes)}
    return [change for change in changes if change.blind or first[change.key] is change]


def _request(
    change: Change, expectation: pb.Expectation, state: str, guards: Sequence[pb.Guard]
) -> pb.TryCommitRequest:
    return pb.TryCommitRequest(
        key=change.key,
        expected=expectation,
        state_json=state,
        actions=[
            pb.CommitAction(
                action_id=action_id,
                # Of the action alone: it stays the same when the change is folded anew.
                fingerprint=uuid.UUID(action_id).bytes * 2,
                type="changed",
                events=[
                    pb.Event(kind=pb.EVENT_KIND_EVENT, event_type="CHANGED", topic=COLLECTION, payload_json="{}")
                    for _ in range(count)
                ],
            )
            for action_id, count in zip(change.action_ids, change.event_counts, strict=True)
        ],
        projection=pb.ProjectionInput(tag=tag_of(state), namespace=NAMESPACE),
        guards=guards,
    )


def _place(committed: pb.Committed) -> Place:
    return Place(committed.version, committed.partition, committed.offset)
