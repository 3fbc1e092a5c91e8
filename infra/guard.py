"""The process between us and a child of ours: it ends the child when we are gone, however we went (a return, Ctrl-C, `kill -9`).

It runs as a script of its own and imports the standard library only, so that it is small and quick to start. `infra.processes` starts it.
We hold one end of a socket and it holds the other: the kernel closes ours when we die. On Linux the child is also bound to the
guard's life (PR_SET_PDEATHSIG, which follows the thread that forked: the guard has one thread only).
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Sequence

STOP, KILL = b"T", b"K"  # what we may send; a closed socket means STOP
PR_SET_PDEATHSIG = 1
LOOK_S = 1.0  # how often the parent's pid is compared: a fork of our parent may hold its end of the socket open
LAST_WAIT_S = 10.0


def guard(lifeline: int, grace_s: float, nice: int, command: Sequence[str]) -> int:
    """Run the command until it ends or must end; returns its wait status.

    Parameters
    ----------
    lifeline
        Descriptor of our end of the socket; the child's pid is written to it first.
    grace_s
        Time from SIGTERM to SIGKILL when the other end is gone.
    """
    parent = os.getppid()
    os.set_inheritable(lifeline, False)
    woken, wakes = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    me = os.getpid()
    begun, begins = os.pipe()  # closes when the command has taken over: no signal of ours can come before it
    pid = os.fork()
    if pid == 0:
        _become(command, nice, parent=me)
    os.close(begins)
    os.read(begun, 1)
    with contextlib.suppress(OSError):  # the other end is gone already: the first poll says so
        os.write(lifeline, f"{pid}\n".encode())

    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    poll.register(woken, select.POLLIN)
    kill_at = give_up_at = float("inf")

    def stop() -> None:
        nonlocal kill_at
        if kill_at == float("inf"):
            kill_at = time.monotonic() + grace_s
            _signal(pid, signal.SIGTERM)

    while True:
        wait_s = max(0.0, min(LOOK_S, kill_at - time.monotonic()))
        for descriptor, _ in poll.poll(wait_s * 1000):
            received = _read(descriptor)
            if descriptor == woken:
                if set(received) - {signal.SIGCHLD}:
                    stop()
            elif KILL in received:
                kill_at = 0.0
            else:
                stop()
                if not received:
                    poll.unregister(lifeline)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _signal_group(pid, signal.SIGKILL)  # what the child left behind
            return status
        now = time.monotonic()
        if os.getppid() != parent:
            stop()
        if now >= give_up_at:
            return signal.SIGKILL
        if now >= kill_at and give_up_at == float("inf"):
            _signal_group(pid, signal.SIGKILL)
            kill_at, give_up_at = now + LAST_WAIT_S, now + LAST_WAIT_S


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 512)
    except ConnectionResetError:  # the other end died with something unread
        return b""


def _become(command: Sequence[str], nice: int, parent: int) -> None:
    """In the fork: a process group of its own, default signals, the command."""
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        if sys.platform == "linux":
            import ctypes

            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != parent:  # the guard died before the line above
                os._exit(125)
        if nice:
            os.nice(nice)
        os.execvp(command[0], list(command))  # noqa: S606 - a fixed argument list, no shell
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended by itself


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        return


def main(arguments: Sequence[str]) -> int:
    """End as the command ended: with its exit code, or by the same signal."""
    status = guard(int(arguments[0]), float(arguments[1]), int(arguments[2]), arguments[3:])
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
