"""Reads one YAML document that nobody vouches for: bounded, without aliases, and with a line for each value.

What the document must say is its reader's: a contract's keys are contracts.py's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import yaml
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

Scalar: TypeAlias = bool | int | float | str | None
Content: TypeAlias = "Scalar | list[Value] | dict[str, Value]"

MAX_DEPTH = 64
"""Levels of nesting: contracts have about ten, and reading recurses."""
MAX_VALUES = 20_000
"""Values of a document, some 50 ms of reading; a large contract has hundreds."""

# libyaml reads twenty times as fast as the Python of the same package, which stands in where a platform's wheel lacks it.
_LOADER: type[yaml.CSafeLoader] | type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SURROGATE = re.compile("[\ud800-\udfff]")
_NO_CHARACTER = "a surrogate is no character"
_TAG = "tag:yaml.org,2002:"
_COLLECTION_TAGS = {None, "!", f"{_TAG}seq", f"{_TAG}map"}
# A date is text here: what is read must be JSON.
_TEXT_TAGS = {f"{_TAG}str", f"{_TAG}timestamp", f"{_TAG}value"}
_TYPED = {
    f"{_TAG}null": SafeConstructor.construct_yaml_null,
    f"{_TAG}bool": SafeConstructor.construct_yaml_bool,
    f"{_TAG}int": SafeConstructor.construct_yaml_int,
    f"{_TAG}float": SafeConstructor.construct_yaml_float,
}


class DocumentError(ValueError):
    """The text is no document that can be read: the line, from 1, and why."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the document, and the line where it stands; that of its key where it has one."""

    line: int
    content: Content

    def plain(self) -> object:
        """The value as JSON has it: dict, list, str, int, finite float, bool, None."""
        if isinstance(self.content, dict):
            return {key: value.plain() for key, value in self.content.items()}
        if isinstance(self.content, list):
            return [value.plain() for value in self.content]
        return self.content


def read(text: str, *, max_values: int = MAX_VALUES) -> Value:
    """The document of `text`, YAML 1.1 as PyYAML has it; an empty one is None.

    Raises DocumentError for what is no YAML, for aliases, tags, merge keys, keys that are no text or stand twice, numbers
    that JSON lacks, a second document, and for more than `max_values` values or MAX_DEPTH levels.
    """
    if surrogate := _SURROGATE.search(text):
        raise DocumentError(text.count("\n", 0, surrogate.start()) + 1, _NO_CHARACTER)
    return _Reader(_events(text), max_values).document()


def _events(text: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # libyaml names the line after the last one for what is missing at the end.
        line = min(mark.line, text.count("\n")) + 1 if mark else 1
        raise DocumentError(line, error.problem or "is no YAML") from None
    except yaml.reader.ReaderError as error:
        raise DocumentError(text.count("\n", 0, error.position) + 1, error.reason) from None
    except ValueError as error:
        # Only PyYAML's own Python: an escape past the last character.
        raise DocumentError(1, str(error)) from None


class _Reader:
    def __init__(self, events: Iterator[yaml.Event], max_values: int) -> None:
        self._events = events
        self._left = max_values
        self._resolver = Resolver()
        self._constructor = SafeConstructor()

    def document(self) -> Value:
        self._next()
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            return Value(1, None)
        found = self._value(self._next(), 1)
        self._next()
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            raise DocumentError(_line(event), "a second document")
        return found

    def _next(self) -> yaml.Event:
        return next(self._events)

    def _value(self, event: yaml.Event, depth: int) -> Value:
        line = _line(event)
        self._left -= 1
        if self._left < 0:
            raise DocumentError(line, "too many values")
        if depth > MAX_DEPTH:
            raise DocumentError(line, f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.ScalarEvent):
            return Value(line, self._scalar(event))
        if not isinstance(event, yaml.CollectionStartEvent):
            raise DocumentError(line, "aliases are not supported")
        if event.tag not in _COLLECTION_TAGS:
            raise DocumentError(line, f"the tag {event.tag} is not supported")
        return Value(line, self._list(depth) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(depth))

    def _list(self, depth: int) -> list[Value]:
        found = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            found.append(self._value(event, depth + 1))
        return found

    def _mapping(self, depth: int) -> dict[str, Value]:
        found: dict[str, Value] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._value(event, depth + 1)
            if not isinstance(key.content, str):
                raise DocumentError(key.line, "a key must be text; in quotes every scalar is")
            if key.content in found:
                raise DocumentError(key.line, f"the key {key.content!r} stands twice")
            found[key.content] = Value(key.line, self._value(self._next(), depth + 1).content)
        return found

    def _scalar(self, event: yaml.ScalarEvent) -> Scalar:
        if _SURROGATE.search(event.value):
            raise DocumentError(_line(event), _NO_CHARACTER)
        tag = self._tag(event)
        if tag in _TEXT_TAGS:
            return event.value
        construct = _TYPED.get(tag)
        if construct is None:
            raise DocumentError(_line(event), f"the tag {tag} is not supported")
        try:
            found: Scalar = construct(self._constructor, yaml.ScalarNode(tag, event.value))
        except (ValueError, KeyError, IndexError, OverflowError):
            raise DocumentError(_line(event), f"not a valid {tag.removeprefix(_TAG)}") from None
        if isinstance(found, float) and not math.isfinite(found):
            raise DocumentError(_line(event), "a number must be finite")
        return found

    def _tag(self, event: yaml.ScalarEvent) -> str:
        if event.tag is not None and event.tag != "!":
            return event.tag
        tag: str = self._resolver.resolve(yaml.ScalarNode, event.value, event.implicit)  # type: ignore[no-untyped-call]  # the stub has no types
        return tag


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1
