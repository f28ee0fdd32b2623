"""What must stay before a stamp: for each kind of file, where its opening ends that may not be pushed down.

Pure scans of bytes. Which kind a file is, `syntax` says; where the block then goes and with which newline, `place`.
A lead looks only at what stands before the offset that it returns and at what follows it immediately, so that a block put
there does not move it.
"""

import re
from collections.abc import Callable
from typing import TypeAlias

Lead: TypeAlias = Callable[[bytes, int], int | None]
"""(content, where it begins after a byte order mark) -> where a stamp may stand; None where none may stand in this content."""

BOM = b"\xef\xbb\xbf"

LEAD_MAX = 65_536
"""Bytes that are looked through for an opening: real ones are a few lines, and a hostile one must not cost more than this."""

_XML_DECLARATION_MAX = 1_024
"""Bytes in which an XML declaration must close; its three attributes need a tenth of that."""

_INTERPRETER = re.compile(rb"#!")
_SLASH_INTERPRETER = re.compile(rb"#!|///?(?:usr/)?bin/")
_SHELL_FIRST_LINE = re.compile(rb"#!|#compdef|#autoload")
_PARSER_DIRECTIVE = re.compile(rb"#[ \t]*[A-Za-z][A-Za-z0-9]*[ \t]*=")
_YAML_FIRST_LINES = re.compile(rb"%|#cloud-|##[ \t]*template:")
_SWIFT_TOOLS = re.compile(rb"//[ \t]*swift-tools-version", re.IGNORECASE)
_TEX_FORMAT = re.compile(rb"%&")

_CODING = re.compile(rb"[ \t\f]*+#[^\n]*?coding[:=][ \t]*([-_.a-zA-Z0-9]+)")
_COMMENT_OR_BLANK = re.compile(rb"[ \t\f]*+(?:#|\r?\n|\Z)")
_UTF_7 = frozenset({b"utf-7", b"utf7", b"u7", b"unicode-1-1-utf-7"})

_RUST_ATTRIBUTE = re.compile(rb"#![ \t\r\n\f\v]*+\[")
_RUST_INTERPRETER = re.compile(rb"#![ \t]*/(?![/*])")

_CHARSET = re.compile(rb'@charset "[^"\r\n]{0,64}";')
_FENCE = re.compile(rb"(---|\+\+\+)[ \t]*\r?\n")
_CLOSING_FENCE = {
    b"---": re.compile(rb"^(?:---|\.\.\.)[ \t]*\r?$", re.MULTILINE),
    b"+++": re.compile(rb"^\+\+\+[ \t]*\r?$", re.MULTILINE),
}
_OTHER_METADATA = re.compile(rb"%[ \t]|\{[ \t]*\r?\n")

_XML_DECLARATION = re.compile(rb"<\?xml[ \t\r\n]")
_MARKUP_IN_SCRIPT = re.compile(rb"[ \t\r\n]*+<(?:\?xml|!doctype)", re.IGNORECASE)
_DOCTYPE = re.compile(rb"<!doctype[ \t\r\n]", re.IGNORECASE)
_MARKUP = re.compile(rb"[ \t\r\n]*+(?:<|\Z)")
_SPACE = re.compile(rb"[ \t\r\n]*+")
_REST_OF_LINE = re.compile(rb"[ \t]*\r?\n")
_DOCTYPE_TOKEN = re.compile(rb"[\"'\[\]>]|<!--|<\?")
_DOCTYPE_CLOSER = {b'"': b'"', b"'": b"'", b"<!--": b"-->", b"<?": b"?>"}


def line_end(content: bytes, at: int) -> int:
    """The offset after the line that holds `at`, its newline included."""
    newline = content.find(b"\n", at)
    return len(content) if newline < 0 else newline + 1


def _lines(content: bytes, at: int | None, opening: re.Pattern[bytes]) -> int | None:
    """The end of the run of lines at `at` that open so; None where the run is longer than any real one."""
    while at is not None and opening.match(content, at):
        end = line_end(content, at)
        at = None if end > LEAD_MAX else end
    return at


def shebang(content: bytes, at: int) -> int | None:
    """After the `#!` lines: nix-shell has several of them."""
    return _lines(content, at, _INTERPRETER)


def slash_shebang(content: bytes, at: int) -> int | None:
    """As `shebang`; and the `//usr/bin/env` line by which a Go, Java or C file runs itself."""
    return _lines(content, at, _SLASH_INTERPRETER)


def shell(content: bytes, at: int) -> int | None:
    """As `shebang`; and zsh's `#compdef`, which counts on the first line only."""
    return _lines(content, at, _SHELL_FIRST_LINE)


def coding(content: bytes, at: int) -> int | None:
    """After the shebang and a coding line on line 1 or 2 (PEP 263; Ruby's rule is narrower and falls inside it).

    None for UTF-7, in which the `+` of a time zone would begin an encoded run.
    """
    place = shebang(content, at)
    second = line_end(content, at)
    found = _CODING.match(content, at)
    if found is None and _COMMENT_OR_BLANK.match(content, at):
        found = _CODING.match(content, second)
    if place is None or found is None:
        return place
    if found[1].lower().replace(b"_", b"-") in _UTF_7:
        return None
    return max(place, line_end(content, found.end()))


def parser_directives(content: bytes, at: int) -> int | None:
    """After a Dockerfile's `# syntax=` and `# escape=`, which any comment before them would turn off."""
    return _lines(content, shebang(content, at), _PARSER_DIRECTIVE)


def yaml(content: bytes, at: int) -> int | None:
    """After `%YAML` and `%TAG`, and the `#cloud-config` that must be the first line; None for an Ansible vault."""
    if content.startswith(b"$ANSIBLE_VAULT", at):
        return None
    return _lines(content, shebang(content, at), _YAML_FIRST_LINES)


def swift(content: bytes, at: int) -> int | None:
    """After the line by which a Package.swift names its tools' version."""
    return _lines(content, slash_shebang(content, at), _SWIFT_TOOLS)


def tex(content: bytes, at: int) -> int | None:
    """After the `%&format` line."""
    return _lines(content, at, _TEX_FORMAT)


def script(content: bytes, at: int) -> int | None:
    """After the shebang; None where a `.ts` is Qt's XML and no TypeScript."""
    return None if _MARKUP_IN_SCRIPT.match(content, at) else slash_shebang(content, at)


def scala(content: bytes, at: int) -> int | None:
    """The first line; None for a script, whose shebang may run on for lines, to a `!#`."""
    return None if content.startswith(b"#!", at) else at


def rust(content: bytes, at: int) -> int | None:
    """After a shebang, which `#![attribute]` is not; None where only rustc's own lexer could tell them apart."""
    if content.startswith(b"#!", at) and not _RUST_ATTRIBUTE.match(content, at):
        if not _RUST_INTERPRETER.match(content, at):
            return None
        at = line_end(content, at)
    return None if content.startswith(b"---", at) else at


def stylesheet(content: bytes, at: int) -> int | None:
    """After front matter and `@charset`, which must be a stylesheet's first bytes."""
    at = _front_matter(content, at)
    found = _CHARSET.match(content, at)
    return at if found is None else _line_rest(content, found.end())


def markdown(content: bytes, at: int) -> int | None:
    """After `---` or `+++` front matter; None before metadata in another form (JSON, Pandoc's title block)."""
    if _OTHER_METADATA.match(content, at):
        return None
    place = shebang(content, at)
    return None if place is None else _front_matter(content, place)


def html(content: bytes, at: int) -> int | None:
    """After front matter, an XML declaration and the doctype; None where the declaration does not close."""
    return _markup(content, _front_matter(content, at), xml=False)


def xml(content: bytes, at: int) -> int | None:
    """After the XML declaration and the doctype; None where the content is no markup, or the declaration does not close."""
    return _markup(content, at, xml=True) if _MARKUP.match(content, at) else None


def _front_matter(content: bytes, at: int) -> int:
    opened = _FENCE.match(content, at)
    closed = _CLOSING_FENCE[opened[1]].search(content, opened.end()) if opened else None
    return at if closed is None else line_end(content, closed.start())


def _line_rest(content: bytes, at: int) -> int:
    blank = _REST_OF_LINE.match(content, at)
    return at if blank is None else blank.end()


def _markup(content: bytes, at: int, *, xml: bool) -> int | None:
    if _XML_DECLARATION.match(content, at):
        close = content.find(b"?>", at, at + _XML_DECLARATION_MAX)
        if close < 0:
            return None
        at = _line_rest(content, close + 2)
    # Before a doctype that is not found a stamp is legal too, so every doubt ends here.
    start = _doctype(content, at, xml=xml)
    end = None if start is None else _doctype_end(content, start) if xml else content.find(b">", start, LEAD_MAX) + 1
    return _line_rest(content, end) if end else at


def _doctype(content: bytes, at: int, *, xml: bool) -> int | None:
    """Where the doctype begins, behind white space, comments and (in XML) processing instructions."""
    while True:
        space = _SPACE.match(content, at)
        at = at if space is None else space.end()
        if content.startswith(b"<!--", at):
            end = content.find(b"-->", at + 4, LEAD_MAX)
        elif xml and content.startswith(b"<?", at):
            end = content.find(b"?>", at + 2, LEAD_MAX)
        else:
            return at if _DOCTYPE.match(content, at) else None
        if end < 0:
            return None
        at = content.index(b">", end) + 1


def _doctype_end(content: bytes, at: int) -> int | None:
    """After the doctype's `>`: quotes, comments and the internal subset between brackets may hold others."""
    depth = 0
    while token := _DOCTYPE_TOKEN.search(content, at, LEAD_MAX):
        at = token.end()
        if closer := _DOCTYPE_CLOSER.get(token[0]):
            close = content.find(closer, at, LEAD_MAX)
            if close < 0:
                return None
            at = close + len(closer)
        elif token[0] == b">":
            if depth == 0:
                return at
        else:
            depth += 1 if token[0] == b"[" else -1
    return None
