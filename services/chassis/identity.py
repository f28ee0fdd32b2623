"""Ids: the bridge's fixed UUID with the names derived from it, UUIDv7 in the order of their making, and a key's partition."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from hashlib import sha1

from blake3 import blake3

BRIDGE = uuid.UUID("0f3c6d1e-5b7a-5c29-9e44-6f6d6e696e65")
"""The namespace of every UUIDv5 of the bridge. It never changes: an op_id made anew must equal the one that was stored."""

_BRIDGE = BRIDGE.bytes
_SEQUENCE_BITS = 12
_SEQUENCE = (1 << _SEQUENCE_BITS) - 1
_VERSION_7 = 0x7 << 76
_VERSION_5 = 0x5 << 76
_VARIANT = 0b10 << 62
_CLEAR_VERSION = ~(0xF << 76)
_CLEAR_VARIANT = ~(0b11 << 62)


def op_id(request_id: str) -> uuid.UUID:
    """UUIDv5 of the bridge's UUID and the request's id."""
    return _uuid5(_BRIDGE, request_id)


def event_id(action_id: uuid.UUID, index: int) -> uuid.UUID:
    """UUIDv5 of an action's id and its event's index in it."""
    return _uuid5(action_id.bytes, str(index))


def event_id_text(action_id: uuid.UUID, index: int) -> str:
    """The same as text: half of what it costs to make a UUID and its text of that."""
    digits = f"{_number5(action_id.bytes, str(index)):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def partition_of(key: str, partition_count: int) -> int:
    """The partition of a key, 0 to `partition_count` - 1; the same on every machine and in every language."""
    return int.from_bytes(blake3(key.encode()).digest(length=8)) % partition_count


def _uuid5(namespace: bytes, name: str) -> uuid.UUID:
    # What uuid.uuid5 does, without its checks of arguments: twice as fast, on the path of every stamp and every event.
    return uuid.UUID(int=_number5(namespace, name))


def _number5(namespace: bytes, name: str) -> int:
    number = int.from_bytes(sha1(namespace + name.encode(), usedforsecurity=False).digest()[:16])
    return number & _CLEAR_VERSION & _CLEAR_VARIANT | _VERSION_5 | _VARIANT


class Uuid7Generator:
    """UUIDv7 (RFC 9562, method 1) that grow with every call, also when the clock stands still or goes back.

    `now` gives milliseconds since the epoch, `entropy` that many random bytes. A call is safe from any thread.
    """

    def __init__(
        self, now: Callable[[], int] = lambda: time.time_ns() // 1_000_000, entropy: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._now = now
        self._random = _eights(entropy)
        self._last = 0
        """Milliseconds and sequence as one number: what must grow."""
        self._lock = threading.Lock()

    def __call__(self) -> uuid.UUID:
        """The next id."""
        with self._lock:
            random = next(self._random)
            # A full sequence runs over into the next millisecond; the ids stay in order and the clock catches up.
            last = self._last = max(self._now() << _SEQUENCE_BITS, self._last + 1)
        milliseconds, sequence = last >> _SEQUENCE_BITS, last & _SEQUENCE
        return uuid.UUID(int=milliseconds << 80 | _VERSION_7 | sequence << 64 | _VARIANT | random >> 2)


def _eights(entropy: Callable[[int], bytes]) -> Iterator[int]:
    """Random numbers of 64 bits, drawn many at a time: a system call for each would be a quarter of an id's cost."""
    while True:
        drawn = memoryview(entropy(8 * 256)).cast("Q")
        yield from drawn
