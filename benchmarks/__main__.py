"""`python -m benchmarks [--only name,name]`: runs the benchmarks, prints a table, appends to results.jsonl."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable, Mapping

import uvloop
from rich.console import Console

from benchmarks import aggregation, feed, reducer, stamping, store, workflow
from benchmarks.figure import Figure, show, write

BENCHMARKS: Mapping[str, Callable[[], Awaitable[Figure]]] = {
    run.__name__: run
    for run in (
        stamping.hash_unary,
        stamping.create_stamp_unary,
        stamping.batch_create_stamps,
        stamping.hash_stream,
        store.commit_order,
        store.try_commit_unary,
        store.batch_try_commit,
        feed.projection_lag,
        feed.watch_commits,
        feed.read_your_writes,
        feed.watch_fanout,
        feed.key_growth,
        reducer.reduce_distinct,
        reducer.reduce_hot_key,
        reducer.batch_reduce_hot,
        reducer.reduce_hot_routed,
        aggregation.aggregate_stream,
        aggregation.aggregate_stream_100k,
        aggregation.watch_aggregates,
        workflow.run_workflow,
        workflow.workflow_throughput,
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", default="", metavar="NAME,NAME", help=f"some of: {', '.join(BENCHMARKS)}")
    names = [name for name in parser.parse_args().only.split(",") if name] or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    console = Console(width=160 if not sys.stdout.isatty() else None)
    figures: list[Figure] = []
    for name in names:
        with Console(stderr=True).status(f"{name} …"):
            figures.append(uvloop.run(BENCHMARKS[name]()))  # type: ignore[arg-type]  # the coroutine functions above
        # Each as soon as it is there: whoever loses patience keeps what was measured.
        write(figures[-1:])
    show(figures, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
