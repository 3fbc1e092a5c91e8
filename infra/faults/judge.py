"""The judge at work: reads the manifests and both clusters as they grow, by librdkafka alone, and keeps the book (`infra.faults.book`)."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from infra.faults.book import Book
from infra.faults.manifest import Reading
from infra.faults.oracle import EvidenceOracle, Oracle
from infra.faults.raw import Admin, Reader

_LEAF = ("frames", "verdicts", "region.verdicts", "results", "alerts", "drops", "epochs", "escalations", "escalations.alerts")
_LETTERS = ".dlq"
PATIENCE = 5


class Settled(msgspec.Struct, frozen=True):
    """How things stood when the judge stopped waiting: all zero and empty if everything has ended and both sites agree."""

    unaccounted: list[str]
    uncarried_verdicts: list[str]
    uncarried_alerts: list[str]
    undecided: list[str]
    disagreeing: list[str]
    seconds: float

    @property
    def open(self) -> int:
        """How much is still to come."""
        kinds = (self.unaccounted, self.uncarried_verdicts, self.uncarried_alerts, self.undecided, self.disagreeing)
        return sum(map(len, kinds))

    @property
    def clean(self) -> bool:
        return not self.open

    def __str__(self) -> str:
        said = {
            "unaccounted": self.unaccounted,
            "verdicts not at the region and not explained": self.uncarried_verdicts,
            "alerts not at the region and not explained": self.uncarried_alerts,
            "alerts undecided": self.undecided,
            "results that differ between the sites": self.disagreeing,
        }
        parts = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" for what, names in said.items() if names
        ]
        return "; ".join(parts) or f"settled after {self.seconds:.1f} s"


class Judge:
    """Reads until it is stopped.

    Parameters
    ----------
    leaf, region
        Bootstrap servers of both clusters, past any proxy.
    site
        The leaf's name in the region's topics.
    manifests
        Folder of the manifests; new ones are found by themselves.
    leaf_clock_s
        How wrong the leaf's clock is made.
    """

    def __init__(
        self, leaf: str, region: str, site: str, manifests: Path, oracle: Oracle, oracle_up: EvidenceOracle, *, leaf_clock_s: float = 0.0
    ) -> None:
        self.leaf_clock_s = leaf_clock_s
        self.site, self.manifests, self.oracle, self.oracle_up = site, manifests, oracle, oracle_up
        self._servers = {"leaf": leaf, "region": region}
        self.readers = {side: Reader(servers) for side, servers in self._servers.items()}
        self._partitions: dict[str, dict[str, int]] = {}
        self.lock = threading.RLock()
        self.error: Exception | None = None
        self.book = Book(oracle, oracle_up, oracle_up.knows, {})
        self._papers: dict[Path, Reading] = {}
        self._paper_of: dict[str, Reading] = {}
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, name="judge", daemon=True)

    def start(self) -> None:
        for side in self.readers:
            self.follow(side)
        self._thread.start()

    def follow(self, side: str) -> None:
        """Read all topics of a side that matter, new ones too."""
        admin = Admin(self._servers[side])
        topics = {name: count for name, count in admin.topics().items() if self._base(side, name) is not None}
        with self.lock:
            self._partitions[side] = topics
            if side == "leaf":
                self.book.uuids |= {name: admin.uuid(name) for name in ("frames", "verdicts", "alerts")}
            self.readers[side].follow((name, partition) for name, count in topics.items() for partition in range(count))

    def look_again(self, side: str, topic: str) -> None:
        """Go on where a topic's partitions end, which is before what was read (the log was cut); or at the beginning of a new topic."""
        admin, count = Admin(self._servers[side]), self._partitions[side][topic]
        with self.lock:
            fresh = side == "leaf" and topic in self.book.uuids and admin.uuid(topic) != self.book.uuids[topic]
            for partition, (low, high) in enumerate(admin.watermarks(topic, count)):
                at = low if fresh else min(high, self.readers[side].next_offset((topic, partition)))
                self.readers[side].go_back((topic, partition), at)
            if fresh:
                self.book.uuids[topic] = admin.uuid(topic)
            self.readers[side].renew()

    def stop(self) -> None:
        self._halt.set()
        if self._thread.is_alive():
            self._thread.join(30)
        for reader in self.readers.values():
            reader.close()

    # ---- questions

    def settle(self, before: float, limit_s: float, watch: Callable[[], None] = lambda: None) -> Settled:
        """Wait until every record that was published before a time has ended and both sites know the same, or nothing comes nearer to
        that any more: who is slow is not lost.

        Parameters
        ----------
        before
            By the monotonic clock, which all processes of this machine share; what brokers stamp is compared by the leaf's own clock.
        limit_s
            For how long nothing may come nearer; `PATIENCE` times as long altogether.
        watch
            Called again and again; may raise what makes waiting useless.
        """
        start = moved = time.monotonic()
        before_ms = self.leaf_ms(before)
        least = sys.maxsize
        while True:
            watch()
            if self.error is not None:
                raise self.error
            with self.lock:
                book = self.book
                settled = Settled(
                    book.unaccounted(before, self.lost_with),
                    [each.about for each in book.uncarried("verdicts", before_ms)],
                    [each.about for each in book.uncarried("alerts", before_ms)],
                    book.undecided(before_ms),
                    book.disagreeing(before),
                    time.monotonic() - start,
                )
            if settled.open < least:
                least, moved = settled.open, time.monotonic()
            if settled.clean or time.monotonic() - moved > limit_s or settled.seconds > PATIENCE * limit_s:
                with self.lock:
                    book.check_evidence()
                return settled
            self._halt.wait(0.2)

    def flags(self, record: str) -> int:
        """What became of a record so far (`book.RESULT` and others)."""
        with self.lock:
            return self.book.promises[record].flags if record in self.book.promises else 0

    def outputs(self, topic: str) -> int:
        """Records read of a topic since the round began, such as `leaf results`."""
        with self.lock:
            return self.book.tally.outputs[topic]

    def leaf_ms(self, monotonic: float) -> float:
        """A moment as the leaf's broker stamps it."""
        return (time.time() - time.monotonic() + monotonic + self.leaf_clock_s) * 1000

    def lost_with(self, stream: str) -> bool:
        """Whether the producer of a run was killed."""
        paper = self._paper_of.get(stream)
        return paper is not None and paper.killed

    # ---- the thread

    def _run(self) -> None:
        try:
            while not self._halt.is_set():
                found = {side: reader.read(0.1) for side, reader in self.readers.items()}
                with self.lock:
                    self._tail()  # after the read: a line is written before its record is sent
                    for side, messages in found.items():
                        for message in messages:
                            self._take(side, message)
        except Exception as error:  # noqa: BLE001 - raised by `settle`
            self.error = error

    def _tail(self) -> None:
        if self.manifests.exists():
            for path in self.manifests.iterdir():
                if path not in self._papers:
                    self._papers[path] = Reading(path)
        for paper in self._papers.values():
            for entry in paper.new():
                self.book.promise(entry.id, entry.sha256, entry.at)
                self._paper_of.setdefault(entry.id.rpartition("/")[0], paper)

    def _base(self, side: str, topic: str) -> str | None:
        """What the book calls a topic; None if it is none of its concern."""
        if topic.endswith(_LETTERS):
            return topic
        if side == "leaf":
            return topic if topic in _LEAF else None
        for direction in ("up", "down"):
            if topic in (f"{direction}.{self.site}.verdicts", f"{direction}.{self.site}.alerts"):
                return f"{direction}.{topic.rpartition('.')[2]}"
        return topic if topic in ("results", "alerts") else None

    def _take(self, side: str, message: Any) -> None:
        base, value, book = self._base(side, message.topic()), message.value(), self.book
        assert base is not None
        book.tally.outputs[f"{side} {base}"] += 1
        place = (message.partition(), message.offset())
        at_ms = message.timestamp()[1]
        if base.endswith(_LETTERS):
            book.letter(base, self._buried(message))
        elif value is None:
            return
        elif base == "frames":
            name, foreign = _header(message, "ce_id"), self._foreign(message)
            book.frame(foreign if name is None or foreign in book.promises else name, value, *place)
        elif base.endswith("verdicts"):
            book.verdict(side, base, value, *place, at_ms)
        elif base == "results":
            book.result(side, value)
        elif base.endswith("alerts") and not base.startswith("escalations"):
            book.alert(side, base, value, *place, at_ms)
        elif base == "drops":
            book.drop(value)
        elif base == "epochs":
            book.epoch(value)
        else:
            self.oracle_up.learn(value, _header(message, "escalation") or "{}")

    def _foreign(self, message: Any) -> str:
        return f"kafka/{self.book.uuids['cluster']}/{self.book.uuids['frames']}/{message.partition()}/{message.offset()}"

    def _buried(self, message: Any) -> str | None:
        """Which record of the manifest a dead letter of frames is: by its id, else by the place that it came from."""
        place = "/".join(_header(message, f"__connect.errors.{name}") or "" for name in ("partition", "offset"))
        uuids = self.book.uuids
        names = [_header(message, "ce_id"), _header(message, "headwater.record"), f"kafka/{uuids['cluster']}/{uuids['frames']}/{place}"]
        return next((name for name in names if name in self.book.promises), names[0] or names[2])


def _header(message: Any, name: str) -> str | None:
    """The last header of a name, as text; None if it is not there or cannot be read."""
    try:
        headers = message.headers() or []
    except (SystemError, UnicodeDecodeError):
        return None
    found = [value for key, value in headers if key == name and value]
    return found[-1].decode(errors="replace") if found else None
