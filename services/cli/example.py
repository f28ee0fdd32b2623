"""The calls that `up` shows to whoever wants to try the mesh by hand. A test makes every one of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

STAMPING = "omninode.bridge.stamping.v1.StampingService"
ORCHESTRATOR = "omninode.bridge.orchestrator.v1.OrchestratorService"
REDUCER = "omninode.bridge.reducer.v1.ReducerService"
STORE = "omninode.bridge.store.v1.StoreService"
HELLO = "cHJpbnQoImhlbGxvIikK"
"""`print("hello")` and a newline; bytes are base64 in JSON."""


@dataclass(frozen=True, slots=True)
class Example:
    """One call: a method with its request, or a question to the node's reflection."""

    purpose: str
    node: str
    """Whom it is for."""
    method: str = ""
    """`<service>/<method>`; empty for a question to reflection."""
    request: Mapping[str, object] | None = None
    verb: str = ""
    """`list` or `describe`, the questions to reflection."""
    symbol: str = ""
    """What is to be described."""


_SUBMISSION = {"request_id": "hello-1", "workflow_id": "hello", "content": HELLO, "file_path": "hello.py"}
EXAMPLES = (
    Example("the services of a node", "stamping", verb="list"),
    Example("a contract", "stamping", verb="describe", symbol=STAMPING),
    Example("a node's health", "stamping", "grpc.health.v1.Health/Check", {"service": STAMPING}),
    Example("a digest", "stamping", f"{STAMPING}/Hash", {"content": HELLO}),
    Example(
        "a stamp",
        "stamping",
        f"{STAMPING}/CreateStamp",
        {"request_id": "hello-1", "content": HELLO, "file_path": "hello.py", "embed": True},
    ),
    Example(
        "a workflow, which is durable when it answers", "orchestrator", f"{ORCHESTRATOR}/SubmitWorkflow", _SUBMISSION
    ),
    Example("its end", "orchestrator", f"{ORCHESTRATOR}/RunWorkflow", {"submission": _SUBMISSION}),
    Example("what is aggregated", "reducer", f"{REDUCER}/ListSessions", {}),
    Example("its state", "store", f"{STORE}/GetState", {"key": "workflow/hello"}),
)
"""In the order in which they are to be made: the last two ask for what the one before them made."""


def grpcurl(example: Example, target: str) -> str:
    """The example as a line for the shell."""
    request = [] if example.request is None else ["-d", json.dumps(example.request, separators=(",", ":"))]
    words = [example.verb, example.symbol, example.method]
    return shlex.join(["grpcurl", "-plaintext", *request, target, *filter(None, words)])
