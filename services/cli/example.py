"""The calls that `up` shows to whoever wants to try the mesh by hand. A test makes every one of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

STAMPING = "omninode.bridge.stamping.v1.StampingService"
HELLO = "cHJpbnQoImhlbGxvIikK"
"""`print("hello")` and a newline; bytes are base64 in JSON."""


@dataclass(frozen=True, slots=True)
class Example:
    """One call: a method with its request, or a question to the node's reflection."""

    purpose: str
    method: str = ""
    """`<service>/<method>`; empty for a question to reflection."""
    request: Mapping[str, object] | None = None
    verb: str = ""
    """`list` or `describe`, the questions to reflection."""
    symbol: str = ""
    """What is to be described."""


EXAMPLES = (
    Example("the services", verb="list"),
    Example("a contract", verb="describe", symbol=STAMPING),
    Example("its health", "grpc.health.v1.Health/Check", {"service": STAMPING}),
    Example("a digest", f"{STAMPING}/Hash", {"content": HELLO}),
    Example(
        "a stamp",
        f"{STAMPING}/CreateStamp",
        {"request_id": "hello-1", "content": HELLO, "file_path": "hello.py", "embed": True},
    ),
)


def grpcurl(example: Example, target: str) -> str:
    """The example as a line for the shell."""
    request = [] if example.request is None else ["-d", json.dumps(example.request, separators=(",", ":"))]
    words = [example.verb, example.symbol, example.method]
    return shlex.join(["grpcurl", "-plaintext", *request, target, *filter(None, words)])
