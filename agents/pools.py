"""Thread pools: for what may wait, and for calls into engines, which may never come back."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

log = logging.getLogger("headwater.pools")

PATIENT_NICE = 10
ATTEMPTS = 16  # far more than a ladder has steps

T = TypeVar("T")


def patient_pool(name: str) -> ThreadPoolExecutor:
    """One thread that lets others go first: encoding what is sent later must not take a core from the frame that has just come.

    Linux has a niceness for each thread (`sched(7)`); elsewhere it is a thread like any other.
    """
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_be_patient)


def _be_patient() -> None:
    if sys.platform != "linux":
        return
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + PATIENT_NICE)
    except OSError as error:  # a sandbox may forbid it; nothing depends on it but latency
        log.info("a thread keeps its priority: %s", error.strerror)


class GivenUp(RuntimeError):
    """A call that hung at each of its attempts."""


class Attempt:
    """One attempt at a call, in one thread. The call says what it is about to do and how long that may take at most."""

    __slots__ = ("_pool", "deadline", "given_up", "number", "thread", "what")

    def __init__(self, pool: LimitedPool, number: int) -> None:
        self._pool = pool
        self.number = number  # 0 for the first
        self.thread = threading.current_thread()
        self.deadline, self.what, self.given_up = float("inf"), -1, False

    def within(self, limit_s: float, what: int) -> None:
        """What begins now is given up if it takes longer than this; `what` tells `LimitedPool.on_hung` what it was."""
        self._pool._limit(self, limit_s, what)


class _Call(Generic[T]):
    __slots__ = ("future", "make", "number")

    def __init__(self, make: Callable[[Attempt], T]) -> None:
        self.make, self.number = make, 0
        self.future: Future[T] = Future()


class LimitedPool:
    """Threads for calls that may hang. A call that does is given up with its thread, `on_hung` is told, and another thread makes the call
    again, before those that wait; the pool keeps its number of threads that work.

    Nothing can end a thread in native code: whoever makes the calls bounds how many are left behind, by not doing again what hangs. They
    are daemons, so that they do not keep a process from its end.

    Parameters
    ----------
    on_hung
        Called with what hung, before the call is made again.
    """

    def __init__(self, workers: int, name: str, on_hung: Callable[[int], None]) -> None:
        self._name, self._on_hung = name, on_hung
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._sooner = threading.Condition(lock)  # a deadline before the one that the watch waits for
        self._watched = float("inf")
        self._waiting: deque[_Call[Any]] = deque()
        self._running: dict[Attempt, _Call[Any]] = {}
        self._left_behind: Counter[int] = Counter()
        self._threads: set[threading.Thread] = set()
        self._closing = False
        for _ in range(workers):
            self._start()
        threading.Thread(target=self._watch, name=f"{name}-watch", daemon=True).start()

    def submit(self, make: Callable[[Attempt], T]) -> Future[T]:
        """Make a call as soon as a thread is free, in the order of submission. Its future fails with `GivenUp` if it hangs ever again."""
        call = _Call(make)
        with self._changed:
            if self._closing:
                call.future.cancel()
            else:
                self._waiting.append(call)
                self._changed.notify()
        return call.future

    @property
    def waiting(self) -> int:
        """How many calls wait for a thread."""
        return len(self._waiting)

    def left_behind(self) -> Counter[int]:
        """How many threads have not come back, by what they were about."""
        with self._changed:
            return +self._left_behind

    def close(self, timeout_s: float = 5.0) -> None:
        """Let go what waits, and wait for what runs; not for what hangs."""
        with self._changed:
            self._closing = True
            calls, self._waiting = list(self._waiting), deque()
            threads = list(self._threads)
            self._changed.notify_all()
            self._sooner.notify()
        for call in calls:
            call.future.cancel()
        until = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    # ---- its threads

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                call = self._waiting.popleft()
                if call.number == 0 and not call.future.set_running_or_notify_cancel():
                    continue
                attempt = Attempt(self, call.number)
                self._running[attempt] = call
            result: Any = None
            failure: BaseException | None = None
            try:
                result = call.make(attempt)
            except BaseException as error:  # noqa: BLE001 - whoever waits for the future gets it
                failure = error
            with self._changed:
                self._running.pop(attempt, None)
                if attempt.given_up:
                    self._left_behind[attempt.what] -= 1
                    return
            if failure is None:
                call.future.set_result(result)
            else:
                call.future.set_exception(failure)
            del call, result, failure  # an idle thread keeps nothing alive

    def _limit(self, attempt: Attempt, limit_s: float, what: int) -> None:
        with self._changed:
            if not attempt.given_up:
                attempt.deadline, attempt.what = time.monotonic() + limit_s, what
                if attempt.deadline < self._watched:
                    self._sooner.notify()

    def _watch(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                hung = [attempt for attempt in self._running if attempt.deadline <= now]
                for attempt in hung:
                    attempt.given_up = True
                    self._left_behind[attempt.what] += 1
                    self._threads.discard(attempt.thread)
                if not hung:
                    if self._closing and not self._running:
                        return
                    self._watched = min((attempt.deadline for attempt in self._running), default=float("inf"))
                    self._sooner.wait(min(self._watched - now, threading.TIMEOUT_MAX))
                    continue
                calls = [self._running.pop(attempt) for attempt in hung]
            for attempt in hung:
                self._on_hung(attempt.what)
            for call in calls:
                self._again(call)

    def _again(self, call: _Call[Any]) -> None:
        call.number += 1
        with self._changed:
            if self._closing or call.number >= ATTEMPTS:
                call.future.set_exception(GivenUp(f"the call hung {call.number} times"))
            else:
                self._waiting.appendleft(call)
                self._changed.notify()
        self._start()
