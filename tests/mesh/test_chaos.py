"""The short form of tests/chaos: a few faults, each of another kind, and nothing acknowledged is lost or done twice."""

from __future__ import annotations

from pathlib import Path

from tests.chaos import fault
from tests.chaos.history import Outcome
from tests.chaos.run import Plan, run

SEED = 4
FAULTS = (
    fault.cut_statement,
    fault.kill_store,
    fault.swallow_statement,
    fault.kill_postgres,
    fault.cut_call,
    fault.kill_every_store,
)


async def test_nothing_acknowledged_is_lost_or_done_twice_whatever_is_killed_or_cut(tmp_path: Path) -> None:
    result = await run(Plan(FAULTS, SEED), tmp_path)
    assert result.violations == []
    assert result.faults.total() == len(FAULTS)
    # Without any of these the faults would have hit nobody.
    assert result.history.resolved
    for outcome in (Outcome.COMMITTED, Outcome.DUPLICATE, Outcome.CONFLICT, Outcome.UNKNOWN):
        assert result.history.outcomes[outcome]
    assert all(line.shown for line in result.lines)
