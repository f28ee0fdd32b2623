"""The media type of a content: by its first bytes, then by its name, then by whether it is text.

puremagic decides over magic bytes, after an index over its table has said that any signature matches at all: asking it costs
300 us, whatever the content. Names are looked up in a table of our own, and never in the machine's mime files, so that the
same content and name give the same type on every machine.
"""

import codecs
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import puremagic

# `magic_header_array` is named in puremagic's `__all__`, but a new release may change its form; a test pins the two that we use.
from puremagic.main import PureMagic, PureMagicWithConfidence, magic_header_array

HEAD_BYTES = 40_960
"""First bytes of a content that count. A caller who has only some of a content must have these: puremagic's last signature (an
ISO 9660 image's) ends at 36,870."""

_TEXT_BYTES = 8_192
"""First bytes that must be text for the whole to count as text; git looks at 8,000."""

_STRONG = 4
"""Bytes of a signature that count without more: a shorter one is met by chance, once in 700 random contents."""
_FAIR = 3
"""Bytes that suffice at the very beginning of a content that is no text, as JPEG's and gzip's do."""

_PLAIN = bytes(byte for byte in range(256) if (byte >= 0x20 and byte != 0x7F) or byte in b"\t\n\r\f\x1b")

_UNMISTAKABLE = frozenset({"application/pdf", "application/postscript", "application/rtf", "image/gif"})
"""What a content that reads as text can be, whatever its name says."""

_TEXTUAL = _UNMISTAKABLE | {
    "application/pgp-encrypted",
    "application/pgp-keys",
    "application/pgp-signature",
    "application/xml",
    "image/svg+xml",
    "text/calendar",
    "text/html",
    "text/vcard",
    "text/x-python",
}
"""What it can be where its name says nothing. Not in here are the many signatures that are words with which prose begins."""

_ZIP = b"PK\x03\x04"

_OCTETS = "application/octet-stream"
_TEXT = "text/plain"

_SUFFIXES: Mapping[str, str] = {
    "application/gzip": "gz tgz",
    "application/graphql": "graphql gql",
    "application/java-archive": "jar",
    "application/json": "json ipynb map har avsc webmanifest",
    "application/jsonl": "jsonl ndjson",
    "application/msword": "doc",
    "application/pdf": "pdf",
    "application/postscript": "ps eps",
    "application/rtf": "rtf",
    "application/sql": "sql",
    "application/toml": "toml",
    "application/vnd.apache.parquet": "parquet",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/wasm": "wasm",
    "application/x-7z-compressed": "7z",
    "application/x-bytecode.python": "pyc",
    "application/x-sqlite3": "sqlite sqlite3 db3",
    "application/x-tar": "tar",
    "application/xhtml+xml": "xhtml",
    "application/xml": "xml xsd xsl xslt wsdl xlf plist csproj fsproj vbproj props targets rss atom",
    "application/yaml": "yaml yml",
    "application/zip": "zip whl",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg oga",
    "audio/wav": "wav",
    "font/otf": "otf",
    "font/ttf": "ttf",
    "font/woff": "woff",
    "font/woff2": "woff2",
    "image/avif": "avif",
    "image/bmp": "bmp",
    "image/gif": "gif",
    "image/jpeg": "jpg jpeg",
    "image/png": "png",
    "image/svg+xml": "svg",
    "image/tiff": "tif tiff",
    "image/vnd.microsoft.icon": "ico",
    "image/webp": "webp",
    "text/css": "css",
    "text/csv": "csv",
    "text/html": "html htm",
    "text/javascript": "js mjs cjs jsx",
    "text/markdown": "md markdown rmd qmd mdx",
    "text/plain": "txt text log ini cfg conf properties env",
    "text/tab-separated-values": "tsv",
    "text/x-c": "c h",
    "text/x-c++": "cc cpp cxx hh hpp hxx inl ipp cu cuh",
    "text/x-clojure": "clj cljs cljc edn",
    "text/x-cmake": "cmake",
    "text/x-csharp": "cs",
    "text/x-dart": "dart",
    "text/x-diff": "diff patch",
    "text/x-dockerfile": "dockerfile containerfile",
    "text/x-elixir": "ex exs",
    "text/x-go": "go",
    "text/x-groovy": "groovy gradle",
    "text/x-haskell": "hs",
    "text/x-hcl": "tf tfvars hcl",
    "text/x-java": "java",
    "text/x-julia": "jl",
    "text/x-kotlin": "kt kts",
    "text/x-less": "less",
    "text/x-lua": "lua",
    "text/x-makefile": "mk mak",
    "text/x-perl": "pl pm",
    "text/x-php": "php",
    "text/x-powershell": "ps1 psm1 psd1",
    "text/x-proto": "proto",
    "text/x-python": "py pyi pyw pyx pxd bzl",
    "text/x-r": "r",
    "text/x-rst": "rst",
    "text/x-ruby": "rb rake gemspec",
    "text/x-rust": "rs",
    "text/x-scala": "scala sbt",
    "text/x-scss": "scss sass",
    "text/x-shellscript": "sh bash zsh ksh fish",
    "text/x-swift": "swift",
    "text/x-tex": "tex sty",
    "text/x-typescript": "ts mts cts tsx",
    "text/vtt": "vtt",
    "text/x-vue": "vue",
    "video/mp4": "mp4 m4v",
    "video/webm": "webm",
}
_BY_SUFFIX: Mapping[str, str] = {suffix: media for media, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
_BY_NAME: Mapping[str, str] = {
    "makefile": "text/x-makefile",
    "gnumakefile": "text/x-makefile",
    "cmakelists.txt": "text/x-cmake",
    "dockerfile": "text/x-dockerfile",
    "containerfile": "text/x-dockerfile",
    "gemfile": "text/x-ruby",
    "rakefile": "text/x-ruby",
}

_FirstTwo: TypeAlias = Mapping[bytes, tuple[bytes, ...]]
"""The first two bytes of a content -> the signatures at its very beginning that begin so."""


def _by_first_two(rows: Iterable[PureMagic]) -> _FirstTwo:
    index: dict[bytes, tuple[bytes, ...]] = {}
    for row in rows:
        index[row.byte_match[:2]] = (*index.get(row.byte_match[:2], ()), row.byte_match)
    return index


def _further_in(rows: Iterable[PureMagic]) -> re.Pattern[bytes]:
    """One pattern of all signatures further in: a look-up for each of their 38 offsets costs four times as much."""
    by_offset: dict[int, list[bytes]] = defaultdict(list)
    for row in rows:
        by_offset[row.offset].append(re.escape(row.byte_match))
    return re.compile(
        b"|".join(b".{%d}(?:%b)" % (offset, b"|".join(found)) for offset, found in sorted(by_offset.items())), re.DOTALL
    )


def _is_strong_at_start(row: PureMagic | PureMagicWithConfidence) -> bool:
    """Whether a text that begins so is meant so: no word, such as `import `, with which others begin too."""
    return row.offset == 0 and len(row.byte_match) >= _STRONG and not row.byte_match.rstrip().isalpha()


_TYPED = [row for row in magic_header_array if row.mime_type and len(row.byte_match) >= 2]
_AT_START = _by_first_two(row for row in _TYPED if row.offset == 0)
_FURTHER_IN = _further_in(row for row in _TYPED if row.offset > 0)
_OF_TEXT = {
    media: _by_first_two(row for row in _TYPED if _is_strong_at_start(row) and row.mime_type in media)
    for media in (_UNMISTAKABLE, _TEXTUAL)
}
_POSITION = {tuple(row): position for position, row in reversed(list(enumerate(magic_header_array)))}


def content_type(content_head: bytes, file_path: str) -> str:
    """The media type, `type/subtype` in lower case and at most 127 characters, of a content and its name.

    `content_head` is the content, or at least its first HEAD_BYTES. A content that is text takes its type from its name unless it
    is unmistakably another, such as a PDF; any other content is what its magic bytes say, else what its name says.
    """
    named = _named(file_path)
    if _is_text(content_head):
        return _of_text(content_head, file_path, named) or named or _TEXT
    return _of_binary(content_head[:HEAD_BYTES], file_path) or named or _OCTETS


def _named(file_path: str) -> str | None:
    name = file_path.rpartition("/")[2].lower()
    if name in _BY_NAME:
        return _BY_NAME[name]
    stem, dot, suffix = name.rpartition(".")
    return (_BY_SUFFIX.get(suffix) if dot else None) or ("text/x-dockerfile" if stem == "dockerfile" else None)


def _is_text(head: bytes) -> bool:
    start = head[:_TEXT_BYTES]
    if start.translate(None, _PLAIN):
        return False
    try:
        # Where the head goes on, its last character may be cut.
        codecs.utf_8_decode(start, "strict", len(head) <= _TEXT_BYTES)
    except UnicodeDecodeError:
        return False
    return True


def _of_text(head: bytes, file_path: str, named: str | None) -> str | None:
    allowed = _UNMISTAKABLE if named else _TEXTUAL
    if not head.startswith(_OF_TEXT[allowed].get(head[:2], ())):
        return None
    return _best(row for row in _matches(head, file_path) if _is_strong_at_start(row) and row.mime_type in allowed)


def _of_binary(head: bytes, file_path: str) -> str | None:
    if not _bears_signature(head):
        return None
    rows = [row for row in _matches(head, file_path) if row.mime_type and row.offset >= 0]
    suffix = "." + file_path.lower().rpartition(".")[2]
    of_suffix = [row for row in rows if row.extension == suffix and len(row.byte_match) >= 2]
    if not of_suffix and head.startswith(_ZIP):
        return "application/zip"
    return _best(of_suffix or [row for row in rows if len(row.byte_match) >= (_FAIR if row.offset == 0 else _STRONG)])


def _bears_signature(head: bytes) -> bool:
    return head.startswith(_AT_START.get(head[:2], ())) or _FURTHER_IN.match(head) is not None


def _matches(head: bytes, file_path: str) -> list[PureMagicWithConfidence]:
    try:
        return puremagic.magic_string(head[:HEAD_BYTES], file_path)
    except puremagic.PureError:
        return []


def _best(rows: Iterable[PureMagicWithConfidence]) -> str | None:
    """The type of the longest signature; of equal ones the first in puremagic's table, whose own answer then depends on a set."""
    found = min(
        rows,
        key=lambda row: (-len(row.byte_match), _POSITION.get(row[:5], len(_POSITION)), row.mime_type),
        default=None,
    )
    return None if found is None else found.mime_type.strip().lower()
