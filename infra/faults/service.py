"""One process or broker under faults: killed, stopped, frozen, and started again as a service manager would. Every death is noted with the
signal that caused it, so that a fault can be shown to have happened.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from schemas.errors import Fault

DEATH_LIMIT_S = 20.0
NEEDS_A_PERSON = 78  # `headwater run`: starting again would not mend it


class FaultDidNotHappen(Fault, RuntimeError):
    """What was to be broken did not break: nothing that follows would show anything."""


class Life(Protocol):
    """What can be started and ends by itself: `infra.processes.Child`, `infra.kafka.broker.Broker`."""

    @property
    def pid(self) -> int | None: ...
    def start(self) -> object: ...
    def poll(self) -> int | None: ...
    def stop(self, timeout_s: float) -> int | None: ...


class Death(msgspec.Struct, frozen=True):
    """An end: whose, when (seconds since 1970), and its code (negative: the signal)."""

    service: str
    pid: int
    code: int
    at: float


class Service:
    """A life that is kept up.

    Parameters
    ----------
    restart_s
        Pause before it is started again after an end that nobody asked for.
    ready
        Whether it takes records now.
    """

    def __init__(self, name: str, life: Life, *, restart_s: float = 0.5, ready: Callable[[], bool] = lambda: True) -> None:
        self.name, self.life, self.ready, self.restart_s = name, life, ready, restart_s
        self.deaths: list[Death] = []
        self.wanted = False
        self.refusal = ""  # why it could not be started again the last time
        self._lock = threading.RLock()
        self._noted = True
        self._pid = 0
        self._due = 0.0

    @property
    def pid(self) -> int:
        return self.life.pid or 0

    @property
    def alive(self) -> bool:
        return bool(self._pid) and self.life.poll() is None

    @property
    def gave_up(self) -> bool:
        """It ended saying that only a person can mend it."""
        return self.wanted and not self.alive and bool(self.deaths) and self.deaths[-1].code == NEEDS_A_PERSON

    def start(self) -> None:
        with self._lock:
            self.wanted = True
            self._begin()

    def adopt(self) -> None:
        """Keep up what was started already."""
        with self._lock:
            self.wanted, self._pid, self._noted = True, self.pid, False

    def stop(self, timeout_s: float = 40.0) -> Death:
        """SIGTERM, and wait; it stays down until `start`."""
        with self._lock:
            self.wanted = False
            self._note()
            if self.alive:
                self._thaw()
                self.life.stop(timeout_s)
            self._note()
            return self.deaths[-1]

    def kill(self, number: int = signal.SIGKILL, *, stay_down: bool = False) -> Death:
        """Send a signal that ends it and wait for the end; raises `FaultDidNotHappen` if it ended otherwise, or not at all."""
        with self._lock:
            self.wanted = self.wanted and not stay_down
            if not self.alive:
                raise FaultDidNotHappen(f"{self.name} is not running: it cannot be killed")
            pid = self.pid
            os.kill(pid, number)
            end = time.monotonic() + DEATH_LIMIT_S
            while self.life.poll() is None:
                if time.monotonic() > end:
                    raise FaultDidNotHappen(f"{self.name} (pid {pid}) lives on {DEATH_LIMIT_S:g} s after signal {number}")
                time.sleep(0.01)
            self._note()
        death = self.deaths[-1]
        if death.pid != pid or (number == signal.SIGKILL and death.code not in (-number, 128 + number)):
            raise FaultDidNotHappen(f"{self.name} (pid {pid}) ended with code {death.code}, not by signal {number}")
        return death

    def freeze(self) -> None:
        """SIGSTOP: it lives, and does nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        with self._lock:
            self._thaw()

    def keep(self) -> None:
        """Start it again if it has ended and is wanted, after its pause. Called again and again."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if not self._pid or self.life.poll() is None:
                return
            self._note()
            if self.wanted and time.monotonic() >= self._due and self.deaths[-1].code != NEEDS_A_PERSON:
                try:
                    self._begin()
                except Fault as error:  # a service manager tries again: the disk may have room by then
                    self.refusal, self._due = str(error), time.monotonic() + 2 * self.restart_s
        finally:
            self._lock.release()

    def _begin(self) -> None:
        self._note()
        self.life.start()
        self._pid, self._noted = self.pid, False

    def _note(self) -> None:
        """Write down its end, once."""
        if self._noted or (code := self.life.poll()) is None:
            return
        self._noted = True
        self._due = time.monotonic() + self.restart_s
        self.deaths.append(Death(self.name, self._pid, code, time.time()))

    def _thaw(self) -> None:
        try:
            os.kill(self.pid, signal.SIGCONT)
        except ProcessLookupError:
            return  # it was killed while it was frozen


class Keeper:
    """Looks after services, each in a thread of its own: a broker that is slow to start holds up nobody."""

    EVERY_S = 0.1

    def __init__(self) -> None:
        self.services: list[Service] = []
        self.error: Exception | None = None
        self._halt = threading.Event()
        self._threads: list[threading.Thread] = []

    def add(self, service: Service) -> None:
        self.services.append(service)
        thread = threading.Thread(target=self._run, args=(service,), name=f"keeper-{service.name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """Stop looking, then stop the services, the last one first."""
        self._halt.set()
        for thread in self._threads:
            thread.join(60)
        for service in reversed(self.services):
            service.wanted = False
            if service.alive:
                service.stop()

    def _run(self, service: Service) -> None:
        while not self._halt.wait(self.EVERY_S):
            try:
                service.keep()
            except Exception as error:  # noqa: BLE001 - shown by whoever waits for the fleet
                self.error = error
                return
