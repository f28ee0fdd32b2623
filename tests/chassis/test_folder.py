"""The data folder: held by one, refused where it holds something else, its logs bounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.chassis import folder
from services.chassis.folder import DataFolder, FolderInUse, FolderRefused


def test_a_folder_is_made_when_it_is_locked(tmp_path: Path) -> None:
    with DataFolder(tmp_path / "some where" / "data").lock():
        assert (tmp_path / "some where" / "data").is_dir()


def test_a_folder_in_use_names_its_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    with DataFolder(tmp_path).lock([50051, 51051]):
        with pytest.raises(FolderInUse) as refused, DataFolder(tmp_path).lock():
            pass
        assert str(refused.value) == f"{tmp_path} is in use by the mesh of pid {os.getpid()} (ports 50051, 51051)"
    with DataFolder(tmp_path).lock():
        pass


def test_a_folder_in_use_is_refused_even_where_its_holder_is_unreadable(tmp_path: Path) -> None:
    with DataFolder(tmp_path).lock():
        (tmp_path / "supervisor.lock").write_text("{")
        with pytest.raises(FolderInUse, match="another process"), DataFolder(tmp_path).lock():
            pass


@pytest.mark.parametrize("name", ["lost+found", ".DS_Store", "supervisor.lock", "postgres"])
def test_a_folder_with_what_may_be_there_is_accepted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with DataFolder(tmp_path).lock():
        pass


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FolderRefused, match="neither empty nor a data folder"), DataFolder(tmp_path).lock():
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_made_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderRefused, match="Not a directory"), DataFolder(tmp_path / "file" / "data").lock():
        pass


def test_a_log_shows_the_last_lines_since_it_was_opened(tmp_path: Path) -> None:
    log = DataFolder(tmp_path).log("node")
    assert log.last_lines() == ()
    with log.open() as file:
        file.write(b"before\n")
    with log.open() as file:
        file.write(b"one\n\n  two  \nthree\nfour\n")
    assert log.last_lines() == ("two", "three", "four")
    assert log.last_lines(9) == ("one", "two", "three", "four")


def test_a_large_log_is_put_aside_when_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "LOG_BYTES", 3)
    log = DataFolder(tmp_path).log("node")
    for text in (b"oldest\n", b"older\n", b"new"):
        with log.open() as file:
            file.write(text)
    log.open().close()
    assert {path.name: path.read_text() for path in (tmp_path / "log").iterdir()} == {
        "node.log": "new",
        "node.log.1": "older\n",
    }


def test_a_log_that_cannot_be_written_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    with pytest.raises(FolderRefused, match="cannot be written"):
        DataFolder(tmp_path).log("node").open()
