"""Reading the account of a site: what its accountant has kept, and of every topic what came since the accountant last said where it is.

A leaf reads its own topics; a region those of each of its sites (`up.<site>.*`) and its own results, so that a source that moved between
sites adds up there. Site names are taken from the topics, never from what is in them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, Message, TopicPartition

from schemas.accounts import AccountPast, AccountSet, read_entry
from schemas.identity import FOREIGN, InvalidIdentity, RecordId
from schemas.messages import Drop, EpochMark, Tier
from schemas.records import InvalidRecord
from schemas.replays import read_replay
from streams.account import Account, Facts, Ledger
from streams.clients import BrokerUnavailable, Clients, ClusterInfo
from streams.message import KafkaRecord, readable
from streams.topology import Role, Topic, Topology

Place = tuple[str, int]
Progress = Callable[[int, int], None]  # records read, records to read

_QUIET_S = 30.0  # a broker that sends nothing for so long, short of the end, is taken to be away
_ASK_S = 10.0
_BATCH = 2_000
_EDGE_MS = 15_000  # marks come every second: so far before a moment there is one, if the producer was there
_SETTINGS = {
    "enable.partition.eof": True,
    "auto.offset.reset": "earliest",  # retention may overtake us: what it takes is in the accountant's sets, or open
    "fetch.message.max.bytes": 8 << 20,
    "queued.max.messages.kbytes": 32 << 10,
}


class Intake:
    """Takes records of the topics that the account rests on, and says to `Facts` what they mean.

    Parameters
    ----------
    role
        A view that may read these topics: the reader's, or the accountant's.
    cluster
        Its id and the uuid of `frames` name the foreign records among dead letters.
    """

    def __init__(self, role_topology: Topology, facts: Facts, cluster: ClusterInfo, role: Role = Role.READER) -> None:
        view = role_topology.role(role)
        leaf = role_topology.tier is Tier.LEAF
        sites: Sequence[str | None] = (None,) if leaf else role_topology.config.region.sites
        lead = "" if leaf else "up."
        self.facts = facts
        self._kinds: dict[str, Callable[[Message], None]] = {}
        self.topics: list[Topic] = []
        for base, take in ((f"{lead}epochs", self._epoch), (f"{lead}drops", self._drop), (f"{lead}verdicts.dlq", self._letter)):
            for site in sites:
                self._add(view.read(base, site), take)
        self._add(view.read("results"), self._result)
        if leaf:
            frames = role_topology.topic("frames").name
            self._frames = (cluster.id, cluster.topics[frames][0] if frames in cluster.topics else "")
            self._add(view.read("frames.dlq"), self._frame_letter)
        self._site = {topic.name: topic.site or role_topology.site for topic in self.topics}
        self._streams: dict[bytes, tuple[str, str]] = {}

    def _add(self, topic: Topic, take: Callable[[Message], None]) -> None:
        self.topics.append(topic)
        self._kinds[topic.name] = take

    def take(self, message: Message) -> None:
        """Take in one record; what is not ours to count is passed over: `headwater tail` shows it."""
        try:
            self._kinds[cast(str, message.topic())](message)
        except (InvalidRecord, InvalidIdentity):
            return

    def _result(self, message: Message) -> None:
        head, _, last = (message.key() or b"").rpartition(b"/")
        stream = self._streams.get(head)
        if stream is None or not last.isdigit() or len(last) > 18:  # the whole of it is looked at once for each epoch
            record = RecordId.parse((message.key() or b"").decode(errors="replace"))
            if len(self._streams) > 100_000:
                self._streams.clear()
            stream = self._streams[head] = (record.source, record.epoch)
        self.facts.result(RecordId(stream[0], stream[1], int(last)), message.timestamp()[1])

    def _epoch(self, message: Message) -> None:
        mark = EpochMark.from_bytes(message.value())
        site = self._site[cast(str, message.topic())]
        self.facts.epoch(mark if mark.site == site else msgspec.structs.replace(mark, site=site), message.timestamp()[1])

    def _drop(self, message: Message) -> None:
        drop = Drop.from_bytes(message.value())
        site = self._site[cast(str, message.topic())]
        self.facts.drop(drop if drop.site == site else msgspec.structs.replace(drop, site=site), message.timestamp()[1])

    def _letter(self, message: Message) -> None:
        """A verdict that could not be joined: its record has no result."""
        self.facts.dead_letter(_named(readable(cast(KafkaRecord, message))), message.timestamp()[1])

    def _frame_letter(self, message: Message) -> None:
        """By its own id if it had one, else by the place it came from."""
        record = readable(cast(KafkaRecord, message))
        try:
            name = _named(record)
        except InvalidIdentity:
            headers = dict(record.headers() or ())
            partition, offset = (
                (headers.get(f"__connect.errors.{name}") or b"").decode(errors="replace") for name in ("partition", "offset")
            )
            name = read_replay(record.headers()).origin or RecordId.parse("/".join((FOREIGN, *self._frames, partition, offset)))
        self.facts.dead_letter(name, message.timestamp()[1])


def _named(message: KafkaRecord) -> RecordId:
    return RecordId.parse((dict(message.headers() or ()).get("ce_id") or b"").decode(errors="replace"))


def read_account(
    topology: Topology,
    clients: Clients,
    *,
    young_s: float | None = None,
    progress: Progress | None = None,
    trust_accountant: bool = True,
) -> Account:
    """Draw a site's account from its topics as they are now.

    Parameters
    ----------
    young_s
        What is open and no older than this, by the broker's time, is told as `in_flight`; None: everything that is open is `open`.
    trust_accountant
        Take from the accountant what it has counted, and read only what came later. Otherwise all that is still stored is read as well.

    Raises
    ------
    BrokerUnavailable
        If the cluster does not answer.
    """
    young_ms = None if young_s is None else int((time.time() - young_s) * 1000)
    ledger = Ledger(_sites(topology), young_ms)
    kept = account_topics(topology)
    info = clients.cluster([topic.name for topic in topology])
    intake = Intake(topology, ledger, info)
    present = [topic for topic in intake.topics if topic.name in info.topics]
    starts = positions(topology, clients, info, present) if trust_accountant else {}  # before the sets: these may only run ahead
    for entry in kept_entries(clients, [topic for topic in kept if topic.name in info.topics]):
        ledger.known(entry)
    begin = {place: starts.get(place) for topic in present for place in _places(topic)}
    if young_ms is not None:
        begin = _no_later(clients, begin, young_ms - _EDGE_MS)
    for message in read_places(clients, begin, progress):
        intake.take(message)
    return ledger.account()


def kept_entries(clients: Clients, topics: Iterable[Topic]) -> list[AccountSet | AccountPast]:
    """What accountants have kept, the last record of each key; raises `BrokerUnavailable`."""
    latest: dict[tuple[str, bytes], bytes | None] = {}
    for message in read_places(clients, {place: None for topic in topics for place in _places(topic)}):
        name = (cast(str, message.topic()), message.key() or b"")
        if message.value() is None:
            latest.pop(name, None)
        else:
            latest[name] = message.value()
    found = []
    for value in latest.values():
        with contextlib.suppress(InvalidRecord):  # of a version that we do not know
            found.append(read_entry(value))
    return found


def _places(topic: Topic) -> list[Place]:
    return [(topic.name, partition) for partition in range(topic.partitions)]


def account_topics(topology: Topology) -> list[Topic]:
    """Where accountants keep their sets, as they are seen on this cluster."""
    view = topology.role(Role.READER)
    sites = topology.config.region.sites if topology.tier is Tier.REGION else ()
    return [view.read("accounts"), *(view.read("up.accounts", site) for site in sites)]


def _sites(topology: Topology) -> tuple[str, ...]:
    return (topology.site,) if topology.tier is Tier.LEAF else topology.config.region.sites


def binding(info: ClusterInfo, accounts: Topic, topic: Topic) -> str:
    """What an accountant's position holds for: the topic that it read and the one that it wrote to. If either was made anew, it is void."""
    return f"{info.topics[accounts.name][0]}/{info.topics[topic.name][0]}"


def positions(topology: Topology, clients: Clients, info: ClusterInfo, topics: Iterable[Topic]) -> dict[Place, int]:
    """How far the site's accountant has come in each partition: all before it is in `accounts`. Partitions without a valid position are
    left out. Raises `BrokerUnavailable`."""
    accounts = topology.role(Role.READER).read("accounts")
    if accounts.name not in info.topics:
        return {}
    by_name = {topic.name: topic for topic in topics}
    return {
        place: each.offset
        for place, each in settled_offsets(clients, topology.group(Role.ACCOUNTANT)).items()
        if place[0] in by_name and each.metadata == binding(info, accounts, by_name[place[0]])
    }


def settled_offsets(clients: Clients, group: str) -> dict[Place, TopicPartition]:
    """What a group has committed; raises `BrokerUnavailable`."""
    admin = clients.admin()  # it must outlive the answer
    try:
        asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)], request_timeout=_ASK_S)[group]
        found = asked.result(_ASK_S + 1).topic_partitions
    except (KafkaException, TimeoutError) as error:
        if isinstance(error, KafkaException) and error.args[0].code() in (
            KafkaError.GROUP_ID_NOT_FOUND,
            KafkaError.GROUP_AUTHORIZATION_FAILED,
        ):
            return {}
        raise BrokerUnavailable(f"{clients.kafka.bootstrap_servers} does not say how far group {group} is: {error}") from None
    return {(each.topic, each.partition): each for each in found if each.offset >= 0}


def read_places(clients: Clients, begin: Mapping[Place, int | None], progress: Progress | None = None) -> Iterator[Message]:
    """Every record of some partitions from an offset (None: the beginning) to the end as it is at the call, many at a time."""
    consumer = clients.consumer(None, **_SETTINGS)
    try:
        ends: dict[Place, int] = {}
        starts: list[TopicPartition] = []
        total = done = 0
        for (topic, partition), offset in begin.items():
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_ASK_S)
            first = low if offset is None else max(low, offset)
            if high > first:
                ends[topic, partition] = high
                starts.append(TopicPartition(topic, partition, OFFSET_BEGINNING if first == low else first))
                total += high - first
        if not ends:
            return
        consumer.assign(starts)
        heard = time.monotonic()
        while ends:
            messages = consumer.consume(_BATCH, 0.2)
            if messages:
                heard = time.monotonic()
            elif time.monotonic() - heard > _QUIET_S:
                raise BrokerUnavailable(
                    f"{clients.kafka.bootstrap_servers} sent nothing for {_QUIET_S:g} s while {len(ends)} partitions were read"
                )
            for message in messages:
                place = (cast(str, message.topic()), cast(int, message.partition()))
                error = message.error()
                if error is None:
                    offset, end = cast(int, message.offset()), ends.get(place, 0)
                    if offset + 1 >= end:
                        ends.pop(place, None)
                    if offset < end:
                        done += 1
                        yield message
                elif error.code() == KafkaError._PARTITION_EOF:  # the last records before the end may be compacted away
                    ends.pop(place, None)
                elif not error.retriable() and error.code() not in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
                    raise BrokerUnavailable(f"{message.topic()}: {error.str()}")
            if progress is not None:
                progress(done, total)
        if progress is not None:
            progress(total, total)
    except KafkaException as error:
        raise BrokerUnavailable(f"{clients.kafka.bootstrap_servers}: {error.args[0].str()}") from None
    finally:
        consumer.close()


def _no_later(clients: Clients, begin: Mapping[Place, int | None], at_ms: int) -> dict[Place, int | None]:
    """Begin no later than where the records of a moment are: they tell how old what is open is."""
    late = [place for place, offset in begin.items() if offset is not None]
    if not late:
        return dict(begin)
    found = at_time(clients, late, at_ms)
    return {place: offset if offset is None else min(offset, found.get(place, offset)) for place, offset in begin.items()}


def at_time(clients: Clients, places: Sequence[Place], at_ms: int) -> dict[Place, int]:
    """The first offset of each partition that the broker took at a time (ms since 1970) or later; left out where there is none. Raises
    `BrokerUnavailable`."""
    consumer: Consumer = clients.consumer(None)
    try:
        found = consumer.offsets_for_times([TopicPartition(*place, max(0, at_ms)) for place in places], timeout=_ASK_S)
    except KafkaException as error:
        raise BrokerUnavailable(f"{clients.kafka.bootstrap_servers}: {error.args[0].str()}") from None
    finally:
        consumer.close()
    return {(each.topic, each.partition): each.offset for each in found if each.offset >= 0}


class Around(msgspec.Struct, frozen=True, kw_only=True):
    """What is known around a range of missing sequences: a broker had all before it at `after` and all of it at `before` (by the producer's
    marks; None: the marks do not say), so in `frames` of that partition it is, or was, among offsets `first` to `last`. `kept` says whether
    any of these is still stored."""

    source: str
    epoch: str
    first: int
    last: int
    site: str
    after: dt.datetime | None
    before: dt.datetime | None
    partition: int
    offsets: tuple[int, int] | None
    kept: bool


def look_around(topology: Topology, clients: Clients, account: Account, *, limit: int = 20) -> list[Around]:
    """Look for what is known around the missing ranges, the first `limit` of them; raises `BrokerUnavailable`."""
    from streams.partition import partition_of

    wanted = [(line, pair) for line in account.lines for pair in line.open][:limit]
    if not wanted:
        return []
    leaf = topology.tier is Tier.LEAF
    epochs = [topic for topic in topology if topic.base == ("epochs" if leaf else "up.epochs")]
    sources = {line.source for line, _ in wanted}
    places: dict[Place, int | None] = {
        (topic.name, partition_of(source, topic.partitions)): None for topic in epochs for source in sources if source != FOREIGN
    }
    site_of = {topic.name: topic.site or topology.site for topic in epochs}
    marks: dict[tuple[str, str], list[tuple[int, int, str]]] = {}
    for message in read_places(clients, places):
        try:
            mark = EpochMark.from_bytes(message.value())
        except InvalidRecord:
            continue
        site = site_of[cast(str, message.topic())]
        marks.setdefault((mark.source, mark.epoch), []).append((mark.acknowledged, message.timestamp()[1], site))
    found = []
    for line, (first, last) in wanted:
        said = marks.get((line.source, line.epoch), [])
        before = min(((at, site) for acknowledged, at, site in said if acknowledged > last), default=None)
        after = max((at for acknowledged, at, _ in said if acknowledged <= first), default=None)
        frames = topology.topic("frames") if leaf else None
        partition = partition_of(line.source, topology.config.topics.partitions)
        offsets, kept = _window(clients, frames, partition, after, before[0] if before else None) if frames else (None, False)
        found.append(
            Around(
                source=line.source,
                epoch=line.epoch,
                first=first,
                last=last,
                site=before[1] if before else ", ".join(line.sites) or topology.site,
                after=_utc(after),
                before=_utc(before[0] if before else None),
                partition=partition,
                offsets=offsets,
                kept=kept,
            )
        )
    return found


def _window(clients: Clients, frames: Topic, partition: int, after: int | None, before: int | None) -> tuple[tuple[int, int] | None, bool]:
    """Which offsets of `frames` came between two times (a mark lags a second behind), and whether any is still there."""
    consumer = clients.consumer(None)
    try:
        low, high = consumer.get_watermark_offsets(TopicPartition(frames.name, partition), timeout=_ASK_S)
    except KafkaException:
        return None, False
    finally:
        consumer.close()
    place = (frames.name, partition)
    first = at_time(clients, [place], after - 2_000).get(place, high) if after is not None else low
    end = at_time(clients, [place], before + 1).get(place, high) if before is not None else high
    return ((first, end - 1), True) if end > first and high > low else (None, False)


def _utc(at_ms: int | None) -> dt.datetime | None:
    return None if at_ms is None else dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC)
