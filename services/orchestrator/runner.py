"""Runs the workflows of the partitions that this replica holds: those handed over by who took them in, and those found unfinished.

How one workflow runs is run.py's, how other nodes are called peer.py's, who holds which partition chassis/partitions'.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from services.chassis.errors import BridgeError
from services.chassis.partitions import lease_name
from services.orchestrator.admission import Admission
from services.orchestrator.domain import (
    Coordination,
    Fenced,
    Workflow,
    workflow_of,
)
from services.orchestrator.peer import Owner, Peer, Reduced
from services.orchestrator.run import Run

ROLE = "orchestrator"
WORK = "runner"
_QUEUE = 100
"""Found workflows of large content that wait for room; what is beyond it is found again."""

_log = logging.getLogger(__name__)


class RunnerSettings(BaseModel):
    """How workflows are run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    concurrency: int = Field(1000, gt=0)
    """Workflows at once, half of them of small content and half of large; each waits for commits, which are shared, so many cost
    little more than few."""
    memory_bytes: int = Field(64 * 1024 * 1024, gt=0)
    """Contents held at once, half of it small ones and half large ones; workflows beyond it wait in the store, and are read from
    there in their turn."""
    poll_seconds: float = Field(2.0, gt=0)
    """Between two looks for unfinished workflows that nobody handed over: another replica took them in, or their run broke off."""
    announce_seconds: float = Field(0.1, ge=0)
    """Steps that take longer are announced: the workflow is PROCESSING from then on. What is quicker is recorded in one commit with
    its end, and saves a commit."""
    wait_poll_seconds: float = Field(0.5, gt=0)
    """Between two looks at a workflow that a caller waits for and another replica runs."""


class Runner:
    """Carries workflows to their end while this replica holds their partitions.

    A workflow is in one run at most here. Whatever breaks a run off - a lost partition, a fault, a crash - loses nothing: the
    workflow is found again among the open keys of its partition, by the partition's owner.
    """

    def __init__(self, peer: Peer, coordination: Coordination, settings: RunnerSettings) -> None:
        self._peer = peer
        self._coordination = coordination
        self._settings = settings
        # Apart, so that small contents need not wait behind large ones.
        self._small, self._large = (
            Admission((settings.concurrency + 1) // 2, settings.memory_bytes // 2) for _ in range(2)
        )
        self._epochs: dict[int, int] = {}
        self._runs: dict[str, tuple[int, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: dict[str, set[asyncio.Future[Workflow | None]]] = {}
        self._queued: set[str] = set()
        self._unreadable: set[str] = set()
        self._wake = asyncio.Event()

    def start(self) -> None:
        """Begins to look for unfinished workflows of the partitions that it is given."""
        self._spawn(self._find())

    async def aclose(self) -> None:
        """Breaks off what runs; its owner to come goes on with it."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def acquire(self, partition: int, epoch: int) -> None:
        """Begins to run the partition's workflows."""
        self._epochs[partition] = epoch
        self._wake.set()

    def lose(self, partition: int) -> None:
        """Breaks off the partition's runs."""
        del self._epochs[partition]
        for workflow_id, (of, task) in list(self._runs.items()):
            if of == partition:
                del self._runs[workflow_id]
                task.cancel()

    def hand_over(self, workflow: Workflow, partition: int, content: bytes, correlation_id: str) -> None:
        """Takes a new workflow with its content, if its partition is held here and there is room; otherwise it will be found."""
        if partition not in self._epochs or workflow.workflow_id in self._runs:
            return
        if self._admission(workflow).try_enter(workflow.size_bytes):
            self._begin(workflow, partition, content, correlation_id)
        else:
            self._wake.set()

    async def ended(self, workflow_id: str, *, look_first: bool) -> Workflow:
        """The workflow when it has ended, wherever it runs; `look_first` where it may have before. Raises WorkflowNotFound."""
        with self._listening(workflow_id) as end:
            while True:
                if not look_first:
                    await asyncio.wait([end], timeout=self._settings.wait_poll_seconds)
                    if end.done() and (told := end.result()):
                        return told
                look_first = False
                workflow = await self._peer.workflow(workflow_id)
                if workflow.state.ended:
                    return workflow

    @contextmanager
    def _listening(self, workflow_id: str) -> Iterator[asyncio.Future[Workflow | None]]:
        end: asyncio.Future[Workflow | None] = asyncio.get_running_loop().create_future()
        listeners = self._listeners.setdefault(workflow_id, set())
        listeners.add(end)
        try:
            yield end
        finally:
            listeners.discard(end)
            if not listeners:
                self._listeners.pop(workflow_id, None)

    def _begin(self, workflow: Workflow, partition: int, content: bytes | None, correlation_id: str) -> None:
        owner = Owner(lease_name(ROLE, WORK, partition), self._epochs[partition], correlation_id)
        run = Run(
            self._peer,
            self._coordination,
            workflow=workflow,
            owner=owner,
            content=content,
            announce_seconds=self._settings.announce_seconds,
        )
        task = self._spawn(self._carry(workflow, run))
        # Not in the task itself: one that is cancelled before its first turn runs none of its code.
        task.add_done_callback(partial(self._leave, workflow))
        self._runs[workflow.workflow_id] = (partition, task)

    def _leave(self, workflow: Workflow, task: asyncio.Task[None]) -> None:
        self._admission(workflow).leave(workflow.size_bytes)
        if self._runs.get(workflow.workflow_id, (None, None))[1] is task:
            del self._runs[workflow.workflow_id]

    async def _carry(self, workflow: Workflow, run: Run) -> None:
        details = {"workflow_id": workflow.workflow_id}
        try:
            self._tell(workflow.workflow_id, await run.finish())
        except Fenced:
            _log.info("another replica runs the workflow", extra=details)
        except BridgeError as error:
            _log.warning("run broken off: %s", error.message, extra={**details, "reason": error.reason_name})
        except Exception:
            _log.exception("run broken off", extra=details)

    def _tell(self, workflow_id: str, reduced: Reduced) -> None:
        listeners = self._listeners.get(workflow_id)
        if not listeners:
            return
        told = None if reduced.state_json is None else workflow_of(reduced.state_json, reduced.version)
        for end in listeners:
            if not end.done():
                end.set_result(told)

    async def _find(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._sweep()
            except BridgeError as error:
                _log.warning("unfinished workflows not found: %s", error.message, extra={"reason": error.reason_name})
            except Exception:
                _log.exception("unfinished workflows not found")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.poll_seconds):
                    await self._wake.wait()

    async def _sweep(self) -> None:
        """Begins every unfinished workflow that does not run, as soon as there is room for it."""
        partitions = sorted(self._epochs)
        if not partitions:
            return
        async for page in self._peer.open_workflows(partitions):
            idle = [
                (workflow_id, partition)
                for workflow_id, partition in page
                if workflow_id not in self._runs and workflow_id not in self._queued
            ]
            found = await asyncio.gather(
                *(self._peer.workflow(workflow_id) for workflow_id, _ in idle), return_exceptions=True
            )
            small = []
            for (workflow_id, partition), workflow in zip(idle, found, strict=True):
                if isinstance(workflow, BaseException):
                    self._complain(workflow_id, workflow)
                elif self._peer.shares_messages(workflow.size_bytes):
                    small.append(self._resume(workflow, partition))
                elif len(self._queued) < _QUEUE:
                    self._queue(workflow, partition)
            await asyncio.gather(*small)

    def _queue(self, workflow: Workflow, partition: int) -> None:
        """Resumes a workflow of large content when there is room: the next pages, and small contents, do not wait for it."""
        self._queued.add(workflow.workflow_id)
        waiting = self._spawn(self._resume(workflow, partition))
        waiting.add_done_callback(lambda _: self._queued.discard(workflow.workflow_id))

    def _complain(self, workflow_id: str, cause: BaseException) -> None:
        details = {"workflow_id": workflow_id}
        if isinstance(cause, BridgeError):
            _log.warning("workflow not read: %s", cause.message, extra={**details, "reason": cause.reason_name})
        elif workflow_id not in self._unreadable:
            # Once: what is no workflow's state is found again at every sweep.
            self._unreadable.add(workflow_id)
            _log.error("workflow not readable", exc_info=cause, extra=details)

    async def _resume(self, workflow: Workflow, partition: int) -> None:
        admission = self._admission(workflow)
        await admission.enter(workflow.size_bytes)
        # Looked at now: the wait may have been long.
        if workflow.state.ended or workflow.workflow_id in self._runs or partition not in self._epochs:
            admission.leave(workflow.size_bytes)
        else:
            self._begin(workflow, partition, None, "")

    def _admission(self, workflow: Workflow) -> Admission:
        return self._small if self._peer.shares_messages(workflow.size_bytes) else self._large

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # A run outlives the call that handed it over: neither its deadline nor its correlation id is the run's.
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
