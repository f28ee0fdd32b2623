"""Stamped files still mean what they meant: each language's own parser is asked, where this machine has it."""

import ast
import configparser
import json
import shutil
import sqlite3
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from google.protobuf import descriptor_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from services.stamping.embedding import strip
from tests.stamping.embedding_sample import OTHER_FIELDS, stamp, stamped

SHEBANGS = ["", "#!/usr/bin/env python3\n"]
CODINGS = ["", "# -*- coding: {} -*-\n", "# A file.\n# vim: set fileencoding={} :\n"]


@pytest.mark.parametrize("shebang", SHEBANGS, ids=["plain", "shebang"])
@pytest.mark.parametrize("coding", CODINGS, ids=["no coding", "coding first", "coding under a comment"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252", "shift_jis", "iso2022_jp"])
@pytest.mark.parametrize("eol", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_python_keeps_its_coding_its_docstring_and_its_future(
    shebang: str, coding: str, encoding: str, eol: str
) -> None:
    if shebang and coding.count("\n") == 2:
        coding = coding.partition("\n")[2]
    letter = (
        "é"
        if encoding in ("utf-8", "latin-1", "cp1252") and coding
        else "ア"
        if coding and encoding != "utf-8"
        else "e"
    )
    text = f"{shebang}{coding.format(encoding)}'''Doc {letter}.'''\nfrom __future__ import annotations\nx: No = '{letter}'\n"
    content = text.replace("\n", eol).encode(encoding)
    namespace: dict[str, object] = {}
    exec(compile(stamped(content, "a.py", OTHER_FIELDS), "a.py", "exec"), namespace)
    assert namespace["__doc__"] == f"Doc {letter}."
    assert namespace["x"] == letter


@given(
    st.sampled_from([path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_this_very_folder_still_compiles(content: bytes, crlf: bool, mark: bool) -> None:
    content = content.replace(b"\n", b"\r\n") if crlf else content
    content = b"\xef\xbb\xbf" + content if mark else content
    assert ast.dump(ast.parse(stamped(content, "a.py"))) == ast.dump(ast.parse(content))


@pytest.mark.parametrize(
    "content",
    [
        b"a: 1\n",
        b"---\na: 1\n---\nb: [2]\n...\n---\nc\n",
        b"%YAML 1.1\n%TAG ! tag:yaml.org,2002:\n---\na: !str 1\n...\n%YAML 1.1\n---\nb\n",
        b"\xef\xbb\xbf# first\n- 1\n",
        b"#cloud-config\na: |\n  # not a comment\n  ---BEGIN ONEX STAMP---\n",
        b"",
        b"%YAML 1.1\r\n---\r\nx",
    ],
)
def test_yaml_loads_the_same_documents(content: bytes) -> None:
    assert list(yaml.safe_load_all(stamped(content, "a.yaml"))) == list(yaml.safe_load_all(content))


@pytest.mark.parametrize("content", [b"", b"a = 1\n[b]\nc = '''\n# d\n'''", b"# a\r\na = 1\r\n"])
def test_toml_has_the_same_values(content: bytes) -> None:
    assert tomllib.loads(stamped(content, "a.toml").decode()) == tomllib.loads(content.decode())


@pytest.mark.parametrize("content", [b"[a]\nb = 1\n  2\n; c\nd: e", b"; first\r\n[a]\r\nb\r\n"])
def test_ini_has_the_same_values(content: bytes) -> None:
    def values(text: bytes) -> dict[str, dict[str, str]]:
        parser = configparser.ConfigParser(allow_no_value=True)
        parser.read_string(text.decode())
        return {name: dict(section) for name, section in parser.items()}

    for name in ("a.ini", "setup.cfg"):
        assert values(stamped(content, name)) == values(content)


@pytest.mark.parametrize(
    "content",
    [
        b"<a>--</a>",
        b"<?xml version='1.0'?><a/>",
        b"<?xml version='1.0' encoding='latin-1'?>\r\n<!-- \xe9 -->\r\n<a b='\xe9'/>",
        b"\xef\xbb\xbf<?xml version='1.0'?>\n<!DOCTYPE a [<!ENTITY b ']>'>]>\n<a>&b;</a>",
        b"\n\n<a/>",
    ],
)
def test_xml_is_the_same_tree(content: bytes) -> None:
    for name in ("a.xml", "a.svg"):
        assert ET.tostring(ET.fromstring(stamped(content, name, OTHER_FIELDS))) == ET.tostring(ET.fromstring(content))


class _Events(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.events: list[tuple[str, object]] = []
        self.comments: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.events.append((tag, attrs))

    def handle_decl(self, decl: str) -> None:
        self.events.append(("declaration", decl))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.events.append(("text", data.strip()))

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


@pytest.mark.parametrize(
    "content", ["<!DOCTYPE html><p a=b>text<br>", "<!doctype html>\n<html>", "<p>--></p>", "text", ""]
)
def test_html_has_the_same_elements_and_one_comment_more(content: str) -> None:
    events = _Events(stamped(content.encode(), "a.html", OTHER_FIELDS).decode())
    assert events.events == _Events(content).events
    assert len(events.comments) == 1
    assert events.comments[0].strip().endswith("---END ONEX STAMP---")


@pytest.mark.parametrize("content", ["# A\n\ntext", "    code\n", "A\n===\n", "- a\n- b\n", "---\n"])
def test_markdown_renders_the_same_behind_the_comment(content: str) -> None:
    rendered = MarkdownIt().render(stamped(content.encode(), "a.md").decode())
    assert rendered.partition("-->\n")[2] == MarkdownIt().render(content)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    )
)
@settings(max_examples=50, deadline=None)
def test_json_is_left_untouched(value: object) -> None:
    content = json.dumps(value).encode()
    assert stamp(content, "a.json") is None
    assert strip(content, "a.json") == content


def test_sql_runs() -> None:
    content = b"CREATE TABLE a (b); -- c\nINSERT INTO a VALUES ('---BEGIN ONEX STAMP---');"
    with sqlite3.connect(":memory:") as database:
        database.executescript(stamped(content, "a.sql", OTHER_FIELDS).decode())
        assert database.execute("SELECT b FROM a").fetchall() == [("---BEGIN ONEX STAMP---",)]
    database.close()


def test_proto_compiles_to_the_same_descriptor(tmp_path: Path) -> None:
    content = b'syntax = "proto3";\npackage a;\nmessage B { string c = 1; }\n'
    found = []
    for text in (content, stamped(content, "a.proto")):
        (tmp_path / "a.proto").write_bytes(text)
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{tmp_path}",
            f"--descriptor_set_out={tmp_path}/out",
            "a.proto",
        ]
        subprocess.run(command, check=True, timeout=60)
        found.append(descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "out").read_bytes()))
    assert found[0] == found[1]


CHECKS = [
    ("a.sh", b"#!/bin/sh\nif true; then echo a; fi", ["sh", "-n"]),
    ("a.bash", b"a() { :; }\r\n".replace(b"\r", b""), ["bash", "-n"]),
    ("Makefile", b"A := 1\n.PHONY: a\na:\n\t@true $(A)\n", ["make", "-n", "-f"]),
    ("a.mjs", b"#!/usr/bin/env node\nimport 'fs'\n", ["node", "--check"]),
    ("a.cjs", b"'use strict'\nconst a = `\n// ---END ONEX STAMP---\n`", ["node", "--check"]),
    ("a.go", b"//go:build linux\n\npackage a\n", ["gofmt", "-e"]),
    ("a.c", b"#include <stddef.h>\nint main(void) { return 0; }\n", ["gcc", "-fsyntax-only", "-Wall", "-Werror"]),
    ("a.cpp", b"#pragma GCC poison b\nint main() {}\n", ["gcc", "-fsyntax-only", "-Wall", "-Werror", "-x", "c++"]),
    ("a.pm", b"package a;\n\n=pod\n\n=cut\n\n1;\n", ["perl", "-c"]),
    ("a.rb", b"# frozen_string_literal: true\n\nclass A; end\n", ["ruby", "-wc"]),
    ("a.lua", b"#!/usr/bin/lua\nreturn 1\n", ["luac", "-p"]),
]


@pytest.mark.parametrize(("name", "content", "checker"), CHECKS, ids=[check[0] for check in CHECKS])
def test_a_stamped_file_passes_its_languages_own_checker(
    name: str, content: bytes, checker: list[str], tmp_path: Path
) -> None:
    if shutil.which(checker[0]) is None:
        pytest.skip(f"this machine has no {checker[0]}")
    path = tmp_path / name
    path.write_bytes(stamped(content, name, OTHER_FIELDS))
    done = subprocess.run([*checker, str(path)], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_go_stamp_is_no_package_documentation(tmp_path: Path) -> None:
    if shutil.which("go") is None:
        pytest.skip("this machine has no go")
    (tmp_path / "go.mod").write_bytes(stamped(b"module example.org/a\n", "go.mod"))
    (tmp_path / "a.go").write_bytes(stamped(b"// Package a is documented.\npackage a\n", "a.go"))
    done = subprocess.run(
        ["go", "doc"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={
            "PATH": str(Path(str(shutil.which("go"))).parent),
            "HOME": str(tmp_path),
            "GOFLAGS": "-mod=mod",
            "GOTOOLCHAIN": "local",
        },
    )
    assert done.returncode == 0, done.stderr
    assert "Package a is documented." in done.stdout
    assert "STAMP" not in done.stdout


RUST = [
    b"#![allow(dead_code)]\nfn a() {}\n",
    b"#!/usr/bin/env rust-script\n//! Doc.\n#![allow(dead_code)]\nfn a() {}\n",
]


@pytest.mark.parametrize("content", RUST, ids=["attribute", "shebang"])
def test_stamped_rust_compiles(content: bytes, tmp_path: Path) -> None:
    if shutil.which("rustc") is None:
        pytest.skip("this machine has no rustc")
    path = tmp_path / "a.rs"
    path.write_bytes(stamped(content, "a.rs", OTHER_FIELDS))
    done = subprocess.run(
        ["rustc", "--crate-type=lib", "--emit=metadata", "-o", str(tmp_path / "out"), str(path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
