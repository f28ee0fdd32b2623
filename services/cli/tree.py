"""Which files a path stands for, as git would see them: .git and .venv, ignored files and links are left out.

Only names and sizes; the bytes are read by document.py. Of git's sources of patterns it reads every .gitignore from the top of the
work tree down, and neither .git/info/exclude nor the user's own excludes file: a tree means the same on every machine.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.cli.ignore import Patterns

LEFT_OUT = frozenset({".git", ".venv"})
"""Never walked into, ignored or not: neither holds content of the tree."""

OnError = Callable[[str, OSError], None]
"""Called with each path that cannot be read, and why."""


@dataclass(frozen=True, slots=True)
class File:
    """A regular file."""

    path: Path
    """Where it is read and written."""
    name: str
    """Its path below the root that it was found under, with `/`; its own name if it was given itself."""
    size: int
    """Bytes, when it was found."""


class _Rules:
    """The patterns that hold in one folder: its own .gitignore, and those above it, which yield to it."""

    def __init__(self, patterns: Patterns | None, folder: str, above: _Rules | None) -> None:
        self._patterns = patterns
        self._prefix = len(os.fsencode(folder))
        self._above = above

    def ignore(self, path: bytes, *, is_folder: bool) -> bool:
        """Whether the entry at `path`, relative to the top, is ignored."""
        rules: _Rules | None = self
        while rules is not None:
            if rules._patterns is not None:
                verdict = rules._patterns.verdict(path[rules._prefix :], is_folder=is_folder)
                if verdict is not None:
                    return verdict
            rules = rules._above
        return False


def find(paths: Sequence[Path], on_error: OnError) -> list[File]:
    """Every file that `paths` stand for, in their order: a file is itself, ignored or not; a folder is its tree.

    No file comes twice. A file whose name is not UTF-8 goes to `on_error`: the contracts could not name it.
    """
    seen: set[Path] = set()
    found = []
    for path in paths:
        try:
            mode = path.stat().st_mode
            real = path.resolve()
        except (OSError, RuntimeError) as error:
            on_error(str(path), error if isinstance(error, OSError) else OSError(errno.ELOOP, os.strerror(errno.ELOOP)))
            continue
        for file, place in _stand_for(path, mode, real, on_error):
            if place in seen:
                continue
            seen.add(place)
            if _is_utf8(file.name):
                found.append(file)
            else:
                on_error(str(file.path), OSError(errno.EILSEQ, "The name is not UTF-8"))
    return found


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stand_for(path: Path, mode: int, real: Path, on_error: OnError) -> Iterator[tuple[File, Path]]:
    """Each file with the one place that it has, however it was reached."""
    if stat.S_ISDIR(mode):
        for file in walk(path, on_error):
            yield file, real / file.name
    elif stat.S_ISREG(mode):
        yield File(path, path.name, path.stat().st_size), real
    else:
        on_error(str(path), OSError(errno.EINVAL, "Not a regular file"))


def walk(root: Path, on_error: OnError) -> Iterator[File]:
    """The files below `root`, sorted by the bytes of their names as `git ls-files` sorts them.

    A folder or .gitignore that cannot be read goes to `on_error`, and the walk goes on.
    """
    top, rules = _enclosing(root.resolve(), on_error)
    base = "".join(f"{part}/" for part in root.resolve().relative_to(top).parts)
    # A stack and no recursion: a path may have more levels than Python has frames.
    pending: list[tuple[str, os.DirEntry[str] | None, _Rules | None]] = [("", None, rules)]
    while pending:
        name, entry, rules = pending.pop()
        if entry is None or entry.is_dir(follow_symlinks=False):
            folder = root / name
            rules = _Rules(_patterns(folder, on_error), base + name, rules)
            pending.extend(
                (child_name, child, rules) for child_name, child in _children(folder, name, base, rules, on_error)
            )
            continue
        try:
            yield File(root / name, name, entry.stat(follow_symlinks=False).st_size)
        except OSError as error:
            on_error(entry.path, error)


def _children(
    folder: Path, name: str, base: str, rules: _Rules, on_error: OnError
) -> list[tuple[str, os.DirEntry[str]]]:
    """What is to be walked of one folder, the last first; folders' names end with `/`."""
    try:
        with os.scandir(folder) as entries:
            named = [
                (name + entry.name + ("/" if entry.is_dir(follow_symlinks=False) else ""), entry)
                for entry in entries
                if entry.name not in LEFT_OUT
                and (entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False))
            ]
    except OSError as error:
        on_error(str(folder), error)
        return []
    kept = [item for item in named if not _is_ignored(base + item[0], rules)]
    return sorted(kept, key=lambda item: os.fsencode(item[0]), reverse=True)


def _is_ignored(path: str, rules: _Rules) -> bool:
    return rules.ignore(os.fsencode(path.removesuffix("/")), is_folder=path.endswith("/"))


def _enclosing(root: Path, on_error: OnError) -> tuple[Path, _Rules | None]:
    """The top of the work tree that `root` lies in (`root` itself outside of one), and the rules of the folders above `root`."""
    top = next((folder for folder in (root, *root.parents) if (folder / ".git").exists()), root)
    rules = None
    folder, prefix = top, ""
    for part in root.relative_to(top).parts:
        rules = _Rules(_patterns(folder, on_error), prefix, rules)
        folder, prefix = folder / part, f"{prefix}{part}/"
    return top, rules


def _patterns(folder: Path, on_error: OnError) -> Patterns | None:
    """The folder's own patterns, where it has any. As for git, a link is no .gitignore."""
    path = folder / ".gitignore"
    try:
        return Patterns(path.read_bytes()) if stat.S_ISREG(path.lstat().st_mode) else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        on_error(str(path), error)
        return None
