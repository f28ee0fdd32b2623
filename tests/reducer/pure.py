"""What must be pure, in one place: the modules in which reducers live, and the reducers that are found."""

from __future__ import annotations

from pathlib import Path

from examples.counter.counter_reducer import Counter
from services.chassis import contracts
from services.reducer import entry_point
from services.reducer.domain import Reducers
from services.reducer.node import CONTRACT, machine_of

MODULES = (
    "services.reducer.aggregation.config",
    "services.reducer.aggregation.item",
    "services.reducer.aggregation.pane",
    "services.reducer.aggregation.durable",
    "services.reducer.aggregation.fold",
    "services.reducer.aggregation.distinct",
    "services.reducer.aggregation.cell",
    "services.reducer.aggregation.window",
    "services.reducer.aggregation.strategy",
    "services.reducer.aggregation.shelf",
    "services.reducer.aggregation.aggregation",
    "services.reducer.cache",
    "services.reducer.domain",
    "services.reducer.fsm",
    "services.reducer.machine",
)
"""The node's own; a module comes after those that it imports. Those of other reducers are found."""
GOLDEN = Path(__file__).with_name("golden")
DIGESTS = GOLDEN / "digests.json"


def reducers() -> Reducers:
    """Every reducer there is: the contract's, those of entry points, and the example."""
    return entry_point.registered([machine_of(contracts.load(CONTRACT)), Counter()])
