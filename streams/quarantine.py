"""Quarantine: step 6 of the delivery protocol in a running worker. It marks what is in work in the journal, lets suspects be worked on with
nothing else in work, says whose guilt is proven, and watches that work ends.

Two watchmen look for work that does not end. A thread counts the time in which a pass gave no answer, leaving out what its outputs waited
for the broker, and what the process itself stood still; it can name the record if it is one, tells the stacks, and ends the process. Where
native code never gives the interpreter back, no Python thread runs: there faulthandler's own timer tells the stacks and ends the process.
A supervisor starts it again. Fatal signals are told by faulthandler too, into the same file beside the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import random
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from mode import Service

from streams.journal import RECORDS, SLOTS, Journal, Pass, spot
from streams.message import KafkaRecord
from streams.suspects import ProcessDied, Suspects, chunk_of

log = logging.getLogger("headwater.delivery")

HUNG = 70  # exit code (EX_SOFTWARE of sysexits.h): work did not end; starting again is what helps
LOOK_S = 1.0
WAIT_S = (1.0, 3.0)  # before a record that a death without a trace met alone has its next turn
GRACE = 1.25  # faulthandler's timer fires so much later than the thread does
_IDLE = {"wait", "select", "poll", "_worker", "accept", "_serve", "_watch", "_recv_bytes", "get", "acquire"}


class Quarantine(Service):
    """Of one worker process. A service: it ends in order with the worker, and from then on nothing of this life is suspected.

    Parameters
    ----------
    folder, role
        Where the journal lies, and whose it is.
    work_limit_s
        How long work may give no answer before the process is ended.
    process
        Whether it may watch the whole process: fatal signals, and work that does not end. Tests in one process do without.

    Raises
    ------
    JournalUnavailable
        If the journal cannot be kept.
    """

    def __init__(self, folder: Path, role: str, *, work_limit_s: float = 120.0, process: bool = True, **kwargs: Any) -> None:
        self.work_limit_s, self._process = work_limit_s, process
        self.journal = Journal(folder, role)
        self.suspects = Suspects(self.journal)
        self.suspects.look()
        self.journal.begin()
        self.window = self.journal.window
        self._looked_at = time.monotonic()
        self._gate = _Gate(SLOTS)
        self._turns: dict[tuple[str, int], asyncio.Lock] = {}
        self._halt = threading.Event()
        self._last_words: IO[bytes] = self.journal.crash_path.open("wb", buffering=0)  # what was in it is told by now
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if process:
            faulthandler.enable(self._last_words, all_threads=True)
            self._arm()  # before anything is in work: the thread may not come to it in time
            self._thread.start()
        super().__init__(**kwargs)

    # ---- for delivery

    async def portions(
        self, topic: str, partition: int, records: Sequence[KafkaRecord]
    ) -> AsyncGenerator[tuple[Sequence[KafkaRecord], bool], None]:
        """The records in their order, cut into what may be worked on together, and whether nothing else may be in work meanwhile. While
        there are suspects in a partition, its batches come one after another."""
        if time.monotonic() - self._looked_at >= LOOK_S:
            self._looked_at = time.monotonic()
            self.suspects.look()  # a worker may have died whose partitions are ours by now
        if not len(self.suspects):
            for at in range(0, len(records), RECORDS):
                yield records[at : at + RECORDS], False
            return
        turn = self._turns.setdefault((topic, partition), asyncio.Lock())
        async with turn if self.suspects.awaited(topic, partition) else contextlib.nullcontext():
            for portion in self._cut(records):
                suspect = self.suspects.get(spot(portion[0]))
                if suspect is not None and suspect.killed and not suspect.proven:
                    await asyncio.sleep(random.uniform(*WAIT_S))  # noqa: S311 - only to be out of step
                yield portion, suspect is not None

    def _cut(self, records: Sequence[KafkaRecord]) -> Iterator[Sequence[KafkaRecord]]:
        start = 0
        while start < len(records):
            suspect = self.suspects.get(spot(records[start]))
            size = RECORDS if suspect is None else 1 if suspect.proven or suspect.fatal or suspect.killed else chunk_of(suspect)
            end = start + 1
            while end < min(len(records), start + size):
                other = self.suspects.get(spot(records[end]))
                if (other is None) != (suspect is None) or (other is not None and (other.proven or other.fatal or other.killed)):
                    break
                end += 1
            yield records[start:end]
            start = end

    def guilt(self, record: KafkaRecord) -> ProcessDied | None:
        """Why a record must not be worked on any more; None if it may. Such a record is buried, unless `is_buried`."""
        suspect = self.suspects.get(spot(record)) if len(self.suspects) else None
        return suspect.error() if suspect is not None and suspect.proven else None

    def is_buried(self, record: KafkaRecord) -> bool:
        """Whether the dead letter of a guilty record was written before, by a worker that died before it could commit."""
        suspect = self.suspects.get(spot(record))
        return suspect is not None and suspect.buried

    @contextlib.asynccontextmanager
    async def work(self, topic: str, partition: int, records: Sequence[KafkaRecord], *, alone: bool) -> AsyncIterator[Pass]:
        """While some records (at most `RECORDS`) are in work. `alone`: with nothing else; they are cleared when it has ended."""
        async with self._gate.entered(alone):
            found = self.journal.mark(topic, partition, records, alone=alone)
            try:
                yield found
            finally:
                found.close()
        if alone:
            self.suspects.clear(map(spot, records))

    def buried(self, record: KafkaRecord) -> None:
        """The dead letter of a guilty record is written."""
        self.suspects.bury(spot(record))

    # ---- life cycle

    def stopping(self) -> None:
        """The worker was told to stop: who kills it from now on had no patience."""
        if not self._halt.is_set():
            self.journal.stopping()

    async def on_stop(self) -> None:
        self.close()

    def close(self) -> None:
        """End in order."""
        if self._halt.is_set():
            return
        self._halt.set()
        if self._process:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.disable()
            self._thread.join(5)
        self.journal.close()
        self._last_words.close()
        self.journal.crash_path.unlink(missing_ok=True)

    # ---- the watchmen

    def _arm(self) -> None:
        """Wind up faulthandler's timer."""
        faulthandler.dump_traceback_later(self.work_limit_s * GRACE, exit=True, file=self._last_words)

    def _watch(self) -> None:
        tick = min(1.0, self.work_limit_s / 10)
        rearm_s, armed_at, last = self.work_limit_s * (GRACE - 1), float("-inf"), time.monotonic()
        while not self._halt.wait(tick):
            now = time.monotonic()
            passed, last = min(now - last, 2 * tick), now  # a process that stood still (SIGSTOP, a machine put to sleep) has not worked
            if now - armed_at >= rearm_s:
                armed_at = now
                self._arm()
            passes = list(self.journal.passes.values())
            if any(each.sending_since is not None and now - each.sending_since > tick / 2 for each in passes):
                continue  # the broker is slow: what waits for these passes is not stuck
            for each in passes:
                each.stuck_s += passed
            if stuck := [each for each in passes if each.stuck_s >= self.work_limit_s]:
                self._end(stuck)

    def _end(self, stuck: list[Pass]) -> None:
        """Say what does not end, name it in the journal if it is one record, and end the process."""
        left = [(each, index) for each in stuck for index in each.unfinished()]
        named = left[0] if len(left) == 1 else None
        if named is not None:
            named[0].accuse(named[1])
        places = [str(spot(each.records[index])) for each, index in left[:20]]
        said = f"Hung: no answer from the work within {self.work_limit_s:g} s ({', '.join(places[:3])}{', ...' if len(places) > 3 else ''})"
        stacks = _stacks()
        os.write(self._last_words.fileno(), f"{said}\n{stacks}\n".encode(errors="backslashreplace")[: 48 << 10])
        log.critical(
            "work does not end and the process ends: %s\n%s",
            said,
            stacks[:8000],
            extra={"records": places, "count": len(left), "named": named is not None, "limit_s": self.work_limit_s},
        )
        for handler in (*logging.getLogger().handlers, *log.handlers):
            handler.flush()
        os._exit(HUNG)


def _stacks() -> str:
    """The stacks of all threads, those first that do something; a thread that only waits says nothing of the work."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    busy: list[tuple[str, int, str]] = []
    idle: list[tuple[str, int, str]] = []
    for ident, frame in sys._current_frames().items():
        if ident == threading.get_ident():
            continue
        text = "".join(traceback.format_stack(frame, limit=40))
        (idle if frame.f_code.co_name in _IDLE else busy).append((names.get(ident, "unknown"), ident, text))
    found = [f"Thread {ident:#x} of the work ({name}):\n{text}" for name, ident, text in busy]
    return "\n".join(found + [f"Thread {ident:#x} that waits ({name}):\n{text}" for name, ident, text in idle])


class _Gate:
    """Lets many in together, up to `places`, or one alone, in the order in which they come."""

    def __init__(self, places: int) -> None:
        self._places, self._inside, self._alone = places, 0, False
        self._queue: deque[tuple[bool, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def entered(self, alone: bool) -> AsyncIterator[None]:
        if self._queue or not self._fits(alone):
            await self._wait(alone)
        else:
            self._take(alone)
        try:
            yield
        finally:
            self._leave()

    def _fits(self, alone: bool) -> bool:
        return not self._inside if alone else not self._alone and self._inside < self._places

    def _take(self, alone: bool) -> None:
        self._inside, self._alone = self._inside + 1, alone

    async def _wait(self, alone: bool) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((alone, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._admit()
            else:
                self._leave()  # it was let in just now
            raise

    def _leave(self) -> None:
        self._inside, self._alone = self._inside - 1, False
        self._admit()

    def _admit(self) -> None:
        while self._queue:
            alone, turn = self._queue[0]
            if not turn.done():
                if not self._fits(alone):
                    return
                self._take(alone)
                turn.set_result(None)
            self._queue.popleft()
