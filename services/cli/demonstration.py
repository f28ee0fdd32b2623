"""The story that `demo` tells: a copy of a folder is stamped while a node is killed, then validated, and a changed byte is caught.

Nothing of it is staged: it is what `up`, `stamp --workflow --embed` and `validate` do. The folder itself is only read. The kill is
crash.py's.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from omninode.bridge.stamping.v1.stamping_pb2_grpc import StampingServiceStub
from services.chassis.keeper import Event
from services.chassis.port import free_ports
from services.cli import console, report
from services.cli.batch import UNARY_BYTES
from services.cli.crash import Crash, check_count, check_ledger
from services.cli.failure import CommandError, Failed, complain
from services.cli.interruption import postponed, run
from services.cli.mesh import NODES, NodeAddress
from services.cli.runner import mesh, unless_stopped
from services.cli.stamping import Placement, Stamped, Stamper
from services.cli.tampering import Tampering, change_last, change_letter
from services.cli.target import ORCHESTRATOR, REDUCER, STAMPING
from services.cli.tree import File, find
from services.cli.validation import Validated, Validator, Verdict
from services.cli.workflow import TOO_LARGE, Completed, Workflows, stamped

T = TypeVar("T")


def demonstrate(path: Path, victim: str) -> None:
    """Tell the story of `path`, in which the node `victim` is killed, on stdout.

    Raises CommandError, which says what failed; no temporary folder is left in any case.
    """
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
        run(_run(temporary / "data", Crash(victim), files, copies))
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


async def _run(data: Path, crash: Crash, originals: Sequence[File], copies: Sequence[File]) -> None:
    ports = iter(free_ports(2 * len(NODES)))
    addresses = [NodeAddress(node, next(ports), next(ports)) for node in NODES]
    async with AsyncExitStack() as running:
        with console.waiting("starting PostgreSQL and the nodes") as tell:

            def on_event(event: Event) -> None:
                crash.notice(event)
                if not crash.caused(event):
                    tell(str(event))

            began = time.monotonic()
            supervisor = await running.enter_async_context(mesh("demo", addresses, data, None, on_event))
        console.say(f"PostgreSQL and {report.counted(len(NODES), 'node')} started in {time.monotonic() - began:.1f} s")
        targets = {address.node: address.target for address in addresses}
        await unless_stopped(supervisor, _tell(targets, crash, originals, copies))


async def _tell(targets: Mapping[str, str], crash: Crash, originals: Sequence[File], copies: Sequence[File]) -> None:
    """The story from the running mesh on. Raises CommandError."""
    completed = await _run_workflows(targets["orchestrator"], crash, copies)
    async with STAMPING.at(targets["stamping"]) as stub:
        if completed:
            await check_ledger(stub, completed)
            async with REDUCER.at(targets["reducer"]) as reducer:
                await check_count(reducer, len(completed))
        done = await _embed(stub, copies, completed)
        validator = Validator(stub)
        await _validate(validator, copies)
        await _tamper(validator, originals, done)


async def _run_workflows(target: str, crash: Crash, copies: Sequence[File]) -> list[Completed]:
    """What completed; a copy that is too large for a workflow is left out."""
    fitting = [file for file in copies if file.size <= UNARY_BYTES]
    if not fitting:
        console.say("no file here is small enough for a workflow: no node is killed")
        return []
    began = time.monotonic()
    async with ORCHESTRATOR.at(target) as stub:
        outcomes = await _gather("running   ", len(fitting), crash.amid(Workflows(stub), fitting))
    seconds = time.monotonic() - began
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    _raise_for([failure for failure in failures if failure.reason != TOO_LARGE])
    await crash.mended()
    completed = [outcome for outcome in outcomes if isinstance(outcome, Completed)]
    crash.say_what_came_through(completed, seconds)
    if len(completed) < len(copies):
        larger = report.counted(len(copies) - len(completed), "file")
        console.say(f"too large for a workflow, and stamped by stream: {larger}")
    return completed


async def _embed(stub: StampingServiceStub, copies: Sequence[File], completed: Sequence[Completed]) -> list[Stamped]:
    """Every copy with its stamp, written into it where it has a place for one."""
    by_workflow = {item.file: stamped(item) for item in completed}
    outcomes = await _gather("embedding ", len(copies), Stamper(stub, embed=True).stamp(copies))
    _raise_for([outcome for outcome in outcomes if isinstance(outcome, Failed)])
    done = []
    for outcome in outcomes:
        assert isinstance(outcome, Stamped)
        first = by_workflow.get(outcome.file, outcome)
        if first.stamp.stamp_id != outcome.stamp.stamp_id:
            raise CommandError(f"demo: {outcome.file.name} has another stamp than its workflow's")
        done.append(replace(outcome, created=first.created))
    console.stdout().print(report.by_type(done))
    size = report.readable_bytes(sum(item.file.size for item in done))
    console.say(f"stamped: {report.counted(len(done), 'file')}, {size}")
    return done


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
    console.say("no file here has both an embedded stamp and a letter to change beside it")
    for item in stamped:
        if item.placement == Placement.DETACHED and 0 < item.file.path.stat().st_size <= UNARY_BYTES:
            return await _catch(validator, item.file, change_last(item.file.path.read_bytes()), Verdict.UNSTAMPED)
    console.say("no file here has a byte to change without its stamp")
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
