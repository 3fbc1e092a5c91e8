"""The journal: a small file that says which records are in work, and that outlives the process, however it dies.

Each worker process has a file of its own in the site's folder, mapped into memory: what is written there is the kernel's, so that `kill -9`
keeps it. A lock that ends with the process tells whose file is whose: a file that nobody holds and that was not closed in order is what a
dead worker left (`Remains`). Its size is fixed. What follows from it is decided in `streams/suspects.py`.

Layout: a page of 4096 bytes (header, then the window of step 7), then `SLOTS` slots, one for each pass of work over records of one
partition: a line of numbers, the topic's name, a mark a record, their offsets and append times. The state of a slot is written last, so
that half a slot counts as none; a checksum tells a file that was torn by a power cut.
"""

from __future__ import annotations

import enum
import fcntl
import logging
import mmap
import os
import struct
import time
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import psutil

from schemas.errors import Fault
from streams.message import KafkaRecord

log = logging.getLogger("headwater.journal")

SLOTS = 64
RECORDS = 512  # of one pass at most
MAX_WORKERS = 64  # of one role in one folder
MAX_CRASH_BYTES = 64 << 10
WINDOW = 1000  # records that step 7 looks back on

_MAGIC = b"hwjrnl1\n"
_HEADER = struct.Struct("<8sIIIi40sqq")  # magic, slots, records, state, pid, boot, started (ms), the system's count of memory kills
_STATE = struct.Struct("<I")
_STATE_AT = 16
_WINDOW_AT = 1024
_PAGE = 4096
_SLOT = struct.Struct("<IIIiI")  # busy, checksum, records, partition, bytes of the topic's name
_BUSY = struct.Struct("<I")
_TOPIC_BYTES = 256
_MARKS_AT = 32 + _TOPIC_BYTES
_OFFSETS_AT = _MARKS_AT + RECORDS
_TIMES_AT = _OFFSETS_AT + 8 * RECORDS
_SLOT_BYTES = _TIMES_AT + 8 * RECORDS
SIZE = _PAGE + SLOTS * _SLOT_BYTES

_IN_WORK, _DONE, _CULPRIT = 0, 1, 2  # marks of a record
_SHARED, _ALONE = 1, 2  # values of `busy`; 0: free


class State(enum.IntEnum):
    """Of the process that holds a file."""

    CLOSED = 0
    RUNNING = 1
    STOPPING = 2  # told to stop: if it is killed now, whoever told it had no patience


class JournalUnavailable(Fault, OSError):
    """The journal cannot be kept; the message names the file and what to do."""


class Spot(msgspec.Struct, frozen=True, array_like=True):
    """A record by its place, and by the broker's time, so that a topic that was made anew is not taken for the old one."""

    topic: str
    partition: int
    offset: int
    appended_ms: int

    def __str__(self) -> str:
        return f"{self.topic}@{self.partition}:{self.offset}"


def spot(record: KafkaRecord) -> Spot:
    return Spot(record.topic(), record.partition(), record.offset(), record.timestamp()[1])


class Left(msgspec.Struct, frozen=True):
    """Records of one pass that were in work. `alone`: nothing else was. `culprit`: the one that the watchdog named."""

    spots: tuple[Spot, ...]
    alone: bool
    culprit: Spot | None


class Remains(msgspec.Struct, frozen=True):
    """What a dead worker left. `life` names the process among all. `crash` is what it said as it died; `memory`: the system ended processes
    for want of memory meanwhile; `rebooted`: the machine was started again since."""

    life: str
    state: State
    rebooted: bool
    memory: bool
    crash: str
    passes: tuple[Left, ...]


class Pass:
    """Records in work. `done` is called for each whose work has ended, `close` when none is in work any more."""

    __slots__ = ("_base", "_journal", "alone", "partition", "records", "sending_since", "slot", "stuck_s", "topic")

    def __init__(self, journal: Journal, slot: int, topic: str, partition: int, records: Sequence[KafkaRecord], alone: bool) -> None:
        self._journal, self.slot, self._base = journal, slot, _PAGE + slot * _SLOT_BYTES
        self.topic, self.partition, self.records, self.alone = topic, partition, records, alone
        self.sending_since: float | None = None  # its outputs wait for the broker: no time of the work (seconds, monotonic)
        self.stuck_s = 0.0  # without an answer from the work; kept by the watchdog

    def done(self, index: int) -> None:
        self._journal.map[self._base + _MARKS_AT + index] = _DONE
        self.stuck_s = 0.0

    def unfinished(self) -> list[int]:
        marks = self._journal.map[self._base + _MARKS_AT : self._base + _MARKS_AT + len(self.records)]
        return [index for index, mark in enumerate(marks) if mark != _DONE]

    def accuse(self, index: int) -> None:
        """Name the record that does not end."""
        self._journal.map[self._base + _MARKS_AT + index] = _CULPRIT

    def close(self) -> None:
        self._journal.free(self)


class Journal:
    """The file of this process, held until `close`.

    Parameters
    ----------
    folder
        Of the site's own files; several workers of one role may share it.
    role
        Workers of one role hand suspects to each other.

    Raises
    ------
    JournalUnavailable
        If the file cannot be written, or `MAX_WORKERS` workers hold theirs.
    """

    def __init__(self, folder: Path, role: str) -> None:
        self.folder, self.role = folder / "journal", role
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path, self._file = self._claim()
            self.map = mmap.mmap(self._file, SIZE)
        except OSError as error:
            raise JournalUnavailable(
                f"the journal of {role} in {self.folder} cannot be kept ({error.strerror or error}): "
                "give the site's data folder (data_dir) room and rights to write"
            ) from None
        self.crash_path = self.path.with_suffix(".crash")
        self.passes: dict[int, Pass] = {}
        self._free = list(reversed(range(SLOTS)))
        self._begun = False

    def _claim(self) -> tuple[Path, int]:
        for number in range(MAX_WORKERS):
            path = self.folder / f"{self.role}.{number}.journal"
            file = _locked(path, create=True)
            if file is not None:
                return path, file
        raise OSError(f"{MAX_WORKERS} workers hold theirs")

    def begin(self) -> None:
        """Take the file into use; what a dead worker left in it is gone with that. The window of step 7 stays."""
        self._begun = True
        window = self.map[_WINDOW_AT:_PAGE] if bytes(self.map[:8]) == _MAGIC else b""
        self.map[:] = bytes(SIZE)
        self.map[_WINDOW_AT : _WINDOW_AT + len(window)] = window
        now = time.time_ns() // 1_000_000
        _HEADER.pack_into(self.map, 0, _MAGIC, SLOTS, RECORDS, State.RUNNING, os.getpid(), boot().encode()[:40], now, memory_kills())

    @property
    def window(self) -> memoryview:
        """Bytes that outlive the process, for the limit of dead letters."""
        return memoryview(self.map)[_WINDOW_AT:_PAGE]

    def stopping(self) -> None:
        _STATE.pack_into(self.map, _STATE_AT, State.STOPPING)

    def close(self) -> None:
        """End in order: nothing of this life is suspected. What is still in work then, is: the worker gave up waiting for it."""
        if self.passes:
            self.stopping()
            return
        _STATE.pack_into(self.map, _STATE_AT, State.CLOSED)
        self.map.flush()
        fcntl.flock(self._file, fcntl.LOCK_UN)  # the memory has a descriptor of its own, which goes when nobody refers to it
        os.close(self._file)

    def mark(self, topic: str, partition: int, records: Sequence[KafkaRecord], *, alone: bool) -> Pass:
        """Say that the work on some records (at most `RECORDS`) begins. At most `SLOTS` passes are open at a time."""
        slot = self._free.pop()
        base = _PAGE + slot * _SLOT_BYTES
        name, count = topic.encode(), len(records)
        offsets = array("q", [record.offset() for record in records]).tobytes()
        times = array("q", [record.timestamp()[1] for record in records]).tobytes()
        found = Pass(self, slot, topic, partition, records, alone)
        self.map[base + 32 : base + 32 + len(name)] = name
        self.map[base + _MARKS_AT : base + _MARKS_AT + count] = bytes(count)
        self.map[base + _OFFSETS_AT : base + _OFFSETS_AT + 8 * count] = offsets
        self.map[base + _TIMES_AT : base + _TIMES_AT + 8 * count] = times
        check = _checksum(name, partition, offsets, times)
        _SLOT.pack_into(self.map, base, 0, check, count, partition, len(name))
        _BUSY.pack_into(self.map, base, _ALONE if alone else _SHARED)  # last: half a slot counts as none
        self.passes[slot] = found
        return found

    def free(self, done: Pass) -> None:
        if self.passes.pop(done.slot, None) is not None:
            _BUSY.pack_into(self.map, _PAGE + done.slot * _SLOT_BYTES, 0)
            self._free.append(done.slot)

    def remains(self) -> Iterator[tuple[Path, Remains]]:
        """What dead workers of this role have left, this file's former holder among them. Their files are emptied as the iteration
        goes on, so what is given must be kept by then."""
        for path in sorted(self.folder.glob(f"{self.role}.*.journal")):
            if path == self.path:
                if not self._begun and (found := _read(bytes(self.map), path)) is not None:
                    yield path, found
                continue
            file = _locked(path)
            if file is None:
                continue  # its worker lives
            try:
                found = _read(os.pread(file, SIZE + 1, 0), path)
                if found is not None:
                    yield path, found
                    os.pwrite(file, _STATE.pack(State.CLOSED), _STATE_AT)
            finally:
                os.close(file)


def _locked(path: Path, *, create: bool = False) -> int | None:
    """The file, locked, and of the right size if it is to be created; None if another process holds it."""
    try:
        file = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0) | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if create and os.fstat(file).st_size != SIZE:
            if os.fstat(file).st_size:
                log.warning("the journal's file is not one and is made anew", extra={"path": str(path)})
            os.ftruncate(file, 0)
            os.posix_fallocate(file, 0, SIZE) if hasattr(os, "posix_fallocate") else os.ftruncate(file, SIZE)  # a full disk must say so now
    except BlockingIOError:
        os.close(file)
        return None
    except BaseException:
        os.close(file)
        raise
    return file


def _read(data: bytes, path: Path) -> Remains | None:
    """What a file says of a worker that did not end in order; None if it did, or if the file is no journal."""
    if len(data) != SIZE or data[:8] != _MAGIC:
        if any(data[:8]):
            log.warning("a file is no journal and is passed over", extra={"path": str(path)})
        return None
    _, slots, records, state, pid, boot_then, started_ms, kills = _HEADER.unpack_from(data)
    if state not in (State.RUNNING, State.STOPPING) or (slots, records) != (SLOTS, RECORDS):
        return None
    passes = []
    for slot in range(SLOTS):
        found = _slot(data, _PAGE + slot * _SLOT_BYTES)
        if found is False:
            log.warning("a slot of the journal is torn and is passed over", extra={"path": str(path), "slot": slot})
        elif found is not None and found is not True:
            passes.append(found)
    return Remains(
        life=f"{boot_then.decode(errors='replace').strip(chr(0))}/{pid}/{started_ms}",
        state=State(state),
        rebooted=boot_then.rstrip(b"\0") != boot().encode()[:40],
        memory=memory_kills() > kills,
        crash=_crash(path.with_suffix(".crash")),
        passes=tuple(passes),
    )


def _slot(data: bytes, base: int) -> Left | bool | None:
    """The records of a slot that were in work; None if it is free, False if it is torn, True if all of its work had ended."""
    busy, check, count, partition, length = _SLOT.unpack_from(data, base)
    if busy == 0:
        return None
    if busy not in (_SHARED, _ALONE) or count > RECORDS or length > _TOPIC_BYTES:
        return False
    name = data[base + 32 : base + 32 + length]
    offsets = data[base + _OFFSETS_AT : base + _OFFSETS_AT + 8 * count]
    times = data[base + _TIMES_AT : base + _TIMES_AT + 8 * count]
    if _checksum(name, partition, offsets, times) != check:
        return False
    topic = name.decode(errors="replace")
    marks = data[base + _MARKS_AT : base + _MARKS_AT + count]
    found = [Spot(topic, partition, *each) for each in zip(array("q", offsets), array("q", times), strict=True)]
    left = tuple(each for each, mark in zip(found, marks, strict=True) if mark != _DONE)
    culprit = next((each for each, mark in zip(found, marks, strict=True) if mark == _CULPRIT), None)
    return Left(left, busy == _ALONE, culprit) if left else True


def _checksum(name: bytes, partition: int, offsets: bytes, times: bytes) -> int:
    return zlib.crc32(times, zlib.crc32(offsets, zlib.crc32(name, partition & 0xFFFFFFFF)))


def _crash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_CRASH_BYTES).decode(errors="replace")
    except OSError:
        return ""


def boot() -> str:
    """What names this run of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"


def memory_kills() -> int:
    """How often this system has ended a process for want of memory since it was started; 0 where it does not say."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except (OSError, ValueError, IndexError):
        return 0
