"""The canonical block: what is refused in writing, and what a reading says of blocks that are none."""

import pytest

from services.stamping.embedding import DigestRule, Form, digest, read, strip, write
from tests.stamping.embedding_sample import FIELDS, digest_of, stamped

EMBEDDED = stamped(b"pass\n", "a.py")


def test_a_stamp_is_read_with_its_fields_its_line_and_its_rule() -> None:
    reading = read(stamped(b"#!/bin/sh\nls\n", "a.sh"), "a.sh")
    (stamp,) = reading.stamps
    assert (stamp.form, stamp.line, stamp.fields) == (Form.BLOCK, 2, FIELDS)
    assert (stamp.digest, stamp.rule) == (FIELDS["digest"], DigestRule.RAW)
    assert digest(reading.body, stamp.rule) == digest_of("#!/bin/sh\nls\n")
    assert reading.quoted == ()


def test_a_key_that_a_later_version_adds_is_read() -> None:
    fields = {**FIELDS, "signature_alg": "ed25519", "zone": "a+b/c"}
    assert read(stamped(b"pass\n", "a.py", fields), "a.py").stamps[0].fields == fields


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"# version: 1\n", b"", "it has no version"),
        (b"# version: 1\n", b"# version: 0\n", "its version is malformed"),
        (b"# version: 1\n", b"# version: 1 \n", "line 11 of the block is not `key: value`"),
        (b"# version: 1\n", b"# version:  1\n", "line 11 of the block is not `key: value`"),
        (b"# version: 1\n", b"#version: 1\n", "line 11 of the block is not `key: value`"),
        (b"# version: 1\n", b"version: 1\n", "its lines are not as a stamp writes them, each key once and in order"),
        (
            b"# version: 1\n",
            b"# version: 1\n# version: 1\n",
            "its lines are not as a stamp writes them, each key once and in order",
        ),
        (
            b"# version: 1\n",
            b"# version: 1\n# a: b\n",
            "its lines are not as a stamp writes them, each key once and in order",
        ),
        (b"# version: 1\n", b"# version: 1\n# z: a>b\n", "its z is malformed"),
        (b"# version: 1\n", b"# version: 1\n# xcoding: b\n", "'xcoding' is not a key that a stamp may have"),
        (b"size_bytes: 1024", b"size_bytes: 01024", "its size_bytes is malformed"),
        (b"digest: ab", b"digest: AB", "its digest is malformed"),
        (b"ab\n# metadata", b"ab\r\n# metadata", "line 4 of the block is not `key: value`"),
        (b"# ---END ONEX STAMP---\n", b"", "no ---END ONEX STAMP--- follows within 8192 bytes"),
        (
            b"STAMP---\npass",
            b"STAMP---  \npass",
            "without it, a stamp would go to another place or have other newlines",
        ),
    ],
    ids=[
        "missing key",
        "malformed value",
        "trailing space",
        "two spaces",
        "no space after the comment sign",
        "no comment sign",
        "twice the same key",
        "unsorted",
        "unsafe value",
        "coding line",
        "leading zero",
        "upper-case digest",
        "mixed newlines",
        "not closed",
        "space after END",
    ],
)
def test_an_edited_block_in_its_place_is_content_and_the_reading_says_why(old: bytes, new: bytes, reason: str) -> None:
    assert EMBEDDED.count(old) == 1
    edited = EMBEDDED.replace(old, new)
    reading = read(edited, "a.py")
    assert strip(edited, "a.py") == reading.body == edited
    assert reading.stamps == ()
    assert [(quoted.form, quoted.line, quoted.reason) for quoted in reading.quoted] == [(Form.BLOCK, 1, reason)]


def test_blocks_that_stand_elsewhere_are_quoted_with_their_lines() -> None:
    reading = read(stamped(b"pass\n'''\n" + EMBEDDED + b"'''\n", "a.py"), "a.py")
    assert [stamp.line for stamp in reading.stamps] == [1]
    assert [(quoted.line, quoted.reason) for quoted in reading.quoted] == [
        (15, "it does not stand where a stamp is put")
    ]


def test_a_block_in_a_file_without_comments_is_quoted() -> None:
    (quoted,) = read(b"{}\n" + EMBEDDED, "a.json").quoted
    assert (quoted.line, quoted.reason) == (2, "this content is stamped detached")


@pytest.mark.parametrize("key", sorted(FIELDS))
def test_a_block_without_one_of_its_fields_is_refused(key: str) -> None:
    fields = {name: value for name, value in FIELDS.items() if name != key}
    with pytest.raises(ValueError, match=f"it has no {key}"):
        write(b"pass\n", "a.py", fields)


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "a b",
        "a\n# b: c",
        "a\rb",
        "a\x1bb",
        "-->",
        "*/",
        "?>",
        "a\\",
        "é",
        "a" * 256,
        "{{x}}",
        "<b",
        "a\n",
        "'a'",
    ],
    ids=repr,
)
@pytest.mark.parametrize("key", [*sorted(FIELDS), "zone"])
def test_a_value_that_could_leave_its_comment_is_refused(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"its {key} is malformed"):
        write(b"pass\n", "a.py", {**FIELDS, key: value})


@pytest.mark.parametrize("key", ["Zone", "a b", "9a", "", "a\n", "é", "encoding", "a" * 65])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="is not a key that a stamp may have"):
        write(b"pass\n", "a.py", {**FIELDS, key: "value"})


def test_a_block_that_is_too_long_to_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than 8192 bytes"):
        write(b"pass\n", "a.py", {**FIELDS, **{f"z{number:03}": "v" * 255 for number in range(40)}})


@pytest.mark.parametrize("name", ["a.py", "a.html", "a.xml", "a.css"])
def test_the_longest_block_that_is_written_is_read(name: str) -> None:
    accepted = 0
    for length in range(1, 256):
        fields = {**FIELDS, **{f"z{number:03}": "v" * 230 for number in range(30)}, "zz": "v" * length}
        try:
            embedded = write(b"", name, fields)
        except ValueError:
            continue
        accepted += 1
        assert embedded is not None
        assert strip(embedded, name) == b""
    assert accepted > 0
