"""One workflow's run: its steps with their retries, and the reports of what was done. Which workflows run is runner.py's."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from services.chassis.errors import BridgeError
from services.orchestrator.domain import (
    Coordination,
    Retry,
    Step,
    StepName,
    StepTimedOut,
    Workflow,
    WorkflowState,
    check_content,
    completion,
    digest_of,
    failure,
    is_transient,
)
from services.orchestrator.peer import Owner, Peer, Reduced, Report, stamp_json

_log = logging.getLogger(__name__)
_REPORTING = Retry(max_attempts=1, initial_backoff_seconds=0.05, max_backoff_seconds=1.0)
"""Between attempts to report: without end, for what was done is to be recorded, and a lost lease ends the run."""
_INLINE_BYTES = 1024 * 1024
"""Content up to this is hashed in the event loop, in less than a millisecond; more goes to a thread."""


async def hashed(content: bytes) -> str:
    """BLAKE3 of the content; a large one holds no other call up."""
    return digest_of(content) if len(content) <= _INLINE_BYTES else await asyncio.to_thread(digest_of, content)


class _StepFailed(Exception):
    """A step has failed for good."""

    def __init__(self, attempt_count: int, cause: Exception) -> None:
        super().__init__(attempt_count, cause)
        self.attempt_count = attempt_count
        self.cause = cause


class Run:
    """One workflow on its way to its end, from the last step that was recorded."""

    def __init__(
        self,
        peer: Peer,
        coordination: Coordination,
        *,
        workflow: Workflow,
        owner: Owner,
        content: bytes | None,
        announce_seconds: float,
    ) -> None:
        """`content` where it is at hand; otherwise it is read from the store. Steps that take longer than `announce_seconds` are
        announced by `started`.
        """
        self._peer = peer
        self._coordination = coordination
        self._announce_seconds = announce_seconds
        self._workflow = workflow
        self._owner = owner
        self._known_content = content
        self._steps: Mapping[StepName, Callable[[], Awaitable[dict[str, Any]]]] = {
            StepName.VALIDATE_INPUT: self._validate_input,
            StepName.HASH_GENERATION: self._generate_hash,
            StepName.STAMP_CREATION: self._create_stamp,
            StepName.EVENT_PUBLISHING: self._publish_events,
        }

    async def finish(self) -> Reduced:
        """Does what is left, and returns the workflow's end. Raises Fenced where another replica runs it."""
        if self._workflow.state is not WorkflowState.PENDING:
            return await self._report(await self._perform_steps())
        started = self._peer.report_of("started")
        announcing: list[asyncio.Task[Reduced]] = []
        timer = asyncio.get_running_loop().call_later(
            self._announce_seconds,
            lambda: announcing.append(asyncio.create_task(self._report([started]))),
        )
        try:
            reports = await self._perform_steps()
            timer.cancel()
            if not announcing:
                return await self._report([started, *reports])
            await announcing[0]
            return await self._report(reports)
        finally:
            timer.cancel()
            for task in announcing:
                task.cancel()

    async def _perform_steps(self) -> list[Report]:
        """What is to be reported of the steps that are left: together, in one commit, for what is done again gives the same."""
        reports: list[Report] = []
        for step in self._coordination.remaining(self._workflow):
            try:
                attempt_count, result = await self._perform(step)
            except _StepFailed as failed:
                payload = failure(step.name, failed.attempt_count, failed.cause)
                return [*reports, self._peer.report_of("failed", step.name, payload)]
            payload = completion(step.name, attempt_count, result)
            reports.append(self._peer.report_of("step_completed", step.name, payload))
        return [*reports, self._peer.report_of("completed")]

    async def _perform(self, step: Step) -> tuple[int, dict[str, Any]]:
        """Attempts the step until it is done; returns how often, and its result. Raises _StepFailed."""
        now = asyncio.get_running_loop().time
        began = now()
        attempt_count = 0
        while True:
            attempt_count += 1
            try:
                return attempt_count, await self._attempt(step)
            except BridgeError as error:
                cause: Exception = error
            except Exception as error:
                _log.exception("fault in a step", extra={"workflow_id": self._workflow.workflow_id, "step": step.name})
                cause = error
            wait = step.wait(cause, attempt_count, now() - began, random.random())  # noqa: S311 (spreads, hides nothing)
            if wait is None:
                raise _StepFailed(attempt_count, cause)
            await asyncio.sleep(wait)

    async def _attempt(self, step: Step) -> dict[str, Any]:
        try:
            async with asyncio.timeout(step.timeout_seconds):
                return await self._steps[step.name]()
        except TimeoutError as error:
            raise StepTimedOut from error

    async def _validate_input(self) -> dict[str, Any]:
        content = await self._content()
        check_content(self._workflow, len(content), self._workflow.content_digest)
        return {}

    async def _generate_hash(self) -> dict[str, Any]:
        content = await self._content()
        digest = await hashed(content)
        check_content(self._workflow, len(content), digest)
        return {"digest": digest}

    async def _create_stamp(self) -> dict[str, Any]:
        answer = await self._peer.create_stamp(self._workflow, await self._content())
        return {"stamp": stamp_json(answer.stamp), "created": answer.created}

    async def _publish_events(self) -> dict[str, Any]:
        # The commit that records this step publishes them all: they are rows of the outbox in its transaction.
        return {}

    async def _content(self) -> bytes:
        if self._known_content is None:
            self._known_content = await self._peer.content(self._workflow.content_digest)
        return self._known_content

    async def _report(self, reports: list[Report]) -> Reduced:
        attempt_count = 0
        while True:
            attempt_count += 1
            try:
                return await self._peer.report(self._workflow, self._owner, reports)
            except BridgeError as error:
                if not is_transient(error):
                    raise
            await asyncio.sleep(_REPORTING.backoff(attempt_count, random.random()))  # noqa: S311 (spreads, hides nothing)
