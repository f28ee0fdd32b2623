"""Walking a tree as git does."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cli.tree import find, walk

Tree = Mapping[str, str]
"""Path -> content."""


def _plant(root: Path, tree: Tree) -> Path:
    for name, content in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode())
    return root


def _names(root: Path) -> list[str]:
    failures: list[str] = []
    names = [file.name for file in walk(root, lambda path, error: failures.append(f"{path}: {error}"))]
    assert not failures
    return names


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        pytest.param({}, [], id="empty"),
        pytest.param(
            {".git/HEAD": "", ".venv/a": "", "a": "", "b/.venv/c": ""}, ["a"], id=".git and .venv at any depth"
        ),
        pytest.param({".git": "gitdir: elsewhere", "a": ""}, ["a"], id=".git as a file"),
        pytest.param(
            {"b": "", "a/z": "", "a.x": "", "B": ""}, ["B", "a.x", "a/z", "b"], id="sorted by bytes of the path"
        ),
        pytest.param(
            {".gitignore": "*.o\n", "a.o": "", "b/c.o": "", "d": ""}, [".gitignore", "d"], id="name at any depth"
        ),
        pytest.param({".gitignore": "/a\n", "a": "", "b/a": ""}, [".gitignore", "b/a"], id="anchored"),
        pytest.param({".gitignore": "a/\n", "a/x": "", "b/a": ""}, [".gitignore", "b/a"], id="folders only"),
        pytest.param({".gitignore": "*.o\n!keep.o\n", "a.o": "", "keep.o": ""}, [".gitignore", "keep.o"], id="negated"),
        pytest.param(
            {".gitignore": "a/\n!a/keep\n", "a/keep": ""},
            [".gitignore"],
            id="nothing comes back from an ignored folder",
        ),
        pytest.param(
            {".gitignore": "a/*\n!a/keep\n", "a/keep": "", "a/x": ""}, [".gitignore", "a/keep"], id="its content may"
        ),
        pytest.param(
            {".gitignore": "*.o\n", "a/.gitignore": "!*.o\n", "a/x.o": "", "x.o": ""},
            [".gitignore", "a/.gitignore", "a/x.o"],
            id="a deeper file wins",
        ),
        pytest.param(
            {"a/.gitignore": "/x\n", "a/x": "", "x": "", "a/b/x": ""},
            ["a/.gitignore", "a/b/x", "x"],
            id="anchored to its folder",
        ),
        pytest.param(
            {".gitignore": "\ufeffa\r\nb\r\n", "a": "", "b": "", "c": ""}, [".gitignore", "c"], id="BOM and CRLF"
        ),
        pytest.param({".gitignore": "# a\n\n\\#b\n", "# a": "", "#b": ""}, ["# a", ".gitignore"], id="comment"),
        pytest.param({".gitignore": "*\n!*/\n!*.py\n", "a/b.txt": "", "a/c.py": ""}, ["a/c.py"], id="only one suffix"),
    ],
)
def test_a_walk_finds_what_git_would(tmp_path: Path, tree: Tree, expected: list[str]) -> None:
    assert _names(_plant(tmp_path, tree)) == expected


def test_links_and_what_is_no_file_are_left_out(tmp_path: Path) -> None:
    _plant(tmp_path, {"a/b": "x"})
    (tmp_path / "file link").symlink_to("a/b")
    (tmp_path / "folder link").symlink_to("a")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")

    assert _names(tmp_path) == ["a/b"]


def test_a_linked_gitignore_is_no_gitignore(tmp_path: Path) -> None:
    _plant(tmp_path, {"patterns": "a\n", "a": ""})
    (tmp_path / ".gitignore").symlink_to("patterns")

    assert _names(tmp_path) == ["a", "patterns"]


def test_a_folder_of_a_work_tree_obeys_the_patterns_above_it(tmp_path: Path) -> None:
    _plant(
        tmp_path,
        {
            ".git/HEAD": "",
            ".gitignore": "*.o\n/a/b/y\n",
            "a/.gitignore": "z\n",
            "a/b/x.o": "",
            "a/b/y": "",
            "a/b/z": "",
            "a/b/k": "",
        },
    )

    assert _names(tmp_path / "a" / "b") == ["k"]


def test_a_folder_that_is_in_no_work_tree_obeys_its_own_patterns_only(tmp_path: Path) -> None:
    _plant(tmp_path, {".gitignore": "x\n", "a/x": ""})

    assert _names(tmp_path / "a") == ["x"]


def test_a_tree_deeper_than_the_recursion_limit_is_walked(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(1001):
        deep = deep / "d"
        deep.mkdir()
    (deep / "f").write_bytes(b"")
    try:
        assert _names(tmp_path) == ["d/" * 1001 + "f"]
    finally:
        # pytest removes its folders by a recursion of its own.
        (deep / "f").unlink()
        while deep != tmp_path:
            deep.rmdir()
            deep = deep.parent


def test_what_cannot_be_read_is_reported_and_the_walk_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _plant(tmp_path, {"a": "", "shut/b": "", "c": ""})
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    failures: list[str] = []

    names = [file.name for file in walk(tmp_path, lambda path, error: failures.append(f"{path}: {error.strerror}"))]

    assert names == ["a", "c"]
    assert failures == [f"{tmp_path}/shut: Permission denied"]


def test_no_file_comes_twice(tmp_path: Path) -> None:
    _plant(tmp_path, {"a/b": "", "c": ""})
    (tmp_path / "link").symlink_to("a")

    files = find([tmp_path / "a", tmp_path, tmp_path / "c", tmp_path / "link"], _never)

    assert [file.name for file in files] == ["b", "c"]


def test_a_file_that_is_named_is_taken_though_it_is_ignored(tmp_path: Path) -> None:
    _plant(tmp_path, {".gitignore": "a\n", "a": "12345"})

    (file,) = find([tmp_path / "a"], _never)

    assert (file.path, file.name, file.size) == (tmp_path / "a", "a", 5)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda path: None, "No such file or directory", id="missing"),
        pytest.param(os.mkfifo, "Not a regular file", id="pipe"),
        pytest.param(lambda path: path.symlink_to(path), "Too many levels of symbolic links", id="loop"),
    ],
)
def test_a_path_that_stands_for_no_file_is_reported(tmp_path: Path, make: object, reason: str) -> None:
    path = tmp_path / "x"
    make(path)  # type: ignore[operator]  # each row makes another kind of file
    failures: list[tuple[str, str | None]] = []

    assert find([path], lambda name, error: failures.append((name, error.strerror))) == []

    assert failures == [(str(path), reason)]


_PARTS = st.sampled_from(["a", "b", "c.o", "d.py", "é", "[a]", "x y ", "-", "#a", "!a"])
_FILES = st.lists(st.lists(_PARTS, min_size=1, max_size=3).map("/".join), min_size=1, max_size=8, unique=True)
_PATTERNS = st.lists(
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["", "", "!", "\\!", "#", "\\#"]),
        st.sampled_from(["", "", "/", "**/", "a/", "*/", "b/**/", "a**/", "/**/"]),
        st.sampled_from(
            [
                "a",
                "b",
                "c.o",
                "*",
                "*.o",
                "?",
                "??",
                "[ab]",
                "[!a]",
                "[^-b]",
                "[a-c]*",
                "[[:alpha:]]",
                "d.*",
                "**",
                "***",
            ]
        )
        | st.text("ab[]!^-\\*?:. ", min_size=1, max_size=5),
        st.sampled_from(["", "", "/", "/*", "/**", " ", "\\ ", "//"]),
    ),
    max_size=4,
).map("\n".join)


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[str]]:
    """What git lists in a folder, by no patterns but those of its .gitignore files."""
    if shutil.which("git") is None:
        pytest.skip("there is no git to compare with")
    repository = tmp_path_factory.mktemp("git")
    environment = {"PATH": os.environ["PATH"], "HOME": str(repository), "GIT_CONFIG_NOSYSTEM": "1"}

    def call(*arguments: str | Path) -> str:
        command = ["git", f"--git-dir={repository}/.git", *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    call("init", "--quiet", repository)

    def listed(root: Path) -> list[str]:
        names = call("-C", root, "--work-tree=.", "ls-files", "--others", "--exclude-per-directory=.gitignore", "-z")
        return sorted(names.split("\0")[:-1], key=os.fsencode)

    return listed


@settings(max_examples=60, deadline=None)
@given(files=_FILES, patterns=_PATTERNS, deeper=_PATTERNS)
def test_a_walk_lists_what_git_lists(
    git: Callable[[Path], list[str]], files: list[str], patterns: str, deeper: str
) -> None:
    folders = {str(parent) for file in files for parent in PurePosixPath(file).parents}
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        _plant(root, {name: "" for name in files if name not in folders} | {".gitignore": patterns})
        if (root / "a").is_dir():
            _plant(root, {"a/.gitignore": deeper})

        assert _names(root) == git(root)


def _never(path: str, error: OSError) -> None:
    raise AssertionError(f"{path}: {error}")
