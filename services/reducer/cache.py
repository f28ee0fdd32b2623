"""The states that this process committed last, so that the next action of their keys needs no read. Pure.

An entry may be stale, for other replicas write too: the store's answer to a commit decides.
"""

from __future__ import annotations

from collections import OrderedDict

from services.reducer.domain import Current


class StateCache:
    """The most recently put states, at most so many, and at most so many characters of text in all."""

    def __init__(self, max_entries: int, max_characters: int) -> None:
        self._max_entries = max_entries
        self._max_characters = max_characters
        self._by_key: OrderedDict[str, Current] = OrderedDict()
        self._characters = 0

    def put(self, key: str, current: Current) -> None:
        """Keeps what the key is now, in place of what it was; what was put longest ago makes room."""
        self.take(key)
        self._by_key[key] = current
        self._characters += current.size
        while len(self._by_key) > self._max_entries or self._characters > self._max_characters:
            _, oldest = self._by_key.popitem(last=False)
            self._characters -= oldest.size

    def take(self, key: str) -> Current | None:
        """What is kept of the key, which is then kept no more: who uses it puts back what he finds true."""
        current = self._by_key.pop(key, None)
        if current is not None:
            self._characters -= current.size
        return current
