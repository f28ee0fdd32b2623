"""The earlier bridge's two forms: what text of each is taken off, and its digest rule."""

import pytest

from services.stamping.embedding import DigestRule, Form, digest, read, strip
from tests.stamping.embedding_sample import LIGHTWEIGHT, RICH, digest_of, stamped


@pytest.mark.parametrize("name", ["a.py", "a.json", "a.unknown", "a.md"])
@pytest.mark.parametrize(
    "body", [b"", b"text", b"text\n", b"\n\ntext\n\n\n", b"#!/bin/sh\n", b"\xef\xbb\xbfa\r\n", b"\xff\n"]
)
def test_both_forms_come_off_exactly_from_any_kind_of_file(name: str, body: bytes) -> None:
    for content in (
        LIGHTWEIGHT + body,
        body + RICH,
        body + RICH + b"\n",
        LIGHTWEIGHT * 3 + body + RICH * 2,
        LIGHTWEIGHT + body + RICH,
    ):
        assert strip(content, name) == body


def test_a_lightweight_stamp_is_read() -> None:
    line = b"# ONEX:uid=u-1,hash=" + b"0f" * 32 + b",ts=2025-01-02T03:04:05+00:00,author=Doe, Jane,v=1.2\n"
    (stamp,) = read(line + b"pass\n", "a.py").stamps
    assert (stamp.form, stamp.line, stamp.rule, stamp.digest) == (Form.LIGHTWEIGHT, 1, DigestRule.NORMALIZED, "0f" * 32)
    assert stamp.fields == {
        "uid": "u-1",
        "hash": "0f" * 32,
        "ts": "2025-01-02T03:04:05+00:00",
        "author": "Doe, Jane",
        "v": "1.2",
    }


def test_a_rich_stamp_is_read_with_its_nested_block() -> None:
    (stamp,) = read(b"a\nb\n" + RICH + b"\n", "a.txt").stamps
    assert (stamp.form, stamp.line, stamp.rule, stamp.digest) == (Form.RICH, 5, DigestRule.NORMALIZED, "0f" * 32)
    assert stamp.fields == {
        "uid": "7c1e",
        "hash": "0f" * 32,
        "timestamp": "2025-01-02T03:04:05Z",
        "protocol_version": "1.0",
        "file_path": "src/a.py",
        "integrity.algorithm": "BLAKE3",
        "integrity.verified": "true",
    }


@pytest.mark.parametrize(
    "content",
    [
        LIGHTWEIGHT.removesuffix(b"\n"),
        LIGHTWEIGHT.replace(b"\n", b"\r\n"),
        b"\n" + LIGHTWEIGHT,
        b"\xef\xbb\xbf" + LIGHTWEIGHT,
        LIGHTWEIGHT.replace(b"0f", b"0F"),
        LIGHTWEIGHT.replace(b",ts=", b",at="),
        LIGHTWEIGHT.replace(b"\n", b",author=\xff\n"),
        b"a\n" + RICH.removeprefix(b"\n\n"),
        RICH.removeprefix(b"\n\n"),
        RICH + b"\n\n",
        RICH + b"a",
        RICH.replace(b"hash:", b"hush:"),
        RICH.replace(b"7c1e", b"-->"),
        RICH.replace(b"7c1e", b"\xff"),
        RICH.replace(b"7c1e", b"a" * 20_000),
    ],
)
def test_an_earlier_form_elsewhere_or_incomplete_is_content(content: bytes) -> None:
    reading = read(content, "a.txt")
    assert strip(content, "a.txt") == reading.body == content
    assert reading.stamps == ()
    assert len(reading.quoted) == int(b"ONEX:uid" not in content or b",hash=" in content)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", ""),
        (b"a\n", "a"),
        (b" \n\ta\n\n\n\nb\n\nc\n\n\n", "a\n\nb\n\nc"),
        (b"a\r\n\r\n\r\nb", "a\r\n\r\n\r\nb"),
        ("\u00a0é\u2003\n".encode(), "é"),
    ],
)
def test_the_earlier_digest_is_of_the_normalized_text(body: bytes, text: str) -> None:
    assert digest(body, DigestRule.NORMALIZED) == digest_of(text)


def test_the_earlier_digest_of_what_is_no_text_is_none() -> None:
    assert digest(b"\xff", DigestRule.NORMALIZED) is None
    assert digest(b"\xff", DigestRule.RAW) is not None


def test_a_new_stamp_replaces_both_earlier_ones() -> None:
    body = b"#!/usr/bin/env python3\nprint()\n"
    assert stamped(LIGHTWEIGHT + body + RICH, "a.py") == stamped(body, "a.py")


def test_a_script_without_suffix_is_known_by_the_shebang_under_its_earlier_stamp() -> None:
    assert stamped(LIGHTWEIGHT + b"#!/bin/sh\nls\n", "run") == stamped(b"#!/bin/sh\nls\n", "run")


def test_the_lines_of_all_forms_are_those_of_the_file_as_it_is() -> None:
    inner = stamped(b"#!/bin/sh\nls\n", "a.sh")
    reading = read(LIGHTWEIGHT * 2 + inner + RICH, "a.sh")
    assert reading.body == b"#!/bin/sh\nls\n"
    assert [(stamp.form, stamp.line) for stamp in reading.stamps] == [
        (Form.LIGHTWEIGHT, 1),
        (Form.LIGHTWEIGHT, 2),
        (Form.BLOCK, 4),
        (Form.RICH, 19),
    ]
