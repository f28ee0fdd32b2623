"""The patterns of a .gitignore, matched byte for byte as git matches them.

A pattern is asked about one entry, never about what lies below it: whoever walks leaves an ignored folder out whole. Libraries
that answer for whole paths differ from git where a folder is taken back (`*`, `!*/`, `!*.py`), and raise on a malformed pattern,
which git passes over. A test compares this module with git itself.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

_SLASH = ord("/")
_NEVER = rb"(?!)"
_BOM = b"\xef\xbb\xbf"
_GRAPHIC = string.ascii_letters + string.digits + string.punctuation
_CLASSES = {
    "alnum": string.ascii_letters + string.digits,
    "alpha": string.ascii_letters,
    "blank": " \t",
    "cntrl": "".join(map(chr, [*range(32), 127])),
    "digit": string.digits,
    "graph": _GRAPHIC,
    "lower": string.ascii_lowercase,
    "print": _GRAPHIC + " ",
    "punct": string.punctuation,
    "space": string.whitespace,
    "upper": string.ascii_uppercase,
    "xdigit": string.hexdigits,
}
_TOKEN = re.compile(
    rb"(?P<deep>(?:\A|(?<=/))\*{2,}(?:/|(?=\\/|\Z)))"  # `**/`, and `**` at the end: any number of folders
    rb"|(?P<star>\*+)"
    rb"|(?P<any>\?)"
    # A closing bracket right after the opening one is a member.
    rb"|\[(?P<negated>[!^]?)(?P<members>(?:\[:[^]]*:\]|\\.|[^\\]){1}(?:\[:[^]]*:\]|\\.|[^]\\])*)\]"
    rb"|\\(?P<escaped>.)"
    rb"|(?P<malformed>[\[\\])"
    rb"|(?P<plain>.)",
    re.DOTALL,
)
_MEMBER = re.compile(rb"\[:(?P<named>[^]]*):\]|(?P<low>\\.|.)(?:-(?P<high>\\.|.))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Pattern:
    matcher: re.Pattern[bytes]
    by_path: bool
    """Matched with the whole path and not with its last part."""
    folders_only: bool
    ignores: bool
    """False takes back what an earlier pattern ignored."""


class Patterns:
    """The patterns of one .gitignore."""

    def __init__(self, text: bytes) -> None:
        lines = text.removeprefix(_BOM).split(b"\n")
        parsed = (_parse(line.removesuffix(b"\r")) for line in lines)
        self._last_first = [pattern for pattern in parsed if pattern][::-1]

    def verdict(self, path: bytes, *, is_folder: bool) -> bool | None:
        """Whether the entry at `path`, relative to the file's folder, is ignored; None where no pattern speaks of it."""
        name = path.rsplit(b"/", 1)[-1]
        for pattern in self._last_first:
            if is_folder >= pattern.folders_only and pattern.matcher.fullmatch(path if pattern.by_path else name):
                return pattern.ignores
        return None


def _parse(line: bytes) -> _Pattern | None:
    if line.startswith(b"#"):
        return None
    # Spaces at the end are no part of the pattern, but for an escaped one.
    line = re.sub(rb"((?:\\.|[^\\ ])?) *\Z", rb"\1", line, flags=re.DOTALL)
    ignores = not line.startswith(b"!")
    body = line.removeprefix(b"!")
    folders_only = body.endswith(b"/")
    body = body.removesuffix(b"/")
    by_path = b"/" in body
    body = body.removeprefix(b"/")
    if not body:
        return None
    # git matches what comes before the first wildcard by itself, so that `**` may follow any such text and not only a slash.
    literal = re.split(rb"[*?\[\\]", body, maxsplit=1)[0]
    return _Pattern(
        re.compile(re.escape(literal) + _expression(body[len(literal) :]), re.DOTALL), by_path, folders_only, ignores
    )


def _expression(pattern: bytes) -> bytes:
    """The regular expression of a pattern; one that is malformed matches nothing."""
    parts = []
    for token in _TOKEN.finditer(pattern):
        match token.lastgroup:
            case "deep":
                parts.append(rb"(?:.*/)?" if token["deep"].endswith(b"/") else rb".*")
            case "star":
                parts.append(rb"[^/]*")
            case "any":
                parts.append(rb"[^/]")
            case "members":
                parts.append(_set(token["members"], negated=bool(token["negated"])))
            case "escaped" | "plain":
                parts.append(re.escape(token[token.lastgroup]))
            case _:
                return _NEVER
    return b"".join(parts)


def _set(members: bytes, *, negated: bool) -> bytes:
    chosen: set[int] = set()
    for member in _MEMBER.finditer(members):
        if member["named"] is not None:
            chosen.update(_CLASSES.get(member["named"].decode("latin-1"), "").encode())
        else:
            low, high = member["low"], member["high"] or member["low"]
            chosen.update(range(low[-1], high[-1] + 1))
    # No set takes a slash.
    chosen = (set(range(256)) - chosen if negated else chosen) - {_SLASH}
    return b"[" + b"".join(b"\\x%02x" % byte for byte in sorted(chosen)) + b"]" if chosen else _NEVER
