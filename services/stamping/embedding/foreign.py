"""Blocks of another tool, `# === OmniNode:Metadata ===` to `# === /OmniNode:Metadata ===`: found and quoted, never verified.

That tool hashes by SHA-256 over a canonical form of its own, so what such a block declares cannot be valid or invalid here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MARK = b"=== OmniNode:Metadata ==="
_CLOSING_MARK = b"=== /OmniNode:Metadata ==="

FOREIGN_MAX = 16_384
"""Bytes between the marks; the longest seen are under 3,000."""
_INDENT_MAX = 64
"""Bytes before the mark on its line: indentation and a comment's opening."""
_FIELDS_MAX = 64
"""Declared fields that are reported of one block; the tool writes about twenty."""

_COMMENT = re.compile(rb"[ \t]*(?:#+|//+|--|;+|%+|/?\*+|<!--)?[ \t]*")
_FIELD = re.compile(rb"([A-Za-z_][A-Za-z0-9_.-]*):(.*)")


@dataclass(frozen=True, slots=True)
class ForeignBlock:
    """One block: where its first mark stands, and the `key: value` lines that it declares, in their order."""

    offset: int
    fields: Mapping[str, str]


def foreign_blocks(content: bytes) -> Iterator[ForeignBlock]:
    """Every complete block whose marks stand on comment lines of their own, wherever it stands."""
    close = content.find(_CLOSING_MARK)
    at = 0
    while close >= 0:
        mark = content.rfind(MARK, max(at, close - FOREIGN_MAX), close)
        at = close + len(_CLOSING_MARK)
        if mark >= 0 and _opens_line(content, mark):
            yield ForeignBlock(mark, _declared(content[mark + len(MARK) : close]))
        close = content.find(_CLOSING_MARK, at)


def _opens_line(content: bytes, mark: int) -> bool:
    floor = max(0, mark - _INDENT_MAX)
    newline = content.rfind(b"\n", floor, mark)
    return (newline >= 0 or floor == 0) and _COMMENT.fullmatch(content, newline + 1, mark) is not None


def _declared(lines: bytes) -> Mapping[str, str]:
    fields: dict[str, str] = {}
    for line in lines.split(b"\n"):
        comment = _COMMENT.match(line)
        found = _FIELD.fullmatch(line, comment.end() if comment else 0)
        value = found[2].strip().removesuffix(b"-->").removesuffix(b"*/").strip() if found else b""
        if found and value and len(fields) < _FIELDS_MAX:
            fields.setdefault(found[1].decode(), value.decode(errors="replace"))
    return fields
