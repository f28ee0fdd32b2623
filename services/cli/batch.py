"""Files as the items of unary requests: read, and packed within the contracts' bounds. What is asked of a node is the caller's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from blake3 import blake3

from services.cli import document
from services.cli.failure import Failed
from services.cli.tree import File
from services.cli.window import pack

Answer = TypeVar("Answer")

UNARY_BYTES = 10 * 1024 * 1024 + 64 * 1024
"""The largest file that goes by a unary call: 10 MiB of content and 64 KiB of stamps in it. Only a node can tell the two apart."""
BATCH_COUNT = 500
"""The contracts' bound."""
BATCH_BYTES = 8 * 1024 * 1024
"""Of content in a request: below the contracts' 12 MiB even when a file has grown since it was found."""
REQUESTS_IN_FLIGHT = 4
"""Enough to keep a node busy while the next batches are read; bounds memory to about twice this many batches."""


@dataclass(frozen=True, slots=True)
class Document:
    """A file with its bytes."""

    file: File
    content: bytes


def batches(files: Sequence[File]) -> Iterator[list[File]]:
    """The files in their order, in lists that make one request each."""
    return pack(files, lambda file: file.size, BATCH_COUNT, BATCH_BYTES)


async def answers(
    files: Sequence[File],
    send: Callable[[Sequence[Document]], Awaitable[Sequence[Answer]]],
    too_large: Callable[[File], Awaitable[Answer]],
) -> list[Answer | Failed]:
    """For each file, in order, what `send` answers for its document; for one over UNARY_BYTES what `too_large` does.

    A file that cannot be read is Failed.
    """
    read = await asyncio.to_thread(lambda: [_read(file) for file in files])
    documents = [item for item in read if isinstance(item, Document)]
    answered: dict[File, Answer] = {}
    # Packed again by what was read: a file may have grown since it was found.
    for part in pack(documents, lambda item: len(item.content), BATCH_COUNT, BATCH_BYTES):
        answered |= zip((item.file for item in part), await send(part), strict=True)
    return [
        item
        if isinstance(item, Failed)
        else answered[item.file]
        if isinstance(item, Document)
        else await too_large(item)
        for item in read
    ]


def request_id(digest: str, file_path: str, namespace: str, *, embed: bool) -> str:
    """The same id for the same content, path, namespace and wish to embed, so that a command run again repeats its requests."""
    # No two tuples read the same: neither a namespace nor a digest holds a newline.
    told = f"{digest}\n{namespace}\n{embed:d}\n{file_path}"
    return f"cli/{blake3(told.encode()).hexdigest()}"


def _read(file: File) -> Document | File | Failed:
    """The file with its bytes; the file alone if there are too many."""
    try:
        content = document.read(file.path, UNARY_BYTES)
    except OSError as error:
        return Failed.of(str(file.path), error)
    return file if content is None else Document(file, content)
