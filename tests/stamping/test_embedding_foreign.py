"""Blocks of another tool are reported as foreign, wherever they stand, and stay content."""

import pytest

from services.stamping.embedding import read, strip

BLOCK = b"""# === OmniNode:Metadata ===
# metadata_version: 0.1.0
# name: a.py
# hash: 5d41402abc4b2a76
# entrypoint: python@a.py
# empty:
# tools: {}
# === /OmniNode:Metadata ===
"""
FIELDS = {
    "metadata_version": "0.1.0",
    "name": "a.py",
    "hash": "5d41402abc4b2a76",
    "entrypoint": "python@a.py",
    "tools": "{}",
}


@pytest.mark.parametrize(
    "block",
    [
        BLOCK,
        BLOCK.replace(b"\n", b"\r\n"),
        BLOCK.replace(b"# ", b"// "),
        BLOCK.replace(b"# ", b"    # "),
        BLOCK.replace(b"# =", b"<!-- =").replace(b"=\n", b"= -->\n").replace(b"# ", b""),
    ],
    ids=["hash", "crlf", "slashes", "indented", "markdown"],
)
def test_a_foreign_block_is_reported_with_what_it_declares(block: bytes) -> None:
    reading = read(b"#!/x\n" + block + b"pass\n", "a.py")
    assert [(found.line, found.fields) for found in reading.foreign] == [(2, FIELDS)]
    assert (reading.stamps, reading.quoted) == ((), ())
    assert reading.body == strip(b"#!/x\n" + block + b"pass\n", "a.py") == b"#!/x\n" + block + b"pass\n"


@pytest.mark.parametrize(
    "content",
    [
        b"x = " + BLOCK,
        BLOCK.replace(b"# === /OmniNode", b"# === OmniNode"),
        BLOCK.replace(b"=== OmniNode", b"=== OmniNode:Tool"),
        BLOCK.replace(b"5d41", b"5d41" * 5_000),
        b" " * 100 + BLOCK,
    ],
    ids=["in code", "not closed", "another block", "too long", "indented beyond reason"],
)
def test_what_is_no_whole_foreign_block_is_not_reported(content: bytes) -> None:
    assert read(content, "a.py").foreign == ()


def test_foreign_blocks_beyond_the_bound_are_cut_and_said_to_be() -> None:
    reading = read(BLOCK * 101, "a.py")
    assert (len(reading.foreign), reading.truncated) == (100, True)
    assert read(BLOCK * 100, "a.py").truncated is False
