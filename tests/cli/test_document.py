"""Reading and replacing a file's bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from blake3 import blake3

from services.cli import document
from services.cli.document import FileChangedError


@pytest.mark.parametrize(("size", "within"), [(0, True), (9, True), (10, True), (11, False)])
def test_a_file_is_read_within_its_bound(tmp_path: Path, size: int, within: bool) -> None:
    (tmp_path / "a").write_bytes(bytes(size))

    assert document.read(tmp_path / "a", 10) == (bytes(size) if within else None)


def test_a_digest_is_blake3_of_the_bytes(tmp_path: Path) -> None:
    content = os.urandom(document.CHUNK_BYTES * 2 + 1)
    (tmp_path / "a").write_bytes(content)

    assert document.digest(tmp_path / "a") == blake3(content).hexdigest()


async def test_chunks_make_the_content_and_end_with_a_refusal_if_it_is_another(tmp_path: Path) -> None:
    content = os.urandom(document.CHUNK_BYTES + 1)
    path = tmp_path / "a"
    path.write_bytes(content)

    assert [len(chunk) async for chunk in document.chunks(path)] == [document.CHUNK_BYTES, 1]
    assert b"".join([chunk async for chunk in document.chunks(path, blake3(content).hexdigest())]) == content
    with pytest.raises(FileChangedError):
        _ = [chunk async for chunk in document.chunks(path, "0" * 64)]


def test_a_replacement_that_fails_leaves_the_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(OSError, match="No space"):
        document.replace(path, b"before", b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("now", [b"", b"before and more", b"other!"], ids=["shorter", "longer", "as long"])
def test_a_file_that_holds_something_else_by_now_is_not_replaced(tmp_path: Path, now: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(now)

    with pytest.raises(FileChangedError):
        document.replace(path, b"before", b"after")
    assert path.read_bytes() == now
    assert list(tmp_path.iterdir()) == [path]
