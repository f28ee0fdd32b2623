"""The story that `demo` tells: a folder is copied, the copy stamped and validated, and one changed byte caught.

Nothing of it is staged: it is what `up`, `stamp --embed` and `validate` do. The folder itself is only read.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from omninode.bridge.stamping.v1 import stamping_pb2_grpc
from services.chassis.port import free_ports
from services.cli import console, report
from services.cli.failure import CommandError, Failed, complain
from services.cli.interruption import postponed, run
from services.cli.mesh import NODES, NodeAddress
from services.cli.runner import mesh, unless_stopped
from services.cli.stamping import UNARY_BYTES, Placement, Stamped, Stamper
from services.cli.target import stamping
from services.cli.tree import File, find
from services.cli.validation import Validated, Validator, Verdict

T = TypeVar("T")
STAMP_MARK = b"ONEX STAMP"
"""What the lines that open and close an embedded stamp hold: a byte that is changed must not stand in them."""
CASE_BIT = 0x20
"""Turns an ASCII letter into the same one of the other case."""


@dataclass(frozen=True, slots=True)
class Tampering:
    """A content with one byte changed."""

    content: bytes
    offset: int
    before: str
    after: str


def demonstrate(path: Path) -> None:
    """Tell the story of `path` on stdout. Raises CommandError, which says what failed; no temporary folder is left in any case."""
    failures: list[Failed] = []
    files = find([path], lambda name, error: failures.append(Failed.of(name, error)))
    _raise_for(failures)
    if not files:
        raise CommandError(f"demo: {path}: there is no file to stamp")
    with _temporary_folder() as temporary:
        size = report.readable_bytes(sum(file.size for file in files))
        console.say(f"{path.resolve()}: {report.counted(len(files), 'file')}, {size}, copied to a temporary folder")
        copies = _copy(files, temporary / "copy", failures)
        _raise_for(failures)
        run(_run(temporary / "data", files, copies))
    console.say("the mesh has stopped, the temporary folders are removed")


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    folder = tempfile.mkdtemp(prefix="omnibridge-demo-")
    try:
        yield Path(folder)
    finally:
        with postponed():
            shutil.rmtree(folder)


def _copy(files: Sequence[File], to: Path, failures: list[Failed]) -> list[File]:
    copies = []
    with console.progress("copying   ", len(files)) as advance:
        for file in files:
            copy = to / file.name
            try:
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file.path, copy)
                copies.append(File(copy, file.name, copy.stat().st_size))
            except OSError as error:
                failures.append(Failed.of(str(file.path), error))
            advance()
    return copies


async def _run(data: Path, originals: Sequence[File], copies: Sequence[File]) -> None:
    ports = iter(free_ports(2 * len(NODES)))
    addresses = [NodeAddress(node, next(ports), next(ports)) for node in NODES]
    async with AsyncExitStack() as running:
        with console.waiting("starting PostgreSQL and the nodes") as tell:
            began = time.monotonic()
            supervisor = await running.enter_async_context(
                mesh("demo", addresses, data, None, lambda event: tell(str(event)))
            )
        console.say(f"PostgreSQL and {report.counted(len(NODES), 'node')} started in {time.monotonic() - began:.1f} s")
        stamping_node = next(address for address in addresses if address.node == "stamping")
        await unless_stopped(supervisor, tell_story(stamping_node.target, originals, copies))


async def tell_story(target: str, originals: Sequence[File], copies: Sequence[File]) -> None:
    """Stamp and validate the copies on the node at `target`, and change a byte of one. Raises CommandError."""
    async with stamping(target) as stub:
        stamped = await _stamp(stub, copies)
        validator = Validator(stub)
        await _validate(validator, copies)
        await _tamper(validator, originals, stamped)


async def _stamp(stub: stamping_pb2_grpc.StampingServiceStub, copies: Sequence[File]) -> list[Stamped]:
    began = time.monotonic()
    outcomes = await _gather("stamping  ", len(copies), Stamper(stub, embed=True).stamp(copies))
    seconds = time.monotonic() - began
    stamped = [outcome for outcome in outcomes if isinstance(outcome, Stamped)]
    _raise_for([outcome for outcome in outcomes if isinstance(outcome, Failed)])
    files, size = report.counted(len(stamped), "file"), sum(item.file.size for item in stamped)
    console.stdout().print(report.by_type(stamped))
    console.say(f"stamped: {files}, {report.readable_bytes(size)}, {len(stamped) / seconds:,.0f} stamps/s")
    return stamped


async def _validate(validator: Validator, copies: Sequence[File]) -> None:
    found = await _gather("validating", len(copies), validator.validate(copies))
    validated = [item for item in found if isinstance(item, Validated)]
    _raise_for([item for item in found if isinstance(item, Failed)])
    console.say(f"validated: {report.verdicts(validated)}")
    for item in validated:
        if item.verdict not in (Verdict.VALID, Verdict.RECORDED):
            raise CommandError(f"demo: {item.file.name} was stamped, and now is {item.verdict}")


async def _tamper(validator: Validator, originals: Sequence[File], stamped: Sequence[Stamped]) -> None:
    sources = {file.name: file.path for file in originals}
    embedded = (item.file for item in stamped if item.placement != Placement.DETACHED)
    for file in embedded:
        change = change_letter(sources[file.name].read_bytes(), file.path.read_bytes())
        if change:
            return await _catch(validator, file, change, Verdict.INVALID)
    console.say(
        "no file here has both an embedded stamp and a letter to change beside it: a detached one is changed instead"
    )
    for item in stamped:
        if 0 < item.file.path.stat().st_size <= UNARY_BYTES:
            return await _catch(validator, item.file, change_last(item.file.path.read_bytes()), Verdict.UNSTAMPED)
    console.say("no file here has a byte to change")
    return None


async def _catch(validator: Validator, file: File, change: Tampering, expected: Verdict) -> None:
    """Write the changed content, and show that the node notices."""
    file.path.write_bytes(change.content)
    console.say(f"changed one byte of {file.name}: byte {change.offset:,}, {change.before} to {change.after}")
    (found,) = [item async for item in validator.validate([file])]
    if isinstance(found, Failed):
        _raise_for([found])
    if not isinstance(found, Validated) or found.verdict != expected:
        raise CommandError(f"demo: the changed byte of {file.name} was not caught")
    if expected == Verdict.INVALID:
        (wrong,) = (stamp for stamp in found.response.stamps if not stamp.valid)
        console.say(f"caught: the stamp in line {wrong.line} declares {wrong.found_digest[:16]}..,")
        console.say(f"        the content is {wrong.current_digest[:16]}..")
    else:
        console.say(f"caught: the ledger does not know {found.response.digest[:16]}..")


def change_letter(original: bytes, stamped: bytes) -> Tampering | None:
    """`stamped` with the last letter of its content in the other case; None where no letter of the original stands after the stamp.

    A stamp is put into the original, so what the two end with is the original's own.
    """
    begin = len(stamped) - _common_suffix(original, stamped)
    mark = stamped.rfind(STAMP_MARK, begin)
    if mark >= 0:
        begin = (stamped.find(b"\n", mark) + 1) or len(stamped)
    letters = (
        at for at in range(len(stamped) - 1, begin - 1, -1) if chr(stamped[at]).isascii() and chr(stamped[at]).isalpha()
    )
    at = next(letters, None)
    return None if at is None else _change(stamped, at, CASE_BIT)


def _common_suffix(one: bytes, other: bytes) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((length for length, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def change_last(content: bytes) -> Tampering:
    """`content`, which is not empty, with its last byte changed."""
    return _change(content, len(content) - 1, 1)


def _change(content: bytes, at: int, bits: int) -> Tampering:
    changed = bytearray(content)
    changed[at] ^= bits
    return Tampering(bytes(changed), at, ascii(chr(content[at])), ascii(chr(changed[at])))


async def _gather(what: str, total: int, results: AsyncGenerator[T, None]) -> list[T]:
    """All the results, with a bar."""
    gathered = []
    with console.progress(what, total) as advance:
        async with aclosing(results) as rest:
            async for result in rest:
                advance()
                gathered.append(result)
    return gathered


def _raise_for(failures: Sequence[Failed]) -> None:
    """Say each failure, and end the story if there is one."""
    for failure in failures:
        complain(failure)
    if failures:
        raise CommandError(f"demo: {report.counted(len(failures), 'path')} failed")
