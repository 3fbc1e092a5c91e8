"""The account: what became of every record that was produced, per epoch, as set unions and never sums.

produced = results + dead letters + drops + open, with that precedence (a replay may process what was dropped). Produced is the larger of
the producer's acknowledged mark and the highest sequence that any stage has seen; what a producer numbered beyond that is with it still, or
was lost with it (`unsent`). Foreign records are accounted by partition, their sequences being offsets; what of a partition carries our ids
is not counted there.
"""

from __future__ import annotations

import msgspec

from schemas.identity import FOREIGN, InvalidIdentity, RecordId
from schemas.intervals import Intervals, Pair
from schemas.messages import Drop, EpochMark, EpochState
from schemas.records import InvalidRecord
from streams.clients import Clients
from streams.message import KafkaRecord
from streams.restore import to_end
from streams.topology import Role, Topology


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """How the records of one epoch ended. `open` names the sequences that nothing is known of; `unsent` counts those that the producer has
    given out beyond `produced`, of which no broker knows."""

    source: str
    epoch: str
    state: str
    produced: int
    results: int
    dead: int
    drops: dict[str, int]
    open: tuple[Pair, ...]
    unsent: int = 0

    @property
    def dropped(self) -> int:
        return sum(self.drops.values())

    @property
    def missing(self) -> int:
        return sum(last - first + 1 for first, last in self.open)


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The account of a site."""

    lines: tuple[Line, ...]

    @property
    def produced(self) -> int:
        return sum(line.produced for line in self.lines)

    @property
    def results(self) -> int:
        return sum(line.results for line in self.lines)

    @property
    def dead(self) -> int:
        return sum(line.dead for line in self.lines)

    @property
    def dropped(self) -> int:
        return sum(line.dropped for line in self.lines)

    @property
    def missing(self) -> int:
        return sum(line.missing for line in self.lines)

    @property
    def adds_up(self) -> bool:
        """Whether every record that was produced is known to have ended."""
        return not self.missing


class _Stream:
    """What is known of one epoch while topics are read."""

    def __init__(self) -> None:
        self.mark = self.assigned = 0
        self.state = ""
        self.results, self.dead = Intervals(), Intervals()
        self.drops: dict[str, Intervals] = {}

    def line(self, source: str, epoch: str) -> Line:
        ended = self.results | self.dead
        dropped = Intervals()
        drops: dict[str, int] = {}
        for name, sequences in sorted(self.drops.items()):
            new = sequences - ended - dropped
            if new:
                drops[name] = new.count()
            dropped = dropped | sequences
        known = ended | dropped
        highest = known.pairs()[-1][1] + 1 if known else 0
        produced = Intervals([(0, max(self.mark, highest) - 1)]) if max(self.mark, highest) else Intervals()
        if source == FOREIGN:  # a partition's other offsets belong to our own producers
            produced = known
        return Line(
            source=source,
            epoch=epoch,
            state=self.state or "unannounced",
            produced=produced.count(),
            results=self.results.count(),
            dead=(self.dead - self.results).count(),
            drops=drops,
            open=tuple((produced - known).pairs()),
            unsent=max(0, self.assigned - produced.count()),
        )


class Ledger:
    """Takes in records of `epochs`, `results`, `drops` and dead letters, in any order and however often, and draws the account."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, str], _Stream] = {}

    def _stream(self, source: str, epoch: str) -> _Stream:
        return self._streams.setdefault((source, epoch), _Stream())

    def epoch(self, mark: EpochMark) -> None:
        stream = self._stream(mark.source, mark.epoch)
        stream.mark, stream.assigned = max(stream.mark, mark.acknowledged), max(stream.assigned, mark.assigned)
        if stream.state != EpochState.ENDED:
            stream.state = mark.state

    def result(self, record: RecordId) -> None:
        self._stream(record.source, record.epoch).results.add(record.sequence)

    def dead_letter(self, record: RecordId) -> None:
        self._stream(record.source, record.epoch).dead.add(record.sequence)

    def drop(self, drop: Drop) -> None:
        known = self._stream(drop.source, drop.epoch).drops.setdefault(f"{drop.stage}: {drop.reason}", Intervals())
        for first, last in drop.ranges.pairs:
            known.add(first, last)

    def account(self) -> Account:
        return Account(lines=tuple(stream.line(*name) for name, stream in sorted(self._streams.items())))


def read_account(topology: Topology, clients: Clients) -> Account:
    """Draw a leaf's account from its topics as they are now.

    Raises
    ------
    BrokerUnavailable
        If the cluster does not answer.
    """
    role = topology.role(Role.READER)
    topics = {base: role.read(base) for base in ("epochs", "results", "drops", "frames.dlq", "verdicts.dlq")}
    frames = role.read("frames")
    info = clients.cluster([frames.name])
    uuid = info.topics[frames.name][0] if frames.name in info.topics else ""
    ledger = Ledger()
    for message in to_end(clients, [(topic.name, partition) for topic in topics.values() for partition in range(topic.partitions)]):
        try:
            if message.topic() == topics["epochs"].name:
                ledger.epoch(EpochMark.from_bytes(message.value() or b""))
            elif message.topic() == topics["drops"].name:
                ledger.drop(Drop.from_bytes(message.value() or b""))
            elif message.topic() == topics["results"].name:
                ledger.result(RecordId.parse((message.key() or b"").decode(errors="replace")))
            elif message.topic() == topics["frames.dlq"].name:
                ledger.dead_letter(_buried(message, info.id, uuid))
            else:  # a verdict that could not be joined: its record has no result
                ledger.dead_letter(_named(message))
        except (InvalidRecord, InvalidIdentity):
            continue  # not ours to count: `headwater tail` shows it
    return ledger.account()


def _buried(message: KafkaRecord, cluster: str, uuid: str) -> RecordId:
    """The record that a dead letter of `frames` was: by its own id if it had one, else by the place it came from. Raises
    `InvalidIdentity` if neither is there."""
    try:
        return _named(message)
    except InvalidIdentity:
        headers = dict(message.headers() or ())
        partition, offset = ((headers.get(f"__connect.errors.{name}") or b"").decode(errors="replace") for name in ("partition", "offset"))
        return RecordId.parse(f"{FOREIGN}/{cluster}/{uuid}/{partition}/{offset}")


def _named(message: KafkaRecord) -> RecordId:
    return RecordId.parse((dict(message.headers() or ()).get("ce_id") or b"").decode(errors="replace"))
