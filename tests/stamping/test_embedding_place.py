"""Where the block goes, for each kind of file, and with which newlines."""

import pytest

from services.stamping.embedding import read, strip
from tests.stamping.embedding_sample import FIELDS, stamp, stamped

TEXT = [
    "---BEGIN ONEX STAMP---",
    *(f"{key}: {FIELDS[key]}" for key in sorted(FIELDS)),
    "---END ONEX STAMP---",
]


def lines(prefix: str, eol: str = "\n") -> bytes:
    return eol.join(f"{prefix} {line}" for line in TEXT).encode()


def comment(opener: str, closer: str, eol: str = "\n") -> bytes:
    return f"{opener} {eol.join(TEXT)} {closer}".encode()


HASH, SLASHES, DASHES = lines("#") + b"\n", lines("//") + b"\n", lines("--") + b"\n"
HTML = comment("<!--", "-->") + b"\n"
XML = comment("<?onex-stamp", "?>") + b"\n"
CSS = comment("/*", "*/") + b"\n"
BOM = b"\xef\xbb\xbf"

PLACES = [
    ("python", "a.py", b"", HASH, b'"""Doc."""\n'),
    ("python shebang", "a.py", b"#!/usr/bin/env python3\n", HASH, b"pass\n"),
    ("python coding on line 1", "a.py", b"# -*- coding: latin-1 -*-\n", HASH, b"x = '\xe9'\n"),
    ("python coding on line 2", "a.py", b"#!/bin/python\n# vim: set fileencoding=cp1252 :\n", HASH, b"x = '\xe9'\n"),
    ("python coding under a comment", "a.py", b"# A comment.\n# coding=latin-1\n", HASH, b"x\n"),
    ("python coding under a blank", "a.py", b"\n# coding=latin-1\n", HASH, b"x\n"),
    ("python no coding under code", "a.py", b"", HASH, b"import os\n# coding=latin-1\n"),
    ("python no coding on line 3", "a.py", b"", HASH, b"#\n#\n# coding=latin-1\n"),
    ("python bom and shebang", "a.py", BOM + b"#!/bin/python\n", HASH, b"pass\n"),
    ("only a shebang", "a.sh", b"#!/bin/sh\n", HASH, b""),
    ("only a shebang without newline", "a.sh", b"#!/bin/sh", b"\n" + lines("#"), b""),
    ("only a shebang in go", "a.go", b"#!/bin/go", b"\n" + lines("//"), b""),
    ("only a coding line, crlf before it", "a.py", b"#!/x\r\n# coding: utf-8", b"\r\n" + lines("#", "\r\n"), b""),
    ("only a bom", "a.sh", BOM, HASH, b""),
    ("nix-shell", "run", b"#!/usr/bin/env nix-shell\n#! nix-shell -i bash\n", HASH, b"ls\n"),
    ("zsh completion", "a.zsh", b"#compdef a\n", HASH, b"_a\n"),
    ("by shebang", "run", b"#!/usr/bin/env -S A=1 python3.12 -u\n", HASH, b"pass\n"),
    ("by shebang, node", "run", b"#!/usr/local/bin/node\n", SLASHES, b"a()\n"),
    ("yaml", "a.yml", b"", HASH, b"---\na: 1\n"),
    ("yaml directives", "a.yaml", b"%YAML 1.1\n%TAG ! tag:example.org,2025:\n", HASH, b"---\na: 1\n---\nb: 2\n"),
    ("cloud-config", "a.yaml", b"## template: jinja\n#cloud-config\n", HASH, b"a: 1\n"),
    ("toml", "a.toml", b"", HASH, b"[a]\n"),
    ("ini", "a.ini", b"", lines(";") + b"\n", b"[a]\n"),
    ("javascript", "a.mjs", b"#!/usr/bin/env node\n", SLASHES, b"'use strict'\n"),
    ("typescript", "a.tsx", b"", SLASHES, b"export {}\n"),
    ("css", "a.css", b"", CSS, b"a{}\n"),
    ("css charset", "a.css", b'@charset "utf-8";\n', CSS, b"a{}\n"),
    ("css charset in mid-line", "a.css", b'@charset "utf-8";', CSS, b"a{}"),
    ("css front matter", "a.css", b"---\n---\n", CSS, b"a{}"),
    ("scss only a charset", "a.scss", b'@charset "utf-8";', b"\n" + lines("//"), b""),
    ("html", "a.html", b"", HTML, b"<p>\n"),
    ("html doctype", "a.htm", b"<!doctype HTML>\n", HTML, b"<p>\n"),
    ("html doctype in mid-line", "a.html", b"<!DOCTYPE html>", HTML, b"<html></html>"),
    ("html only a doctype", "a.html", b"<!DOCTYPE html>", HTML, b""),
    ("html doctype under a comment", "a.html", b"\n<!-- > -->\n<!DOCTYPE html>\n", HTML, b"<p>\n"),
    ("html only front matter", "a.html", b"---\n---", b"\n" + comment("<!--", "-->"), b""),
    ("html front matter and doctype", "a.html", b"---\na: 1\n---\n<!DOCTYPE html>\n", HTML, b"<p>\n"),
    ("xml", "a.xml", b"", XML, b"<a/>"),
    ("xml declaration in mid-line", "a.xml", b"<?xml version='1.0'?>", XML, b"<a/>"),
    ("xml declaration", "a.xml", b"<?xml version='1.0'?>\n", XML, b"<a/>"),
    (
        "xml declaration, crlf",
        "a.xml",
        b"<?xml version='1.0'?>\r\n",
        comment("<?onex-stamp", "?>", "\r\n") + b"\r\n",
        b"<a/>",
    ),
    ("svg doctype", "a.svg", b'<?xml version="1.0"?>\n<!DOCTYPE svg PUBLIC "-//>" "x">\n', XML, b"<svg/>"),
    ("xml internal subset", "a.xml", b"<!DOCTYPE a [<!ENTITY b ']>'> <!-- ]> ' --><?c ]>?>]>", XML, b"<a/>"),
    ("xml doctype that does not close", "a.xml", b"", XML, b"<!DOCTYPE a ["),
    ("markdown", "a.md", b"", HTML, b"# A\n"),
    ("markdown front matter", "a.md", b"---\na: 1\n---\n", HTML, b"# A\n"),
    ("markdown toml front matter", "a.markdown", b"+++\na = 1\n+++\n", HTML, b"# A\n"),
    ("markdown only front matter", "a.md", b"---\na: 1\n---", b"\n" + comment("<!--", "-->"), b""),
    ("markdown rule, no front matter", "a.md", b"", HTML, b"---\ntext\n"),
    ("sql", "a.sql", b"", DASHES, b"SELECT 1;\n"),
    ("go", "a.go", b"", SLASHES + b"\n", b"package a\n"),
    ("go run by itself", "a.go", b"//usr/bin/env go run\n", SLASHES + b"\n", b"package a\n"),
    ("rust attribute", "a.rs", b"", SLASHES, b"#![allow(dead_code)]\n"),
    ("rust attribute with a space", "a.rs", b"", SLASHES, b"#! [allow(dead_code)]\n"),
    ("rust shebang", "a.rs", b"#!/usr/bin/env rust-script\n", SLASHES, b"#![allow(dead_code)]\n"),
    ("c", "a.h", b"", SLASHES, b"#pragma once\n"),
    ("java", "A.java", b"", SLASHES, b"class A {}\n"),
    ("proto", "a.proto", b"", SLASHES, b'syntax = "proto3";\n'),
    ("swift tools", "Package.swift", b"// swift-tools-version:5.9\n", SLASHES, b"import A\n"),
    ("dockerfile", "Dockerfile", b"", HASH, b"# comment\n# syntax=a\nFROM a\n"),
    ("dockerfile directives", "a.dockerfile", b"# syntax=docker/dockerfile:1\n# escape=`\n", HASH, b"FROM a\n"),
    ("dockerfile for a stage", "deploy/Dockerfile.prod", b"#syntax = a\n", HASH, b"FROM a\n"),
    ("makefile", "src/Makefile", b"", HASH, b"a:\n\ttrue\n"),
    ("no newline at all", "a.py", b"", HASH, b"pass"),
    ("crlf", "a.py", b"", lines("#", "\r\n") + b"\r\n", b"pass\r\nx\n"),
    ("lf, then crlf", "a.py", b"#!/x\n", HASH, b"pass\r\n"),
]


@pytest.mark.parametrize(
    ("name", "before", "block", "after"), [row[1:] for row in PLACES], ids=[row[0] for row in PLACES]
)
def test_the_block_stands_in_its_place(name: str, before: bytes, block: bytes, after: bytes) -> None:
    content = before + after
    assert stamped(content, name) == before + block + after
    assert strip(before + block + after, name) == content


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.py", b"# coding: utf-7\n"),
        ("a.py", b"#!/x\r'''\ndoc'''\n"),
        ("a.py", b"\r# coding: latin-1\n"),
        ("a.c", b"//usr/bin/env a \\\n// \\\nint a;\n"),
        ("a.rs", b"#!//x\n[allow(a)]\n"),
        ("a.rs", b"---\n[package]\n---\n"),
        ("a.scala", b"#!/bin/sh\nexec scala $0\n!#\n"),
        ("a.ts", b"<?xml version='1.0'?><TS/>"),
        ("a.ts", b"<!DOCTYPE TS><TS/>"),
        ("a.xml", b"<?xml version='1.0'"),
        ("a.xml", b"no markup"),
        ("a.md", b"{\n}\n"),
        ("a.md", b"% Title\n"),
        ("a.yaml", b"$ANSIBLE_VAULT;1.1;AES256\n61\n"),
        ("a.yaml", b"{{- if .a -}}\na: 1\n"),
        ("a.yaml", b"%YAML 1.1\xe2\x80\xa8--- a\n"),
        ("a.yaml", b"%\n" * 40_000),
    ],
    ids=[
        "utf-7",
        "lone cr after shebang",
        "lone cr before coding",
        "continued comment",
        "rust: shebang or attribute",
        "rust front matter",
        "scala script",
        "qt translation",
        "qt translation by doctype",
        "unclosed xml declaration",
        "no markup",
        "json front matter",
        "pandoc title",
        "ansible vault",
        "trimming template",
        "unicode newline",
        "endless opening",
    ],
)
def test_a_doubtful_opening_is_stamped_detached(name: str, content: bytes) -> None:
    assert stamp(content, name) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.py", HASH + b"#!/usr/bin/env python3\n"),
        ("a.py", HASH + b"# coding: latin-1\n"),
        ("a.py", b"import os\n" + HASH),
        ("a.py", b"\n" + HASH),
        ("a.py", b'"""\n' + HASH + b'"""\n'),
        ("a.py", b"#!/x\n" + lines("#", "\r\n") + b"\r\n"),
        ("a.py", HASH + b"pass\r\n"),
        ("a.py", lines("#")),
        ("a.py", SLASHES),
        ("a.go", SLASHES + b"package a\n"),
        ("a.html", HTML + b"<!doctype html>\n"),
        ("a.css", CSS.strip() + b"a{}"),
        ("a.xml", b"<?xml version='1.0'?>\n\n" + XML + b"<a/>"),
        ("a.unknown", HASH),
        ("a.json", HASH),
        ("a.py", HASH + b"\0"),
    ],
    ids=[
        "before the shebang",
        "before the coding line",
        "under code",
        "under a blank line",
        "in a docstring",
        "another newline than the line before",
        "another newline than the body's first",
        "without its newline",
        "another syntax",
        "go without its blank line",
        "before the doctype",
        "without newline before a rule",
        "under a blank line in xml",
        "unknown syntax",
        "json",
        "content with NUL",
    ],
)
def test_a_block_in_any_other_place_is_content(name: str, content: bytes) -> None:
    assert strip(content, name) == content
    reading = read(content, name)
    assert reading.stamps == ()
    assert [quoted.line for quoted in reading.quoted] == [content[: content.index(b"---BEGIN")].count(b"\n") + 1]
    again = stamp(content, name)
    assert again is None or strip(again, name) == content


def test_a_namespace_of_dashes_closes_no_comment() -> None:
    for name in ("a.html", "a.md", "a.xml", "a.css", "a.sql"):
        embedded = stamped(b"<a/>", name, {**FIELDS, "namespace": "--"})
        assert strip(embedded, name) == b"<a/>"
