"""The script through which every child starts: it becomes a program that ends with its parent, or stays beside it as its guard.

`python -I -S launcher.py SPEC PROGRAM ARGUMENT...`, SPEC being the JSON of a `Spec`. It runs by its path and imports nothing but
the standard library, because it stands before each start. The parent's side is child.py.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time
from typing import NamedTuple, NoReturn

PR_SET_PDEATHSIG, PR_SET_SECUREBITS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 28, 47, 2
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
CAPABILITY_VERSION_3 = 0x20080522
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
CANNOT_RUN = 126


class Spec(NamedTuple):
    """How the program is to be run. With a lifeline the launcher stays as a guard; without, the kernel watches (Linux)."""

    parent: int
    stop_signal: int
    """What the program gets when the parent is gone."""
    lifeline: int | None
    """The read end of a pipe whose write end only the parent holds: its end of file is the parent's."""
    patience: float
    """Seconds that a guard gives the program after `stop_signal` before SIGKILL."""
    user: tuple[int, int] | None
    """uid and gid to become, or None to stay."""
    capability: int | None
    """The one capability that this user keeps, or None."""


def main() -> NoReturn:
    spec, program = Spec(*json.loads(sys.argv[1])), sys.argv[2:]
    try:
        if spec.lifeline is None:
            _become(spec, program)
        _guard(spec, spec.lifeline, program)
    except OSError as error:
        print(f"{program[0]}: {error}", file=sys.stderr, flush=True)
        os._exit(CANNOT_RUN)


def _become(spec: Spec, program: list[str]) -> NoReturn:
    if spec.user is not None:
        _change_user(*spec.user, spec.capability)
    if spec.lifeline is None:
        _end_with_parent(spec)
    # An ignored SIGINT (a shell's background job) or a blocked signal would be inherited over exec.
    for number in FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execv(program[0], program)  # noqa: S606 (no shell is the point: the program must have this very pid)


def _change_user(uid: int, gid: int, capability: int | None) -> None:
    if capability is not None:
        # Without this bit access(2) leaves capabilities out for a real uid that is not root, and PostgreSQL looks for its own
        # executable by access(2); with it, setuid also leaves the capabilities alone, to be cut down below.
        _prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    os.setgroups([gid])
    os.setgid(gid)
    os.setuid(uid)
    if capability is not None:
        _keep_only(capability)


def _keep_only(capability: int) -> None:
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    mask = 1 << capability
    data = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
    _checked(ctypes.CDLL(None, use_errno=True).capset(header, data))
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)


def _end_with_parent(spec: Spec) -> None:
    # After the change of user, which clears it.
    _prctl(PR_SET_PDEATHSIG, spec.stop_signal)
    # A parent that died before the line above sends nothing any more.
    if os.getppid() != spec.parent:
        os._exit(CANNOT_RUN)


def _prctl(option: int, *arguments: int) -> None:
    words = [ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)[:4]]
    _checked(ctypes.CDLL(None, use_errno=True).prctl(option, *words))


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _guard(spec: Spec, lifeline: int, program: list[str]) -> NoReturn:
    # Nothing may arrive between the fork and the handlers that pass it on.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    child = os.fork()
    if child == 0:
        os.close(lifeline)
        _become(spec, program)
    awake = _forward_signals(child)
    status = _watch(child, lifeline, awake, spec)
    _end_as(status)


def _forward_signals(child: int) -> int:
    awake, waker = os.pipe()
    os.set_blocking(waker, False)
    os.set_blocking(awake, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in FORWARDED:
        signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    return awake


def _watch(child: int, lifeline: int, awake: int, spec: Spec) -> int:
    """Wait for the child's end, which the lifeline's end brings about; its wait status."""
    watched = [awake, lifeline]
    deadline: float | None = None
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        ready, _, _ = select.select(
            watched, [], [], None if deadline is None else max(0.0, deadline - time.monotonic())
        )
        if awake in ready:
            os.read(awake, 512)
        if lifeline in ready:
            watched.remove(lifeline)
            deadline = time.monotonic() + spec.patience
            os.kill(child, spec.stop_signal)


def _end_as(status: int) -> NoReturn:
    """End as the child did, so that the parent sees its status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main()
