"""Who is suspected of having killed a worker, and when that is proof: what dead workers left in their journals, added up over starts.

What was in work when a worker died is suspected. Suspects are then worked on with nothing else in work, so that the next death names one of
them exactly. It is proof when

- the watchdog has named the record, or
- `FATAL` deaths of its own (a fatal signal, an endless hold of the interpreter, want of memory) met the record alone, or
- `KILLED` deaths without a trace met it alone. Such a death may be a `kill -9` from outside; a record that it met alone waits a random time
  before its next turn, so that kills from outside, even in step with the start, practically never meet one record so often.

A death after the worker was told to stop, and one that a restart of the machine explains, makes suspects and proves nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec

from streams.journal import Journal, Remains, Spot, State

log = logging.getLogger("headwater.journal")

FATAL, KILLED = 2, 4
PASSES = 64  # suspects of one death are worked on in so many passes at most: few of them one by one
MAX_SUSPECTS = 4096
FORGET_MS = 7 * 86_400_000
_STACK_CHARACTERS = 3000

Cause = Literal["crash", "hang", "memory", "killed"]


class ProcessDied(Exception):
    """A record in whose work the process died. `stack` is what is known of where."""

    stack: str = ""


class Crashed(ProcessDied):
    """The process ended by a fatal signal (a segmentation fault, an abort)."""


class Hung(ProcessDied):
    """The work did not end."""


class OutOfMemory(ProcessDied):
    """The system ended the process for want of memory."""


class Killed(ProcessDied):
    """The process ended without a trace."""


_CLASSES: dict[Cause, type[ProcessDied]] = {"crash": Crashed, "hang": Hung, "memory": OutOfMemory, "killed": Killed}


class Suspect(msgspec.Struct, frozen=True):
    """A record that was in work when a worker died: how often, among how many at the last time, and how often alone."""

    spot: Spot
    seen_ms: int
    deaths: int = 0
    among: int = 1
    fatal: int = 0  # deaths that met it alone, with a trace
    killed: int = 0  # and without
    named: bool = False
    cause: Cause = "killed"
    said: str = ""
    buried: bool = False  # its dead letter is written; if the record is read again before that is committed, it is passed over

    @property
    def proven(self) -> bool:
        return self.named or self.fatal >= FATAL or self.fatal + self.killed >= KILLED

    def error(self) -> ProcessDied:
        """What its dead letter says."""
        first = self.said.strip().partition("\n")[0][:200] or "without a trace (kill -9, or the system for want of memory)"
        alone = self.fatal + self.killed
        proof = "the watchdog named it" if self.named else f"{alone} times with nothing else in work"
        times = "once" if self.deaths == 1 else f"{self.deaths} times"
        error = _CLASSES[self.cause](f"the process ended {times} while this record was in work ({proof}): {first}")
        error.stack = self.said[:_STACK_CHARACTERS]
        return error


class _Kept(msgspec.Struct):
    suspects: list[Suspect] = []
    lives: dict[str, str] = {}  # by file: the last life that was counted, so that none counts twice


class Suspects:
    """The suspects of one role in one folder, shared by its workers: a small file, replaced as a whole, under a lock.

    Parameters
    ----------
    now_ms
        Milliseconds since 1970, by which suspects that nobody meets again are forgotten.
    """

    def __init__(self, journal: Journal, now_ms: Callable[[], float] = lambda: time.time() * 1000) -> None:
        self._journal, self._now_ms = journal, now_ms
        self.path = journal.folder / f"{journal.role}.suspects"
        self._known: dict[Spot, Suspect] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, spot: Spot) -> Suspect | None:
        return self._known.get(spot)

    def awaited(self, topic: str, partition: int) -> bool:
        """Whether there are any of a partition whose guilt is still open: meanwhile its batches come one after another."""
        return any(not each.buried and each.spot.topic == topic and each.spot.partition == partition for each in self._known.values())

    def look(self) -> list[Remains]:
        """Take in what workers have left that died since the last look; returns that."""
        found: list[Remains] = []
        with self._locked() as kept:
            for path, remains in self._journal.remains():
                if kept.lives.get(path.name) != remains.life:
                    kept.lives[path.name] = remains.life
                    kept.suspects = count(kept.suspects, remains, int(self._now_ms()))
                    found.append(remains)
                    self._write(kept)  # before their file is emptied
            self._known = {each.spot: each for each in kept.suspects}
        for remains in found:
            log.error(
                "a worker died with records in work",
                extra={
                    "life": remains.life,
                    "cause": cause_of(remains),
                    "records": sum(len(each.spots) for each in remains.passes),
                    "said": remains.crash.strip()[:2000],
                },
            )
        return found

    def clear(self, spots: Iterable[Spot]) -> None:
        """Their work has ended and the process lives: they are innocent."""
        cleared = set(spots) & self._known.keys()
        if cleared:
            self._change(lambda each: None if each.spot in cleared else each)

    def bury(self, spot: Spot) -> None:
        """The dead letter of a guilty record is written."""
        self._change(lambda each: msgspec.structs.replace(each, buried=True) if each.spot == spot else each)

    def _change(self, change: Callable[[Suspect], Suspect | None]) -> None:
        with self._locked() as kept:
            kept.suspects = [after for each in kept.suspects if (after := change(each)) is not None]
            self._write(kept)
            self._known = {each.spot: each for each in kept.suspects}

    @contextlib.contextmanager
    def _locked(self) -> Iterator[_Kept]:
        with open(self.path.with_suffix(".lock"), "ab") as lock:  # closing it ends the lock
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._read()

    def _read(self) -> _Kept:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return _Kept()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("the file of suspects cannot be read and is made anew: %s", error, extra={"path": str(self.path)})
            return _Kept()

    def _write(self, kept: _Kept) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(kept))
        os.replace(fresh, self.path)


def count(known: Iterable[Suspect], remains: Remains, now_ms: int) -> list[Suspect]:
    """The suspects after one more death, the most suspected first, bounded. Pure."""
    found = {each.spot: each for each in known if now_ms - each.seen_ms <= FORGET_MS}
    cause = cause_of(remains)
    proves = remains.state is State.RUNNING and not remains.rebooted
    in_work = sum(len(each.spots) for each in remains.passes)
    for left in remains.passes:
        for spot in left.spots:
            old = found.get(spot) or Suspect(spot, now_ms)
            met_alone = proves and in_work == 1 and left.alone
            named = spot == left.culprit
            found[spot] = Suspect(
                spot,
                now_ms,
                deaths=old.deaths + 1,
                among=in_work,
                fatal=old.fatal + (met_alone and cause != "killed"),
                killed=old.killed + (met_alone and cause == "killed"),
                named=old.named or named,
                cause=cause if cause != "killed" or named else old.cause,
                said=told(remains.crash) if remains.crash.strip() else old.said,
            )
    ordered = sorted(found.values(), key=lambda each: (each.named, each.fatal + each.killed, each.seen_ms, each.deaths), reverse=True)
    return ordered[:MAX_SUSPECTS]


def cause_of(remains: Remains) -> Cause:
    """What the dead worker's last words, or the system's own count, say of its end."""
    if remains.crash.startswith(("Hung", "Timeout")):
        return "hang"
    if "Fatal Python error" in remains.crash:
        return "crash"
    return "memory" if remains.memory else "killed"


_NOISE = re.compile(r"^Extension modules:.*\n?", re.MULTILINE)
_CURRENT = re.compile(r"^(Current thread|Thread 0x\w+ of the work)", re.MULTILINE)


def told(crash: str) -> str:
    """Last words cut to what matters: their first line, then the thread that they came from."""
    first, _, rest = _NOISE.sub("", crash).strip().partition("\n")
    at = _CURRENT.search(rest)
    return f"{first}\n{rest[at.start() if at else 0 :].strip()}"[:_STACK_CHARACTERS]


def chunk_of(suspect: Suspect) -> int:
    """How many suspects of one death are worked on together, with nothing else in work."""
    return max(1, -(-suspect.among // PASSES))
