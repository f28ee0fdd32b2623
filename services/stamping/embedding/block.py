"""The stamp's block: its canonical grammar, written and parsed.

    # ---BEGIN ONEX STAMP---
    # content_type: text/x-python
    # created_at: 2025-01-02T03:04:05.678901Z
    # digest: 64 lower-case hex digits
    # metadata_version: 0.1
    # namespace: omninode.services.metadata
    # op_id: UUID
    # protocol_version: 1.0
    # size_bytes: 1024
    # stamp_id: UUID
    # version: 1
    # ---END ONEX STAMP---

Canonical is only what `render` writes: the ten keys of `GRAMMAR`, each with a value of its form; further keys, which a later
version may add, with values of `_VALUE`; all sorted, each once, one `key: value` a line, one newline throughout. In a block
comment the opener stands before BEGIN and the closer after END, on the same lines. Anything else is content.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from services.stamping.embedding.place import CRLF, LF, find_place
from services.stamping.embedding.syntax import Syntax

BEGIN = b"---BEGIN ONEX STAMP---"
END = b"---END ONEX STAMP---"

BLOCK_MAX = 8_192
"""Bytes of a block. The ten fields need under 1,000; the bound keeps a BEGIN without its END cheap."""

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DOTTED_NUMBER = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,3}")
# No comment can be closed, continued or opened by these, and no space makes a value's end visible.
_VALUE = re.compile(r"[A-Za-z0-9_.:+/!#$&^-]{1,255}")
_KEY = re.compile(r"[a-z][a-z0-9_]{0,63}")
_LINE = re.compile(rb"([a-z][a-z0-9_]{0,63}): ([!-~]+)")
# PEP 263: on a file's second line this would name an encoding.
_CODING = re.compile(r"coding[:=]")

GRAMMAR: Mapping[str, re.Pattern[str]] = {
    "content_type": re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9!#$&^_.+-]+"),
    "created_at": re.compile(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:Z|[+-][0-9]{2}:[0-9]{2})"
    ),
    "digest": re.compile(r"[0-9a-f]{64}"),
    "metadata_version": _DOTTED_NUMBER,
    "namespace": re.compile(r"[A-Za-z0-9_.-]{1,255}"),
    "op_id": _UUID,
    "protocol_version": _DOTTED_NUMBER,
    "size_bytes": re.compile(r"0|[1-9][0-9]{0,18}"),
    "stamp_id": _UUID,
    "version": re.compile(r"[1-9][0-9]{0,18}"),
}
"""What each key of a block must have; other keys may stand beside them."""


@dataclass(frozen=True, slots=True)
class Block:
    """A canonical block in its place."""

    fields: Mapping[str, str]
    offset: int
    """Where its comment begins."""
    start: int
    stop: int
    """What it owns, with its newlines: content[start:stop]."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """A block that stands in the place of a stamp and is none: `reason` completes "not a stamp, because"."""

    offset: int
    reason: str


def insert(body: bytes, syntax: Syntax, fields: Mapping[str, str]) -> bytes | None:
    """Body with a block of the fields in its place; None where it must be detached.

    Raises ValueError where the fields are not those of a canonical block.
    """
    if fault := _fault(fields):
        raise ValueError(f"these fields are no stamp: {fault}")
    place = find_place(body, syntax)
    if place is None:
        return None
    block = render(fields, syntax, place.eol)
    if len(block) > BLOCK_MAX:
        raise ValueError(f"the block is longer than {BLOCK_MAX} bytes")
    return b"".join((body[: place.offset], place.before, block, place.after, body[place.offset :]))


def render(fields: Mapping[str, str], syntax: Syntax, eol: bytes) -> bytes:
    """The block, without the newlines around it."""
    text = [BEGIN, *(f"{key}: {fields[key]}".encode("ascii") for key in sorted(fields)), END]
    if syntax.closer:
        return syntax.opener + b" " + eol.join(text) + b" " + syntax.closer
    return eol.join(syntax.opener + b" " + line for line in text)


def find(content: bytes, syntax: Syntax) -> Block | Malformed | None:
    """The block in the place of a stamp; None where nothing there begins as one.

    What is found is exactly what `insert` writes: content == insert(content without it, syntax, its fields).
    """
    place = find_place(content, syntax)
    opening = syntax.opener + b" " + BEGIN
    if place is None or not content.startswith(opening, place.offset):
        return None
    parsed = _parse(
        content, place.offset, syntax, CRLF if content.startswith(CRLF, place.offset + len(opening)) else LF
    )
    if isinstance(parsed, Malformed):
        return parsed
    body = content[: parsed.start] + content[parsed.stop :]
    if insert(body, syntax, parsed.fields) != content:
        return Malformed(place.offset, "without it, a stamp would go to another place or have other newlines")
    return parsed


def _parse(content: bytes, offset: int, syntax: Syntax, eol: bytes) -> Block | Malformed:
    tail = len(syntax.closer) + 1 if syntax.closer else 0
    close = content.find(END, offset, offset + BLOCK_MAX - tail)
    if close < 0:
        return Malformed(offset, f"no {END.decode()} follows within {BLOCK_MAX} bytes")
    stop = close + len(END) + tail
    written = content[offset:stop]
    fields: dict[str, str] = {}
    for number, line in enumerate(written.split(eol)[1:-1], start=2):
        found = _LINE.fullmatch(line if syntax.closer else line.removeprefix(syntax.opener + b" "))
        if found is None:
            return Malformed(offset, f"line {number} of the block is not `key: value`")
        fields[found[1].decode("ascii")] = found[2].decode("ascii")
    if fault := _fault(fields):
        return Malformed(offset, fault)
    if render(fields, syntax, eol) != written:
        return Malformed(offset, "its lines are not as a stamp writes them, each key once and in order")
    if stop == len(content) and content.endswith(eol, 0, offset):
        return Block(fields, offset, offset - len(eol), stop)
    return Block(fields, offset, offset, stop + len(eol) * (2 if syntax.blank_line else 1))


def _fault(fields: Mapping[str, str]) -> str | None:
    if missing := sorted(GRAMMAR.keys() - fields.keys()):
        return f"it has no {missing[0]}"
    for key, value in fields.items():
        if not _KEY.fullmatch(key) or _CODING.search(f"{key}: {value}"):
            return f"{key!r} is not a key that a stamp may have"
        if not GRAMMAR.get(key, _VALUE).fullmatch(value):
            return f"its {key} is malformed"
    return None
