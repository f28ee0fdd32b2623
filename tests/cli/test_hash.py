"""`omnibridge hash`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from blake3 import blake3

from services.cli.verb.hash import line
from tests.cli.conftest import Run


def test_a_digest_is_printed_as_b3sum_prints_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "full").write_bytes(b"content")

    ended = run("hash", tmp_path / "empty", tmp_path / "full")

    assert ended.status == 0
    assert ended.out.splitlines() == [
        f"af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262  {tmp_path}/empty",
        f"{blake3(b'content').hexdigest()}  {tmp_path}/full",
    ]


def test_what_cannot_be_read_fails_by_name_and_the_rest_is_hashed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")

    ended = run("hash", tmp_path / "missing", tmp_path, tmp_path / "a" / "b", tmp_path / "a")

    assert ended.status == 1
    assert ended.err.splitlines() == [
        f"omnibridge: {tmp_path}/missing: ENOENT: No such file or directory",
        f"omnibridge: {tmp_path}: EISDIR: Is a directory",
        f"omnibridge: {tmp_path}/a/b: ENOTDIR: Not a directory",
    ]
    assert ended.out == f"{blake3(b'a').hexdigest()}  {tmp_path}/a\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "a").chmod(0)

    ended = run("hash", tmp_path / "a")

    assert ended.status == 1
    assert ended.err == f"omnibridge: {tmp_path}/a: EACCES: Permission denied\n"


def test_a_dash_is_stdin() -> None:
    command = [sys.executable, "-m", "services.cli.main", "hash", "-"]
    done = subprocess.run(command, input=b"content", capture_output=True, check=True)

    assert done.stdout.decode() == f"{blake3(b'content').hexdigest()}  -\n"


@pytest.mark.parametrize(
    ("path", "printed"),
    [
        pytest.param("a b", "d  a b", id="space"),
        pytest.param("a\\b", "\\d  a\\\\b", id="backslash"),
        pytest.param("a\nb\r", "\\d  a\\nb\\r", id="line ends"),
        pytest.param(os.fsdecode(b"\xff"), "d  \N{REPLACEMENT CHARACTER}", id="not UTF-8"),
    ],
)
def test_a_path_is_escaped_as_b3sum_escapes_it(path: str, printed: str) -> None:
    assert line("d", path) == printed
