"""Samples for the tests of the embedded stamp: a block's fields, a file name for each syntax, the earlier bridge's stamps."""

from blake3 import blake3

from services.stamping.embedding import strip, write

FIELDS = {
    "content_type": "text/plain",
    "created_at": "2025-03-04T05:06:07.890123Z",
    "digest": "ab" * 32,
    "metadata_version": "0.1",
    "namespace": "omninode.services.metadata",
    "op_id": "6f1c2a4e-58a3-5c0f-9b1e-0d5a7c3e2b10",
    "protocol_version": "1.0",
    "size_bytes": "1024",
    "stamp_id": "0b9d6a52-7f3e-4c18-8a64-2e1f5d7c9b03",
    "version": "1",
}
OTHER_FIELDS = {
    **FIELDS,
    "namespace": "--..--",
    "digest": "cd" * 32,
    "version": "12",
    "created_at": "2025-03-04T05:06:07+02:00",
}

NAMES = [
    "a.py",
    "a.rb",
    "a.sh",
    "a.yaml",
    "a.toml",
    "Dockerfile",
    "a.ini",
    "a.sql",
    "a.tex",
    "a.c",
    "a.js",
    "a.ts",
    "a.go",
    "a.rs",
    "a.swift",
    "a.scala",
    "a.scss",
    "a.css",
    "a.html",
    "a.md",
    "a.xml",
    "a.svg",
    "Makefile",
    "script",
    "a.json",
    "a.unknown",
    ".gitignore",
    "a.proto",
    "A.java",
    "a.lua",
]
"""A name for each syntax, and names whose content is stamped detached or by its shebang."""

LIGHTWEIGHT = b"# ONEX:uid=7c1e,hash=" + b"0f" * 32 + b",ts=2025-01-02T03:04:05Z\n"
RICH = (
    b"\n\n<!-- ONEX_METADATA_START -->\n<!-- ONEX Metadata Stamp\n  uid: 7c1e\n  hash: " + b"0f" * 32 + b"\n"
    b"  timestamp: 2025-01-02T03:04:05Z\n  protocol_version: 1.0\n  file_path: src/a.py\n  integrity:\n    algorithm: BLAKE3\n"
    b"    verified: true\n-->\n<!-- ONEX_METADATA_END -->"
)


def stamp(content: bytes, file_path: str, fields: dict[str, str] = FIELDS) -> bytes | None:
    """What the node makes of a file: a fresh stamp in place of those that it bears."""
    return write(strip(content, file_path), file_path, fields)


def stamped(content: bytes, file_path: str, fields: dict[str, str] = FIELDS) -> bytes:
    """As `stamp`, of content that is not to be detached."""
    result = stamp(content, file_path, fields)
    assert result is not None, f"{file_path} was stamped detached"
    return result


def digest_of(text: str) -> str:
    """BLAKE3 of the text's UTF-8, in hex."""
    return blake3(text.encode()).hexdigest()
