"""Child processes that never outlive us: nothing is left behind after a return, Ctrl-C, SIGTERM or `kill -9` of the parent.

Each child runs under a guard (`infra.guard`), in a session of its own: the terminal's Ctrl-C reaches only us, and we stop our children
in order. `Group` looks after several of them, brokers included, and may start again what fell over. What is run is not known here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Protocol, Self

from infra import guard
from schemas.errors import Fault

log = logging.getLogger("headwater.processes")

START_TIMEOUT_S = 20.0
LOG_BYTES = 8 << 20  # a larger log is set aside when a child starts: at most two of them per child


class ProcessFailed(Fault, RuntimeError):
    """A process could not be started; the message says which and why."""


class Service(Protocol):
    """What `Group` looks after: a child process, a broker."""

    @property
    def name(self) -> str: ...
    def start(self) -> object: ...
    def stop(self, timeout_s: float) -> object: ...
    def poll(self) -> int | None: ...


class Child:
    """One child process.

    Parameters
    ----------
    name
        Its name in logs and messages.
    argv
        The command; the first item is looked up in PATH.
    env
        Its whole environment; None: ours.
    log_path
        File that its output is appended to; None: it writes where we write.
    nice
        Added to its niceness; 10 lets others go first.
    grace_s
        Time between SIGTERM and SIGKILL when we are gone and nobody calls `stop`.
    pass_fds
        Descriptors that stay open in it.
    detached
        Let it live on without us (a daemon): no guard, and `stop` is the only end that we make for it.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        nice: int = 0,
        *,
        grace_s: float = 10.0,
        pass_fds: Sequence[int] = (),
        detached: bool = False,
    ) -> None:
        self.name = name
        self.argv = tuple(argv)
        self.env = env
        self.log_path = log_path
        self.nice = nice
        self.grace_s = grace_s
        self.pass_fds = tuple(pass_fds)
        self.detached = detached
        self.pid: int | None = None  # of the command itself, not of its guard
        self._popen: subprocess.Popen[bytes] | None = None
        self._lifeline: socket.socket | None = None

    def start(self) -> Self:
        """Start it; a child that has ended can be started again.

        Raises
        ------
        ProcessFailed
            If the command is not there, its log cannot be written, or it did not come up.
        """
        if self.poll() is None and self._popen is not None:
            raise ProcessFailed(f"{self.name} is running already (pid {self.pid})")
        path = (self.env or os.environ).get("PATH")
        command = shutil.which(self.argv[0], path=path)
        if command is None:
            raise ProcessFailed(f"{self.name} cannot be started: there is no program {self.argv[0]}")
        argv = [command, *self.argv[1:]]
        try:
            with self._output() as output:
                if self.detached:
                    self._popen = self._spawn(argv if not self.nice else ["nice", "-n", str(self.nice), *argv], output, self.pass_fds)
                    self.pid = self._popen.pid
                else:
                    self._start_guarded(argv, output)
        except OSError as error:
            raise ProcessFailed(f"{self.name} cannot be started: {error}") from None
        log.info("process started", extra={"child": self.name, "pid": self.pid})
        return self

    def poll(self) -> int | None:
        """Exit code if it has ended (negative: the signal that ended it), else None."""
        code = self._popen.poll() if self._popen else None
        if code is not None and self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None
        return code

    def wait(self, timeout_s: float) -> int:
        """Wait for its end; raises `TimeoutError`."""
        if self._popen is None:
            raise ProcessFailed(f"{self.name} was not started")
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} (pid {self.pid}) did not end within {timeout_s:g} s") from None
        code = self.poll()
        assert code is not None
        return code

    def stop(self, timeout_s: float = 10.0) -> int | None:
        """SIGTERM, and SIGKILL to all its process group if it has not ended in time. Returns its exit code; None: it was never started."""
        if self._popen is None or self.poll() is not None:
            return self.poll()
        self._ask(guard.STOP, signal.SIGTERM)
        try:
            return self.wait(timeout_s)
        except TimeoutError:
            log.warning("process does not stop, killing it", extra={"child": self.name, "pid": self.pid, "after_s": timeout_s})
            self._ask(guard.KILL, signal.SIGKILL)
            return self.wait(guard.LAST_WAIT_S + 5)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_guarded(self, argv: Sequence[str], output: IO[bytes] | None) -> None:
        ours, theirs = socket.socketpair()
        guarded = [sys.executable, "-I", "-S", guard.__file__, str(theirs.fileno()), str(self.grace_s), str(self.nice), *argv]
        try:
            with theirs:
                self._popen = self._spawn(guarded, output, (*self.pass_fds, theirs.fileno()))
            ours.settimeout(START_TIMEOUT_S)
            with ours.makefile("rb") as reader:
                line = reader.readline(32)
            if not line:
                raise ProcessFailed(f"{self.name} cannot be started: its guard ended with code {self._popen.wait(START_TIMEOUT_S)}")
        except BaseException:
            ours.close()  # the guard ends the child if there is one
            raise
        self.pid, self._lifeline = int(line), ours

    def _spawn(self, argv: Sequence[str], output: IO[bytes] | None, pass_fds: Sequence[int]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output and subprocess.STDOUT,
            env=self.env,
            pass_fds=pass_fds,
            start_new_session=True,
        )

    @contextlib.contextmanager
    def _output(self) -> Iterator[IO[bytes] | None]:
        if self.log_path is None:
            yield None
            return
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES:
            self.log_path.replace(self.log_path.with_name(self.log_path.name + ".1"))
        with self.log_path.open("ab") as output:
            yield output

    def _ask(self, request: bytes, number: signal.Signals) -> None:
        with contextlib.suppress(OSError):  # it ended meanwhile
            if self._lifeline is not None:
                self._lifeline.sendall(request)
            elif self.pid is not None:
                os.killpg(self.pid, number)


class Group:
    """Several services, started in order and stopped in the reverse order.

    Parameters
    ----------
    restarts
        How often one service may be started again after it ended with an error, within `within_s`; 0: never.
    crashes
        How often after it was ended by a signal, or with a code of `crashed`; None: as `restarts` says. A program that says why it ends has
        a fault that starting again seldom mends. One that a signal ends (a fatal one, `kill -9`, want of memory) had no say: a worker then
        needs a few starts to find the record that does it, and each record of that kind needs them anew.
    backoff_s
        Pause before the first restart; doubled each time, at most 30 s, until the service has stayed up for `healthy_s`.
    final
        Exit codes that starting again cannot mend.
    """

    def __init__(
        self,
        *,
        restarts: int = 0,
        crashes: int | None = None,
        crashed: frozenset[int] = frozenset(),
        within_s: float = 600.0,
        backoff_s: float = 1.0,
        healthy_s: float = 60.0,
        final: frozenset[int] = frozenset(),
    ) -> None:
        self.restarts = restarts
        self.crashes = restarts if crashes is None else crashes
        self.crashed = crashed
        self.healthy_s = healthy_s
        self.final = final
        self.within_s = within_s
        self.backoff_s = backoff_s
        self.services: list[Service] = []
        self._restarted: dict[tuple[str, bool], deque[float]] = {}  # by name, and whether it had crashed
        self._started: dict[str, float] = {}
        self._short_lives: dict[str, int] = {}
        self._due: dict[str, float] = {}

    def start(self, service: Service) -> None:
        """Start a service and look after it from now on; if its start fails it is stopped again."""
        self.services.append(service)
        self._started[service.name] = time.monotonic()
        service.start()

    def adopt(self, service: Service) -> None:
        """Look after a service that was started elsewhere."""
        self.services.append(service)

    def ended(self) -> Service | None:
        """The first service that has ended and is not to be started again; starts those that are due."""
        now = time.monotonic()
        for service in self.services:
            code = service.poll()
            if code is None:
                continue
            if service.name in self._due:
                if now >= self._due[service.name]:
                    del self._due[service.name]
                    self._start_again(service)
            elif code == 0 or code in self.final or not self._may_restart(service.name, code, now):
                return service
            else:
                log.warning("service ended, starting it again", extra={"service": service.name, "code": code})
        return None

    def watch(self, timeout_s: float, until: Callable[[], bool] = lambda: False, every_s: float = 0.1) -> Service | None:
        """Look after the services until one has ended for good (it is returned), `until()` holds or the time is over (None)."""
        deadline = time.monotonic() + timeout_s
        pause = threading.Event()
        while (service := self.ended()) is None and not until() and time.monotonic() < deadline:
            pause.wait(min(every_s, max(0.0, deadline - time.monotonic())))
        return service

    def stop(self, timeout_s: float = 20.0) -> None:
        """Stop all, the last started first; each has what is left of the time, and a second at least."""
        deadline = time.monotonic() + timeout_s
        with contextlib.ExitStack() as stack:  # an error while one is stopped does not keep the others running
            for service in self.services:
                stack.callback(_stop_one, service, deadline)
        self.services.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_again(self, service: Service) -> None:
        self._started[service.name] = time.monotonic()
        try:
            service.start()
        except RuntimeError as error:  # it counts as one more end: the limit holds
            log.warning("service did not start again", extra={"service": service.name, "cause": str(error)})

    def _may_restart(self, name: str, code: int, now: float) -> bool:
        crashed = code < 0 or code in self.crashed
        past = self._restarted.setdefault((name, crashed), deque())
        while past and now - past[0] > self.within_s:
            past.popleft()
        if len(past) >= (self.crashes if crashed else self.restarts):
            return False
        lived_s = now - self._started.get(name, now)
        short = 0 if lived_s >= self.healthy_s else self._short_lives.get(name, 0)
        self._short_lives[name] = short + 1
        self._due[name] = now + min(30.0, self.backoff_s * 2.0 ** min(short, 16))
        past.append(now)
        return True


def _stop_one(service: Service, deadline: float) -> None:
    service.stop(max(1.0, deadline - time.monotonic()))


class Terminated(SystemExit):
    """SIGTERM or SIGHUP arrived: the program ends in order, with the exit code of that signal."""


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise `Terminated` in the main thread, so that `finally` and `with` clean up as after Ctrl-C."""

    def end(number: int, _: FrameType | None) -> None:
        raise Terminated(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
