"""The two forms that the earlier bridge wrote, and the digest by which it wrote them.

Lightweight: one line at the very top, `# ONEX:uid=<id>,hash=<hex>,ts=<time>`, then `,author=..` and `,v=..` where given, closed
by one LF. Rich: at the very end, from `<!-- ONEX_METADATA_START -->` to `<!-- ONEX_METADATA_END -->`; it owns the blank line before
it and one LF after it. Both stand in any kind of file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from blake3 import blake3

LIGHTWEIGHT = b"# ONEX:uid="
RICH_START = b"<!-- ONEX_METADATA_START -->"
RICH_END = b"<!-- ONEX_METADATA_END -->"

LIGHTWEIGHT_MAX = 1_024
"""Bytes of a lightweight line; the longest seen are under 200."""
RICH_MAX = 16_384
"""Bytes of a rich stamp; it holds a path, which may be 4,096 bytes long, and a dozen short values."""

_LIGHTWEIGHT = re.compile(
    rb"# ONEX:uid=(?P<uid>[^,\s]+),hash=(?P<hash>[0-9a-f]{64}),ts=(?P<ts>[^,\s]+)"
    rb"(?:,author=(?P<author>[^\r\n]+?))?(?:,v=(?P<v>[^,\s]+))?\n"
)
_RICH = re.compile(
    rb"<!-- ONEX_METADATA_START -->\s*<!-- ONEX Metadata Stamp[ \t]*\n(?P<lines>.*?)\n?-->\s*<!-- ONEX_METADATA_END -->",
    re.DOTALL,
)
_RICH_LINE = re.compile(r"(?P<indent>[ \t]*)(?P<key>[A-Za-z_][A-Za-z0-9_]*):(?P<value>.*)")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BLANK_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True, slots=True)
class EarlierStamp:
    """One stamp of an earlier form in its place: it begins at `offset` and owns content[start:stop]."""

    fields: Mapping[str, str]
    offset: int
    start: int
    stop: int


def lightweight_at(content: bytes, at: int) -> EarlierStamp | None:
    """The lightweight stamp that begins at `at`, which is the top of what is left of the file."""
    if not content.startswith(LIGHTWEIGHT, at):
        return None
    found = _LIGHTWEIGHT.match(content, at, at + LIGHTWEIGHT_MAX)
    if found is None:
        return None
    try:
        fields = {key: value.decode() for key, value in found.groupdict().items() if value is not None}
    except UnicodeDecodeError:
        return None
    return EarlierStamp(fields, at, at, found.end())


def rich_before(content: bytes, end: int) -> EarlierStamp | None:
    """The rich stamp that ends at `end`, which is the end of what is left of the file."""
    close = end - 1 if content.endswith(b"\n", 0, end) else end
    if not content.endswith(RICH_END, 0, close):
        return None
    offset = content.rfind(RICH_START, max(0, close - RICH_MAX), close)
    if offset < 0 or not content.endswith(b"\n\n", 0, offset):
        return None
    found = _RICH.fullmatch(content, offset, close)
    fields = None if found is None or b"-->" in found["lines"] else _rich_fields(found["lines"])
    return None if fields is None else EarlierStamp(fields, offset, offset - 2, end)


def _rich_fields(lines: bytes) -> Mapping[str, str] | None:
    """The `key: value` lines, a nested one as `outer.inner`; None without uid, hash and timestamp."""
    try:
        text = lines.decode()
    except UnicodeDecodeError:
        return None
    fields: dict[str, str] = {}
    outer, outer_indent = "", 0
    for line in text.split("\n"):
        found = _RICH_LINE.fullmatch(line)
        if found is None:
            continue
        indent = len(found["indent"])
        if indent <= outer_indent:
            outer = ""
        if value := found["value"].strip():
            fields.setdefault(f"{outer}.{found['key']}" if outer else found["key"], value)
        else:
            outer, outer_indent = found["key"], indent
    declared = fields.keys() >= {"uid", "timestamp"} and _DIGEST.fullmatch(fields.get("hash", ""))
    return fields if declared else None


def normalized_digest(body: bytes) -> str | None:
    """The earlier bridge's digest of a text without its stamps: 64 hex digits; None where the body is not UTF-8 text.

    Three newlines and more count as two, and white space at both ends does not count.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return blake3(_BLANK_LINES.sub("\n\n", text).strip().encode()).hexdigest()
