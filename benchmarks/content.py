"""What is stamped in the benchmarks."""

from __future__ import annotations

import random

KIB = 1024
MIB = 1024 * KIB


def contents(count: int, size: int = KIB) -> list[bytes]:
    """Distinct texts of `size` bytes."""
    seed = random.Random()  # noqa: S311 (distinct, not secret)
    line = b"def answer():\n    return 42\n"
    body = (line * (size // len(line) + 1))[: size - 32]
    return [seed.randbytes(16).hex().encode() + body for _ in range(count)]
