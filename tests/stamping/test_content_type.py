"""The media type of a content: magic bytes, then the name, then text or not."""

import io
import os
import random
import re
import subprocess
import sys
import zipfile

import puremagic
import puremagic.main
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.stamping import content_type as module
from services.stamping.content_type import HEAD_BYTES, content_type

MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9!#$&^_.+-]+")
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.txt"), "a")
    return file.getvalue()


@pytest.mark.parametrize(
    ("head", "name", "expected"),
    [
        (PNG, "a.txt", "image/png"),
        (PNG, "a.py", "image/png"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0\1", "a", "image/jpeg"),
        (b"GIF89a", "a.txt", "image/gif"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a", "application/pdf"),
        (b"%PDF-1.7\n", "notes.txt", "application/pdf"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "a", "image/webp"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "a", "video/mp4"),
        (b"\0" * 257 + b"ustar\0", "a", "application/x-tar"),
        (b"\x1f\x8b\x08\0", "a", "application/x-gzip"),
        (b"\0asm\1\0\0\0", "a.wasm", "application/wasm"),
        (_zip(), "a", "application/zip"),
        (_zip(), "a.zip", "application/zip"),
        (_zip(), "a.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        (b"BM\x36\0\0\0\0\0\0\0\x36\0", "a.bmp", "image/x-ms-bmp"),
        (b"BM\x36\0\0\0\0\0\0\0\x36\0", "a", "application/octet-stream"),
        (b"BM is a unit of the army.\n", "a", "text/plain"),
        (b"MZ means a man's name.\n", "a", "text/plain"),
        (b"import os\n", "a", "text/plain"),
        (b"Version 2 of this text\n", "a", "text/plain"),
        (b"From: a\n", "a.md", "text/markdown"),
        (b"--- \na: 1\n", "a.yaml", "application/yaml"),
        (b"#define A 1\n", "a.h", "text/x-c"),
        (b"{\n", "a.rs", "text/x-rust"),
        (b"<?xml version='1.0'?><svg/>", "a.svg", "image/svg+xml"),
        (b"<?xml version='1.0'?><a/>", "a", "application/xml"),
        (b"<!DOCTYPE html>", "a", "text/html"),
        (b"<!DOCTYPE html>", "a.vue", "text/x-vue"),
        (b"#!/usr/bin/env python3\n", "run", "text/x-python"),
        (b"#!/usr/bin/env python3\n", "run.sh", "text/x-shellscript"),
        (b"import a from 'a'\n", "src/a.TS", "text/x-typescript"),
        (b"all:\n", "src/Makefile", "text/x-makefile"),
        (b"FROM a\n", "Dockerfile.prod", "text/x-dockerfile"),
        (b"x = '\xe9'\n", "a.py", "text/x-python"),
        (b"\xe9", "a", "application/octet-stream"),
        ("é".encode() * 5_000, "a", "text/plain"),
        (b"a" + "é".encode() * 5_000, "a", "text/plain"),
        (b"a\x1b[31mb\f\r\n", "a", "text/plain"),
        (b"a\0b", "a", "application/octet-stream"),
        (b"", "a", "text/plain"),
        (b"text", "src.py/c", "text/plain"),
        (b"A=1\n", ".env", "text/plain"),
        (b"", "a.json", "application/json"),
        (b"a" * 9_000 + b"\0", "a", "text/plain"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:16]),
)
def test_the_type_of_a_content_and_its_name(head: bytes, name: str, expected: str) -> None:
    assert content_type(head, name) == expected


@given(
    st.binary(max_size=64)
    | st.sampled_from([row.byte_match for row in puremagic.main.magic_header_array])
    | st.tuples(st.sampled_from(list(puremagic.main.multi_part_dict)), st.binary(max_size=64)).map(b"".join),
    st.sampled_from(["a", "", ".", "a.b.c", "a.mp3", "\n.\t"])
    | st.sampled_from([f"a{row.extension}" for row in puremagic.main.magic_header_array])
    | st.text(max_size=8),
)
@settings(max_examples=500, deadline=None)
def test_every_answer_is_a_media_type(head: bytes, name: str) -> None:
    found = content_type(head, name)
    assert MEDIA_TYPE.fullmatch(found)
    assert len(found) <= 127


def test_every_type_that_can_be_answered_is_a_media_type() -> None:
    rows = [
        *puremagic.main.magic_header_array,
        *(row for rows in puremagic.main.multi_part_dict.values() for row in rows),
    ]
    answers = {row.mime_type.strip().lower() for row in rows if row.mime_type} | set(module._SUFFIXES)
    assert all(MEDIA_TYPE.fullmatch(answer) and len(answer) <= 127 for answer in answers)


def test_the_index_misses_no_signature_of_the_library() -> None:
    typed = [row for row in puremagic.main.magic_header_array if row.mime_type and len(row.byte_match) >= 2]
    assert len(typed) > 500
    for row in typed:
        assert module._bears_signature(b"\0" * row.offset + row.byte_match)


def test_random_contents_are_octets_and_ask_the_library_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    ask = puremagic.magic_string

    def counted(head: bytes, name: str) -> object:
        nonlocal asked
        asked += 1
        return ask(head, name)

    monkeypatch.setattr(puremagic, "magic_string", counted)
    source = random.Random(1)
    answers = [content_type(source.randbytes(1_024), "a") for _ in range(2_000)]
    assert answers.count("application/octet-stream") == 2_000
    assert asked < 20
    asked = 0
    assert content_type(b"def f():\n    pass\n" * 50, "a.py") == "text/x-python"
    assert asked == 0


def test_the_head_suffices() -> None:
    furthest = max(row.offset + len(row.byte_match) for row in puremagic.main.magic_header_array)
    assert furthest <= puremagic.main.max_head <= HEAD_BYTES
    for head in (PNG, b"text", b"\0"):
        content = head + b"\0" * HEAD_BYTES
        assert content_type(content + b"</svg>", "a") == content_type(content[:HEAD_BYTES], "a")


def test_the_type_is_the_same_in_every_process() -> None:
    """puremagic orders some matches by a set; and a machine's own mime files must not be read."""
    program = (
        "from puremagic.main import multi_part_dict\n"
        "from services.stamping.content_type import content_type\n"
        "heads = [k + bytes(max(0, r.offset - len(k))) + r.byte_match for k, rows in multi_part_dict.items() for r in rows]\n"
        "print([content_type(head, 'a' + end) for head in heads for end in ('', '.it', '.mp3', '.ts', '.py')])\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


def test_the_library_has_the_table_that_the_index_is_built_from() -> None:
    """A pin: puremagic exports its table, but does not promise its form."""
    row = puremagic.main.magic_header_array[0]
    assert row._fields == ("byte_match", "offset", "extension", "mime_type", "name")
    (found, *_) = puremagic.magic_string(PNG, "a.png")
    assert found._fields == (*row._fields, "confidence")
    assert tuple(found[:5]) in module._POSITION


@pytest.mark.parametrize("head", [b"\0\0\1\0\1\0", b"OggS\0\2", b"MZ\x90\0\3\0"], ids=["icon", "ogg", "executable"])
def test_of_equal_signatures_the_first_in_the_table_decides_in_whatever_order_they_come(head: bytes) -> None:
    rows = [row for row in puremagic.magic_string(head) if row.mime_type]
    assert len(rows) > 1
    assert module._best(rows) == module._best(reversed(rows))
