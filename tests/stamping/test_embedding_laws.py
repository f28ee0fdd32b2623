"""The laws of the embedded stamp, over every syntax and over files made of what could confuse it."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.stamping.embedding import Form, read, strip, write
from services.stamping.embedding.block import insert
from services.stamping.embedding.reading import ROUNDS_MAX
from services.stamping.embedding.syntax import syntax_of
from tests.stamping.embedding_sample import FIELDS, LIGHTWEIGHT, NAMES, OTHER_FIELDS, RICH, stamp, stamped

EOLS = [b"\n", b"\r\n", b"\r", b""]
OPENINGS = [
    b"\xef\xbb\xbf",
    b"#!/bin/sh",
    b"#!/usr/bin/env -S python3 -u",
    b"#!/usr/bin/env node",
    b"#![allow(dead_code)]",
    b"#",
    b"# comment",
    b"# -*- coding: latin-1 -*-",
    b"# coding=utf-7",
    b"# ONEX:uid=coding:x,hash=" + b"0f" * 32 + b",ts=2025",
    b"# syntax=docker/dockerfile:1",
    b"# escape=`",
    b"%YAML 1.1",
    b"%TAG ! tag:example.org,2025:",
    b"#cloud-config",
    b"---",
    b"+++",
    b"...",
    b"title: a",
    b"<?xml version='1.0'?>",
    b"<?xml ",
    b"<!DOCTYPE html>",
    b"<!DOCTYPE a [<!ENTITY b ']>'><!-- ' -->]>",
    b"<!doctype ",
    b"<!-- comment -->",
    b"<!--",
    b"-->",
    b'@charset "utf-8";',
    b"// swift-tools-version:5.9",
    b"///usr/bin/env true",
    b"%&latex",
    b"// comment \\",
    b"{{- if .a }}",
    b"$ANSIBLE_VAULT;1.1;AES256",
]
BODIES = [
    b"",
    b" ",
    b"\t",
    b"\0",
    b"\xff\xfe\xe9",
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b"import os",
    b'x = """',
    b"<a/>",
    b"a{}",
    b"key: value",
    b"*/",
    b"?>",
    b"---BEGIN ONEX STAMP---",
    b"---END ONEX STAMP---",
    b"// ---BEGIN ONEX STAMP---",
    b"# ---END ONEX STAMP---",
    LIGHTWEIGHT,
    LIGHTWEIGHT[:-1],
    RICH,
    RICH.strip(),
    RICH + b"\n",
]
BLOCKS = [
    block
    for name in NAMES
    for fields in (FIELDS, OTHER_FIELDS)
    for seed in (b"", b"\r\n", b"#!/bin/sh", b"#!/bin/sh\n", b"<?xml version='1.0'?>")
    if (block := write(seed, name, fields)) is not None
]

pieces = st.sampled_from(OPENINGS) | st.sampled_from(BODIES) | st.sampled_from(BLOCKS) | st.binary(max_size=4)
names = st.sampled_from(NAMES)


def _inserted(content: bytes, name: str) -> bytes:
    syntax = syntax_of(name, content)
    return (insert(content, syntax, FIELDS) if syntax else None) or content


LAYERS: list[Callable[[bytes, str], bytes]] = [
    _inserted,
    lambda content, _: LIGHTWEIGHT + content,
    lambda content, _: content + RICH,
    lambda content, _: content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
    lambda content, _: content.removesuffix(b"\n"),
    lambda content, _: content.replace(b"version: 1", b"version: 2", 1),
    lambda content, _: content.replace(b"size_bytes", b"zize_bytes", 1),
    lambda content, _: b"\n" + content,
]
"""What may have happened to a file since it was first written."""


@st.composite
def named_files(draw: st.DrawFn) -> tuple[bytes, str]:
    """A file of lines that could confuse, and layers of stamps, edits and conversions over it."""
    name = draw(names)
    rows = draw(st.lists(st.tuples(pieces, st.sampled_from(EOLS)), max_size=5))
    content = b"".join(piece + eol for piece, eol in rows)
    for layer in draw(st.lists(st.sampled_from(LAYERS), max_size=6)):
        content = layer(content, name)
    return content, name


@given(file=named_files())
@settings(max_examples=1_500, deadline=None)
def test_a_stamp_is_taken_off_exactly_and_its_body_bears_none(file: tuple[bytes, str]) -> None:
    content, name = file
    body = strip(content, name)
    assert strip(body, name) == body
    for fields in (FIELDS, OTHER_FIELDS):
        embedded = write(body, name, fields)
        if embedded is None:
            continue
        assert strip(embedded, name) == body
        reading = read(embedded, name)
        assert reading.body == body
        assert [(found.form, found.fields) for found in reading.stamps] == [(Form.BLOCK, fields)]


@given(file=named_files())
@settings(max_examples=500, deadline=None)
def test_stamping_a_stamped_file_replaces_the_stamp(file: tuple[bytes, str]) -> None:
    content, name = file
    first = stamp(content, name)
    if first is not None:
        assert stamp(first, name, OTHER_FIELDS) == stamp(content, name, OTHER_FIELDS)
        assert stamp(first, name) == first


@given(file=named_files())
@settings(max_examples=500, deadline=None)
def test_what_a_reading_finds_accounts_for_what_strip_takes_off(file: tuple[bytes, str]) -> None:
    content, name = file
    reading = read(content, name)
    assert reading.body == strip(content, name)
    assert bool(reading.stamps) == (reading.body != content)
    if [found.form for found in reading.stamps] == [Form.BLOCK]:
        assert write(reading.body, name, reading.stamps[0].fields) == content
    lines = content.count(b"\n") + 1
    assert all(1 <= found.line <= lines for found in reading.stamps)
    assert all(1 <= found.line <= lines for found in reading.quoted)


@given(content=st.binary(max_size=200), name=names)
@settings(max_examples=300, deadline=None)
def test_content_without_a_marker_is_its_own_body(content: bytes, name: str) -> None:
    assert strip(content, name) is content


@pytest.mark.parametrize("name", ["a.py", "a.go", "a.html", "a.unknown"])
def test_stamps_that_lie_one_within_another_all_go(name: str) -> None:
    piled = body = b"<a>\n"
    for _ in range(ROUNDS_MAX):
        piled = _inserted(LIGHTWEIGHT + piled + RICH, name)
    assert strip(piled, name) == body


def test_content_in_which_stamps_lie_deeper_than_any_bridge_put_them_bears_none() -> None:
    piled = b"pass\n"
    for _ in range(ROUNDS_MAX + 1):
        piled = _inserted(LIGHTWEIGHT + piled, "a.py")
    reading = read(piled, "a.py")
    assert reading.body == piled
    assert reading.stamps == ()
    assert reading.quoted[0].reason == "stamps lie in it more than 16 deep"
    assert write(reading.body, "a.py", FIELDS) is None


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("script", "a.json", "a.unknown")])
@pytest.mark.parametrize("eol", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("last", [b"", b"last"], ids=["closed", "open"])
def test_every_kind_of_text_is_embedded_with_its_own_newlines(name: str, eol: bytes, mark: bytes, last: bytes) -> None:
    content = mark + b"<a>" + eol + b"</a>" + eol + last
    embedded = stamped(content, name)
    assert embedded.startswith(mark)
    assert embedded.endswith(content.removeprefix(mark))
    assert embedded.count(b"\n") == embedded.count(eol)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("script", "a.json", "a.unknown")])
def test_an_empty_file_is_embedded(name: str) -> None:
    assert strip(stamped(b"", name), name) == b""


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b'{"a": 1}', "a.json"),
        (b"#!/bin/sh\n", "package.json"),
        (b"a\0b", "a.py"),
        ("import os".encode("utf-16"), "a.py"),
        (b"<?php echo 1;", "a.php"),
        (b"text", "a.txt"),
        (b"text", "LICENSE"),
        (b"#!/usr/bin/env php\n", "run"),
        (b"main :- true.", "a.pl"),
    ],
    ids=[
        "json",
        "json with shebang",
        "nul",
        "utf-16",
        "php",
        "text",
        "no suffix",
        "unknown interpreter",
        "prolog or perl",
    ],
)
def test_content_without_a_safe_place_is_detached(content: bytes, name: str) -> None:
    assert stamp(content, name) is None
    assert strip(content, name) == content
