"""The long form: `python -m tests.chaos`. A line for each fault, a table at the end, exit status 1 on any violation."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

import uvloop

from tests.chaos import fault
from tests.chaos.fault import Fault
from tests.chaos.history import Outcome
from tests.chaos.run import Plan, Result, run

_SHOWN = 50
"""Violations that are printed; the first say what is wrong."""
OTHERS: tuple[tuple[Fault, int], ...] = (
    (fault.stop_postgres_at_once, 3),
    (fault.kill_postgres, 3),
    (fault.cut_statement, 6),
    (fault.cut_call, 6),
    (fault.cut_everything, 2),
    (fault.swallow_statement, 4),
    (fault.swallow_answer, 4),
    (fault.stall_statement, 2),
    (fault.stall_call, 2),
    (fault.pause_store, 2),
    (fault.rebuild_projections, 2),
)
"""The faults beside the kills of stores, with how often each is done."""


def main() -> int:
    """The run's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Harm a store for real, and check everything."
    )
    parser.add_argument("--kills", type=int, default=20, help="kill -9 of a store process, that many times (20)")
    parser.add_argument("--seconds", type=float, default=0, help="go on with faults at least so long (0)")
    parser.add_argument("--writers", type=int, default=12, help="concurrent writers (12)")
    parser.add_argument("--seed", type=int, default=None, help="of the faults and the writers; a random one is printed")
    parser.add_argument("--without-feeds", action="store_true", help="commits alone")
    parser.add_argument("--folder", help="an empty folder for data and logs, which then are kept")
    given = parser.parse_args()
    seed = secrets.randbelow(2**32) if given.seed is None else given.seed
    plan = Plan(
        faults=faults(given.kills, seed, feeds=not given.without_feeds),
        seed=seed,
        seconds=given.seconds,
        writers=given.writers,
        feeds=not given.without_feeds,
    )
    print(f"seed {seed}: {len(plan.faults)} faults, {plan.writers} writers", flush=True)
    began = time.monotonic()
    with contextlib.ExitStack() as ending:
        folder = given.folder or ending.enter_context(tempfile.TemporaryDirectory(prefix="omnibridge-chaos-"))
        result = uvloop.run(run(plan, Path(folder), lambda line: print(line, flush=True)))
    print(table(result, time.monotonic() - began))
    for violation, count in list(Counter(result.violations).items())[:_SHOWN]:
        print(f"VIOLATION {count} x {violation}", file=sys.stderr)
    if result.violations:
        print(f"again: python -m tests.chaos --seed {seed} --kills {given.kills}", file=sys.stderr)
    return 1 if result.violations else 0


def faults(kills: int, seed: int, *, feeds: bool) -> list[Fault]:
    """All faults of a long run, in the seed's order; every fifth kill is one of all stores at once."""
    planned: list[Fault] = [fault.kill_every_store if number % 5 == 4 else fault.kill_store for number in range(kills)]
    planned += [
        other for other, count in OTHERS for _ in range(count) if feeds or other is not fault.rebuild_projections
    ]
    Random(seed).shuffle(planned)
    return planned


def table(result: Result, seconds: float) -> str:
    """The figures of a run."""
    history = result.history
    rows: list[tuple[str, object]] = [
        ("seconds", f"{seconds:.0f}"),
        ("commits acknowledged", history.acknowledged),
        ("refused: conflicts", history.outcomes[Outcome.CONFLICT]),
        ("refused: fenced", history.outcomes[Outcome.FENCED]),
        ("refused: other", history.outcomes[Outcome.REFUSED]),
        ("duplicates", history.outcomes[Outcome.DUPLICATE]),
        ("replays on purpose", history.replays),
        ("projections of own writes", history.reads),
        ("unknown outcomes", history.outcomes[Outcome.UNKNOWN]),
        ("changes with one, resolved", history.resolved),
        ("actions in the log", result.log_rows),
        ("keys", result.keys),
        *((name, count) for name, count in sorted(result.faults.items())),
        ("longest time without a commit", f"{history.longest_silence:.1f} s"),
        ("feed items checked", sum(len(line.shown) for line in result.lines)),
        ("cursor lines", len(result.lines)),
        ("connections of watchers", sum(line.connections for line in result.lines)),
        ("fell behind", sum(line.fell_behind for line in result.lines)),
        ("silent connections", sum(line.silences for line in result.lines)),
        ("violations", len(result.violations)),
    ]
    return "\n".join(
        f"{name:<30} {count:>12,}" if isinstance(count, int) else f"{name:<30} {count:>12}" for name, count in rows
    )


if __name__ == "__main__":
    sys.exit(main())
