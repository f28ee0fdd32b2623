"""A circuit breaker as a state machine: what it counts, when it opens, when a probe is due, who may try.

No I/O, no task and no timer live here. The clock is an argument, and whoever owns the breaker runs the probe.
"""

from __future__ import annotations

import enum
from collections.abc import Callable


class BreakerState(enum.IntEnum):
    """The three states; the values are the gauge's."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Opens after `threshold` failures in a row, and closes again by a probe and one trial.

    Each use asks `admit` for a permit and reports exactly one outcome with it: `succeeded`, `failed` or `abandoned`. A permit of an
    earlier state says nothing about the present one, so its outcome is ignored: the statements that were under way when the
    breaker opened neither close it nor lengthen the wait.

    A probe that was answered half-opens the breaker for one trial and not for all: an answer to `SELECT 1` says that the server
    takes connections, the trial that it does the work, and a server that has just come back is spared a rush meanwhile.
    """

    def __init__(
        self,
        *,
        threshold: int,
        probe_initial: float,
        probe_max: float,
        clock: Callable[[], float],
        on_change: Callable[[BreakerState], None],
    ) -> None:
        """`probe_initial` and `probe_max` in seconds, `clock` in seconds and monotonic; `on_change` hears of every new state."""
        self._threshold = threshold
        self._probe_initial = probe_initial
        self._probe_max = probe_max
        self._clock = clock
        self._on_change = on_change
        self._state = BreakerState.CLOSED
        self._epoch = 0
        self._failures = 0
        self._trial_out = False
        self._wait = probe_initial
        self._probe_at = 0.0

    @property
    def state(self) -> BreakerState:
        return self._state

    @property
    def admits(self) -> bool:
        """Whether `admit` would give a permit now."""
        return self._state is BreakerState.CLOSED or (self._state is BreakerState.HALF_OPEN and not self._trial_out)

    @property
    def probe_delay(self) -> float:
        """Seconds until the next probe is due, while open."""
        return max(self._probe_at - self._clock(), 0.0)

    @property
    def retry_delay(self) -> float:
        """Seconds after which a refused caller may do better: the next probe; while a probe or the trial is out, one first wait."""
        return (self.probe_delay if self._state is BreakerState.OPEN else 0.0) or self._probe_initial

    def admit(self) -> int | None:
        """A permit for one use, or None: refused."""
        if self._state is BreakerState.CLOSED:
            return self._epoch
        if not self.admits:
            return None
        self._trial_out = True
        return self._epoch

    def succeeded(self, permit: int) -> None:
        """The use was answered, whatever the answer was."""
        if permit != self._epoch:
            return
        self._failures = 0
        if self._state is BreakerState.HALF_OPEN:
            self._wait = self._probe_initial
            self._enter(BreakerState.CLOSED)

    def failed(self, permit: int) -> None:
        """The use met no server."""
        if permit != self._epoch:
            return
        self._failures += 1
        if self._state is BreakerState.HALF_OPEN:
            self._lengthen()
            self._open()
        elif self._failures >= self._threshold:
            self._open()

    def abandoned(self, permit: int) -> None:
        """The use ended without an answer and without blame: its caller went away. A trial goes to the next caller."""
        if permit == self._epoch:
            self._trial_out = False

    def probe_answered(self) -> None:
        """The probe met the server; the next caller is the trial."""
        self._trial_out = False
        self._enter(BreakerState.HALF_OPEN)

    def probe_failed(self) -> None:
        """The probe met no server; the next one is due after twice the wait."""
        self._lengthen()
        self._probe_at = self._clock() + self._wait

    def _lengthen(self) -> None:
        self._wait = min(self._wait * 2, self._probe_max)

    def _open(self) -> None:
        self._failures = 0
        self._probe_at = self._clock() + self._wait
        self._enter(BreakerState.OPEN)

    def _enter(self, state: BreakerState) -> None:
        self._epoch += 1
        self._state = state
        self._on_change(state)
