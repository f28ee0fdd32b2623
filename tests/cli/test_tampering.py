"""The one byte that the demo changes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cli.tampering import change_last, change_letter
from tests.cli.fake import MARK

_LINE = b"# ---END ONEX STAMP---\n"


@pytest.mark.parametrize(
    ("original", "stamped", "changed"),
    [
        pytest.param(b"ab\n", MARK + b"\nab\n", MARK + b"\naB\n", id="the last letter"),
        pytest.param(b"a1 +\n", MARK + b"\na1 +\n", MARK + b"\nA1 +\n", id="not the last byte"),
        pytest.param(b"", MARK, None, id="empty"),
        pytest.param(b"12\n", MARK + b"\n12\n", None, id="no letter"),
        pytest.param(b"#!sh", b"#!sh\n" + _LINE, None, id="a stamp at the end"),
        pytest.param(_LINE + b"ab\n", _LINE + b"ab\n", _LINE + b"aB\n", id="stamped before"),
        pytest.param(_LINE, _LINE, None, id="nothing but a stamp"),
    ],
)
def test_the_changed_letter_is_one_of_the_content(original: bytes, stamped: bytes, changed: bytes | None) -> None:
    change = change_letter(original, stamped)

    assert (change and change.content) == changed


@settings(max_examples=100)
@given(head=st.binary(max_size=8), tail=st.binary(max_size=8), block=st.binary(min_size=1, max_size=8))
def test_a_change_is_of_one_byte_of_what_the_two_contents_share(head: bytes, tail: bytes, block: bytes) -> None:
    stamped = head + block + tail

    change = change_letter(head + tail, stamped)

    if change is None:
        assert not any(chr(byte).isascii() and chr(byte).isalpha() for byte in tail)
        return
    differing = [at for at, (a, b) in enumerate(zip(stamped, change.content, strict=True)) if a != b]
    assert differing == [change.offset]
    # From the end, it is where the original has the same byte.
    assert (head + tail)[change.offset - len(stamped)] == stamped[change.offset]


@given(content=st.binary(min_size=1, max_size=8))
def test_a_changed_last_byte_is_another_one(content: bytes) -> None:
    change = change_last(content)

    assert change.content[:-1] == content[:-1]
    assert change.content != content
    assert len(change.content) == len(content)
