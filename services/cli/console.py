"""What the command prints: results on stdout; progress on stderr, and only where a person is watching."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from services.cli.failure import shown

PLAIN_WIDTH = 2000
"""Columns where stdout is no terminal: wide enough that a table's row stays one line for grep, with the longest key, actor and
effect that the contracts allow."""


def stdout() -> Console:
    """The console of results. What it is given is printed as it is: a file's name is no markup."""
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    return Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False)


def say(line: str) -> None:
    """One line of results on stdout."""
    print(shown(line), flush=True)


def emit(record: Mapping[str, Any]) -> None:
    """One JSON object as one line of ASCII on stdout; a name that is not UTF-8 has its bytes as lone surrogates."""
    print(json.dumps(record), flush=True)


def as_json(message: Message) -> dict[str, Any]:
    """A message as ProtoJSON, with its fields named as in the contract, unset ones too."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def readable(value: object) -> str:
    """A field of `as_json` as a table shows it."""
    return shown(value if isinstance(value, str) else json.dumps(value))


class _Rate(ProgressColumn):
    """How many a second since the start: files come a batch at a time, which would make nonsense of a momentary speed."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.completed / task.elapsed:,.0f}/s" if task.elapsed else "")


def _bar() -> Progress:
    """A bar on stderr, where that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeElapsedColumn())
    # A redirected stdout is not the bar's: rich would write what is meant for it to the terminal.
    return Progress(*columns, console=_stderr(), disable=not sys.stderr.isatty(), redirect_stdout=sys.stdout.isatty())


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr while the block runs, where stderr is a terminal; what it gives is called once for each of `total`."""
    with _bar() as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def gauge(what: str) -> Iterator[Callable[[str, int, int | None], None]]:
    """As `progress`; what it gives is called with what is being done, how much is done, and of how much, if that is known."""
    with _bar() as bar:
        task = bar.add_task(what, total=None)
        yield lambda doing, done, total: bar.update(task, description=doing, completed=done, total=total)


def note(line: str) -> None:
    """A dim line on stderr, where that is a terminal."""
    if sys.stderr.isatty():
        _stderr().print(Text(shown(line), style="dim"))


def _stderr() -> Console:
    return Console(stderr=True, markup=False, highlight=False, emoji=False)


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr while the block runs.

    What it gives changes the spinner's text; after the block, and where stderr is no terminal, it prints a line.
    """
    spinner = _stderr().status(Text(what)) if sys.stderr.isatty() else None
    spinning = spinner is not None

    def tell(line: str) -> None:
        if spinner is not None and spinning:
            spinner.update(Text(shown(line)))
        else:
            print(shown(line), file=sys.stderr, flush=True)

    with spinner or nullcontext():
        try:
            yield tell
        finally:
            spinning = False
