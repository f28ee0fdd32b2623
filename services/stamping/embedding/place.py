"""Where a stamp's block goes in a file, and with which newline. What the block says is `block`'s."""

import re
from dataclasses import dataclass

from services.stamping.embedding.lead import BOM, line_end
from services.stamping.embedding.syntax import Syntax

LF = b"\n"
CRLF = b"\r\n"

# Some readers end a line at these and others do not, so a place that is counted in lines would be another one for each.
_LONE_CR = re.compile(rb"\r(?!\n)")
_UNICODE_NEWLINE = re.compile(rb"\xc2\x85|\xe2\x80[\xa8\xa9]")

# A template that trims the white space before it would draw its own output into the block's last line.
_TRIMMING_TEMPLATE = re.compile(rb"[ \t\r\n]*+\{[{%#]-")


@dataclass(frozen=True, slots=True)
class Place:
    """An insertion point: what is written there is `before`, the block, `after`."""

    offset: int
    eol: bytes
    """Of the line before the block, else the file's first, else LF."""
    before: bytes
    after: bytes


def find_place(content: bytes, syntax: Syntax) -> Place | None:
    """The place of a block in content that has none; None where it must be detached.

    On content that has one, `offset` is where it stands.
    """
    if b"\0" in content:
        return None
    start = len(BOM) if content.startswith(BOM) else 0
    offset = syntax.lead(content, start)
    if offset is None or _doubtful(content, offset, syntax):
        return None
    eol = _eol(content, start, offset)
    if _follows_open_line(content, start, offset, syntax):
        return Place(offset, eol, before=eol, after=b"")
    return Place(offset, eol, before=b"", after=eol * 2 if syntax.blank_line else eol)


def _doubtful(content: bytes, offset: int, syntax: Syntax) -> bool:
    if _LONE_CR.search(content, 0, line_end(content, offset)) or _UNICODE_NEWLINE.search(content, 0, offset):
        return True
    # A comment that ends in a backslash runs on to the next line in C and in make.
    if not syntax.closer and content[max(0, offset - 3) : offset].rstrip(CRLF).endswith(b"\\"):
        return True
    return _TRIMMING_TEMPLATE.match(content, offset) is not None


def _eol(content: bytes, start: int, offset: int) -> bytes:
    newline = offset - 1 if offset > start and content.startswith(LF, offset - 1) else content.find(LF)
    return CRLF if newline > 0 and content.startswith(CRLF, newline - 1) else LF


def _follows_open_line(content: bytes, start: int, offset: int, syntax: Syntax) -> bool:
    """Whether the file ends here in a line without newline that the block may not share."""
    if offset != len(content) or offset == start or content.endswith(LF):
        return False
    return not (syntax.inline and content.endswith((b">", b";")))
