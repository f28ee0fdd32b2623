"""Hostile content costs no more than its length: at this size, work that grew with its square would take hours."""

import pytest

from services.stamping.embedding import read, write
from tests.stamping.embedding_sample import FIELDS, LIGHTWEIGHT, RICH, stamped

SIZE = 10 * 2**20
BLOCK = stamped(b"", "a.py")

HOSTILE = {
    "BEGIN": b"# ---BEGIN ONEX STAMP---\n",
    "END": b"# ---END ONEX STAMP---\n",
    "pairs": b"---BEGIN ONEX STAMP--- ---END ONEX STAMP---",
    "html BEGIN": b"<!-- ---BEGIN ONEX STAMP---\n",
    "xml BEGIN": b"<?onex-stamp ---BEGIN ONEX STAMP---\n",
    "blocks": BLOCK,
    "blocks between earlier stamps": BLOCK + LIGHTWEIGHT,
    "lightweight": LIGHTWEIGHT,
    "lightweight in one line": b"# ONEX:uid=,hash=",
    "rich": RICH,
    "rich starts": b"<!-- ONEX_METADATA_START -->\n",
    "comments": b"<!-- ONEX -->",
    "unclosed comments": b"<!-- ONEX",
    "doctypes": b"<!DOCTYPE a [<!-- ONEX ' \"",
    "fences": b"---\n ONEX",
    "directives": b"%\n",
    "spaces": b" " * 64,
    "coding": b"#coding: ",
    "foreign": b"# === OmniNode:Metadata ===\n# === /OmniNode:Metadata ===\n",
    "foreign in one line": b"=== OmniNode:Metadata === === /OmniNode:Metadata ===",
}


CASES = [
    *((key, name) for key in HOSTILE for name in ("a.py", "a.html")),
    *((key, "a.xml") for key in ("xml BEGIN", "comments", "doctypes", "spaces")),
    *((key, "a.yaml") for key in ("directives", "spaces")),
]


@pytest.mark.parametrize(("key", "name"), CASES)
def test_ten_mebibytes_of_markers_are_read(key: str, name: str) -> None:
    piece = HOSTILE[key]
    content = piece * (SIZE // len(piece)) + b"\n# ---BEGIN ONEX STAMP---\n"
    reading = read(content, name)
    assert all(len(findings) <= 100 for findings in (reading.stamps, reading.quoted, reading.foreign))
    write(reading.body, name, FIELDS)
