"""One byte of a content changed, so that a validation has something to catch. Pure."""

from __future__ import annotations

from dataclasses import dataclass

STAMP_MARK = b"ONEX STAMP"
"""What the lines that open and close an embedded stamp hold: a byte that is changed must not stand in them."""
CASE_BIT = 0x20
"""Turns an ASCII letter into the same one of the other case."""


@dataclass(frozen=True, slots=True)
class Tampering:
    """A content with one byte changed."""

    content: bytes
    offset: int
    before: str
    after: str


def change_letter(original: bytes, stamped: bytes) -> Tampering | None:
    """`stamped` with the last letter of its content in the other case; None where no letter of the original stands after the stamp.

    A stamp is put into the original, so what the two end with is the original's own.
    """
    begin = len(stamped) - _common_suffix(original, stamped)
    mark = stamped.rfind(STAMP_MARK, begin)
    if mark >= 0:
        begin = (stamped.find(b"\n", mark) + 1) or len(stamped)
    letters = (
        at for at in range(len(stamped) - 1, begin - 1, -1) if chr(stamped[at]).isascii() and chr(stamped[at]).isalpha()
    )
    at = next(letters, None)
    return None if at is None else _change(stamped, at, CASE_BIT)


def _common_suffix(one: bytes, other: bytes) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((length for length, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def change_last(content: bytes) -> Tampering:
    """`content`, which is not empty, with its last byte changed."""
    return _change(content, len(content) - 1, 1)


def _change(content: bytes, at: int, bits: int) -> Tampering:
    changed = bytearray(content)
    changed[at] ^= bits
    return Tampering(bytes(changed), at, ascii(chr(content[at])), ascii(chr(changed[at])))
