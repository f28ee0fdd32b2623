"""Taking a file apart into its body and its stamps, and putting a stamp into a body.

A stamp is one of ours only in its exact place: a block where `block.insert` would put it, an earlier form at the very top or
the very end. All else is the body, byte for byte. Stamps may lie one within another, because the earlier bridge stamped what
was stamped; they are taken off until none is left, so that strip(write(strip(x))) == strip(x) and strip(strip(x)) == strip(x).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from operator import itemgetter

from blake3 import blake3

from services.stamping.embedding import block, earlier, foreign
from services.stamping.embedding.block import Block, Malformed
from services.stamping.embedding.syntax import syntax_of

ROUNDS_MAX = 16
"""How often a block, and then the earlier forms that it lay in, are taken off. Each round copies the content, so it is bounded:
content in which they lie deeper bears no stamp at all and can get none. What the bridges wrote needs two or three."""

FINDINGS_MAX = 100
"""Findings of each kind in a reading: a hostile file of 10 MiB must not make an answer of a hundred thousand."""

_OWN = b"ONEX"
_LIGHTWEIGHT_LINE = re.compile(rb"^(?:\xef\xbb\xbf)?# ONEX:uid=[^\n]*,hash=", re.MULTILINE)

_MISPLACED = "it does not stand where a stamp is put"
_DETACHED = "this content is stamped detached"
_TOO_DEEP = f"stamps lie in it more than {ROUNDS_MAX} deep"
_NOT_LIGHTWEIGHT = "only a whole lightweight stamp on the first line, closed by LF, is one"
_NOT_RICH = "only a whole rich stamp at the end, after a blank line, is one"


class Form(StrEnum):
    """How a stamp is written."""

    BLOCK = "block"
    LIGHTWEIGHT = "lightweight"
    RICH = "rich"


class DigestRule(StrEnum):
    """What a digest is BLAKE3 of: the body's bytes, or its text as the earlier bridge normalized it."""

    RAW = "blake3"
    NORMALIZED = "blake3-normalized-text"


@dataclass(frozen=True, slots=True)
class Stamp:
    """One stamp of ours in its place."""

    form: Form
    fields: Mapping[str, str]
    line: int
    """1-based, in the content as it was read."""

    @property
    def digest(self) -> str:
        """The declared digest: 64 lower-case hex digits."""
        return self.fields["digest" if self.form is Form.BLOCK else "hash"]

    @property
    def rule(self) -> DigestRule:
        """By which rule the body's digest is to be compared with the declared one."""
        return DigestRule.RAW if self.form is Form.BLOCK else DigestRule.NORMALIZED


@dataclass(frozen=True, slots=True)
class Quoted:
    """What looks like a stamp of ours and is content."""

    form: Form
    line: int
    reason: str
    """Completes "not a stamp, because"."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """A block of another tool, with the keys and values that it declares."""

    line: int
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file bears. Each list is in the order of lines and holds FINDINGS_MAX at most; `truncated` says that one is cut."""

    body: bytes
    stamps: tuple[Stamp, ...] = ()
    quoted: tuple[Quoted, ...] = ()
    foreign: tuple[Foreign, ...] = ()
    truncated: bool = False


def digest(body: bytes, rule: DigestRule) -> str | None:
    """The body's digest, 64 hex digits; None where the rule needs UTF-8 text and the body is none."""
    return blake3(body).hexdigest() if rule is DigestRule.RAW else earlier.normalized_digest(body)


def strip(content: bytes, file_path: str) -> bytes:
    """Content without the stamps of ours that stand in their place; the same object where there is none."""
    return _peel(content, file_path).body if _may_bear(content) else content


def write(body: bytes, file_path: str, fields: Mapping[str, str]) -> bytes | None:
    """Body, which is what `strip` returned, with a block of the fields in its place; None where it must be detached.

    Detached are unknown syntax, content with NUL, an opening that leaves the place in doubt, and a body that still bears a
    stamp. Raises ValueError where a key of `block.GRAMMAR` is missing or a field is malformed.
    """
    syntax = syntax_of(file_path, body)
    if syntax is None or (_may_bear(body) and _Peeling(body, file_path).round()):
        return None
    return block.insert(body, syntax, fields)


def read(content: bytes, file_path: str) -> Reading:
    """The body, and every stamp in its place, every quoted one and every foreign block, each with its line."""
    ours = _OWN in content
    if not ours and foreign.MARK not in content:
        return Reading(content)
    peeled = _peel(content, file_path) if ours else _Peeling(content, file_path)
    found = sorted(peeled.found, key=itemgetter(0))
    quotations = _quotations(peeled.body, file_path) if ours else []
    quoted = [(peeled.origin(offset), form, reason) for offset, form, reason in quotations]
    blocks = islice(foreign.foreign_blocks(peeled.body), FINDINGS_MAX + 1)
    others = [(peeled.origin(other.offset), other.fields) for other in blocks]
    line = _line_numbers(content, [offset for findings in (found, quoted, others) for offset, *_ in findings])
    return Reading(
        body=peeled.body,
        stamps=tuple(Stamp(form, fields, line[offset]) for offset, form, fields in found[:FINDINGS_MAX]),
        quoted=tuple(Quoted(form, line[offset], reason) for offset, form, reason in quoted[:FINDINGS_MAX]),
        foreign=tuple(Foreign(line[offset], fields) for offset, fields in others[:FINDINGS_MAX]),
        truncated=max(len(found), len(quoted), len(others)) > FINDINGS_MAX,
    )


class _Peeling:
    """Content from which stamps are taken off, and what was taken: (offset in the content as it was, form, fields)."""

    def __init__(self, content: bytes, file_path: str) -> None:
        self.body = content
        self.found: list[tuple[int, Form, Mapping[str, str]]] = []
        self._file_path = file_path
        self._removed: list[tuple[int, int]] = []

    def round(self) -> bool:
        """Take off the block, then the lightweight stamps at the top, then the rich ones at the end; whether there was any.

        The block goes first: so of what `write` made, the block that it put in is all that is taken off again.
        """
        before = self.body
        self._take_block()
        self._take_lightweight()
        self._take_rich()
        return self.body is not before

    def origin(self, offset: int) -> int:
        """Where the body's `offset` was in the content as it was."""
        for start, length in reversed(self._removed):
            if offset >= start:
                offset += length
        return offset

    def _take_block(self) -> None:
        syntax = syntax_of(self._file_path, self.body) if block.BEGIN in self.body else None
        found = block.find(self.body, syntax) if syntax else None
        if isinstance(found, Block):
            self._note(found.offset, Form.BLOCK, found.fields)
            self._cut(found.start, found.stop)

    def _take_lightweight(self) -> None:
        at = 0
        while stamp := earlier.lightweight_at(self.body, at):
            self._note(stamp.offset, Form.LIGHTWEIGHT, stamp.fields)
            at = stamp.stop
        self._cut(0, at)

    def _take_rich(self) -> None:
        end = len(self.body)
        while stamp := earlier.rich_before(self.body, end):
            self._note(stamp.offset, Form.RICH, stamp.fields)
            end = stamp.start
        self._cut(end, len(self.body))

    def _note(self, offset: int, form: Form, fields: Mapping[str, str]) -> None:
        if len(self.found) <= FINDINGS_MAX:
            self.found.append((self.origin(offset), form, fields))

    def _cut(self, start: int, stop: int) -> None:
        if start < stop:
            self.body = self.body[:start] + self.body[stop:]
            self._removed.append((start, stop - start))


def _may_bear(content: bytes) -> bool:
    """Whether content can bear a stamp at all: the hot path's one check, before any look at its syntax."""
    return _OWN in content and (
        block.BEGIN in content
        or content.startswith(earlier.LIGHTWEIGHT)
        or earlier.RICH_END in content[-len(earlier.RICH_END) - 1 :]
    )


def _peel(content: bytes, file_path: str) -> _Peeling:
    peeling = _Peeling(content, file_path)
    for _ in range(ROUNDS_MAX + 1):
        if not peeling.round():
            return peeling
    return _Peeling(content, file_path)


def _quotations(body: bytes, file_path: str) -> list[tuple[int, Form, str]]:
    """What looks like a stamp in a body, in the order of its offsets: (offset, form, why it is none)."""
    found = [
        *islice(_quoted_blocks(body, file_path), FINDINGS_MAX + 1),
        *islice(
            ((match.start(), Form.LIGHTWEIGHT, _NOT_LIGHTWEIGHT) for match in _LIGHTWEIGHT_LINE.finditer(body)),
            FINDINGS_MAX + 1,
        ),
        *islice(
            ((at, Form.RICH, _NOT_RICH) for at in _pairs(body, earlier.RICH_START, earlier.RICH_END)), FINDINGS_MAX + 1
        ),
    ]
    return sorted(found)


def _quoted_blocks(body: bytes, file_path: str) -> Iterator[tuple[int, Form, str]]:
    if block.BEGIN not in body:
        return
    syntax = syntax_of(file_path, body)
    found = block.find(body, syntax) if syntax else None
    reason = _DETACHED if syntax is None else _MISPLACED
    malformed = found.offset + len(syntax.opener) + 1 if syntax and found else -1
    if isinstance(found, Malformed):
        yield malformed, Form.BLOCK, found.reason
    elif found:
        yield malformed, Form.BLOCK, _TOO_DEEP
    for offset in _pairs(body, block.BEGIN, block.END):
        if offset != malformed:
            yield offset, Form.BLOCK, reason


def _pairs(content: bytes, opening: bytes, closing: bytes) -> Iterator[int]:
    """Where each complete pair opens: at the last opening before its closing."""
    at = 0
    while (close := content.find(closing, at)) >= 0:
        start = content.rfind(opening, at, close)
        if start >= 0:
            yield start
        at = close + len(closing)


def _line_numbers(content: bytes, offsets: Iterable[int]) -> Mapping[int, int]:
    numbers: dict[int, int] = {}
    line, counted = 1, 0
    for offset in sorted(offsets):
        line += content.count(b"\n", counted, offset)
        counted = offset
        numbers[offset] = line
    return numbers
