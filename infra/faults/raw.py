"""Kafka by librdkafka alone, without anything of `streams`: what the judge reads and the faults write must not pass through what is judged.

(The one module outside `streams/` that imports a Kafka client: see the import rules in pyproject.toml.)
"""

from __future__ import annotations

import datetime as dt
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
)

ASK_S = 15.0
Place = tuple[str, int]


class Reader:
    """Reads topics on and on, each record once, whatever happens to the broker meanwhile."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._next: dict[Place, int] = {}
        self._lock = threading.Lock()  # one thread reads, others move it
        self._consumer = self._connect()

    def _connect(self) -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self._servers,
                "group.id": f"judge.{uuid.uuid4().hex}",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 100,
                "fetch.message.max.bytes": 1 << 20,
                "queued.max.messages.kbytes": 32 << 10,
                "reconnect.backoff.max.ms": 500,
                "topic.metadata.refresh.interval.ms": 10_000,
                "log_level": 0,
            }
        )

    def follow(self, places: Iterable[Place]) -> None:
        """Read these partitions too, from their beginning."""
        for place in places:
            self._next.setdefault(place, 0)
        self._assign()

    def go_back(self, place: Place, offset: int) -> None:
        """Go on at an offset: the log was cut there, or the topic was made anew."""
        self._next[place] = offset
        self._assign()

    def renew(self) -> None:
        """Take a new client: one that knew a topic before it was made anew can wait for ever for the old one's leader epoch."""
        with self._lock:
            self._consumer.close()
            self._consumer = self._connect()
        self._assign()

    def next_offset(self, place: Place) -> int:
        return self._next[place]

    def read(self, timeout_s: float) -> list[Message]:
        """What has come, waiting so long at most."""
        found = []
        with self._lock:
            messages = self._consumer.consume(2_000, timeout_s)
        for message in messages:
            if message.error() is not None:
                continue  # the broker is away, or a topic is: what is there will be read when it can be
            place = (str(message.topic()), int(message.partition() or 0))
            offset = int(message.offset() or 0)
            if offset < self._next.get(place, 0):
                continue  # librdkafka went back by itself
            self._next[place] = offset + 1
            found.append(message)
        return found

    def close(self) -> None:
        self._consumer.close()

    def _assign(self) -> None:
        self._consumer.assign([TopicPartition(*place, offset) for place, offset in self._next.items()])


class Writer:
    """Writes records as foreign clients do; `written` is called with partition and offset once the broker has a record."""

    def __init__(self, servers: str, **settings: Any) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": servers,
                "enable.idempotence": True,
                "linger.ms": 5,
                "message.max.bytes": 20 << 20,
                "log_level": 0,
                **settings,
            }
        )
        self.refused: list[tuple[Any, str]] = []

    def write(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        written: Callable[[int, int], None] | None = None,
    ) -> None:
        def report(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self.refused.append((key, error.name()))
            elif written is not None:
                written(int(message.partition() or 0), int(message.offset() or 0))

        while True:
            try:
                self._producer.produce(topic, value, key, partition, headers=list(headers), on_delivery=report)
            except BufferError:
                self._producer.poll(0.05)
                continue
            except KafkaException as error:  # larger than this client sends
                self.refused.append((key, error.args[0].name()))
            return

    def write_again(self, message: Any) -> None:
        """Write a record once more, as it is, where it was."""
        self.write(message.topic(), message.partition(), message.key(), message.value(), message.headers() or [])

    def flush(self, timeout_s: float = 60.0) -> None:
        """Wait for the broker; raises `TimeoutError`."""
        if self._producer.flush(timeout_s):
            raise TimeoutError(f"the broker has not taken everything within {timeout_s:g} s")


class Admin:
    """What is asked of a cluster, and done to it, around a fault."""

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self._admin = self._client()

    def _client(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.servers, "log_level": 0})

    def cluster_id(self) -> str:
        return str(self._patiently(lambda: self._admin.describe_cluster(request_timeout=ASK_S).result(ASK_S)).cluster_id)

    def topics(self) -> dict[str, int]:
        """Every topic and its number of partitions."""
        return {name: len(topic.partitions) for name, topic in self._admin.list_topics(timeout=ASK_S).topics.items()}

    def uuid(self, topic: str) -> str:
        """A topic's uuid in URL-safe base64."""
        found = self._admin.describe_topics(TopicCollection([topic]), request_timeout=ASK_S)[topic].result(ASK_S)
        return str(found.topic_id).replace("+", "-").replace("/", "_").rstrip("=")

    def watermarks(self, topic: str, partitions: int) -> list[tuple[int, int]]:
        """First and next offset of each partition."""
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": "faults.look", "log_level": 0})
        try:
            places = (TopicPartition(topic, partition) for partition in range(partitions))
            found = [self._patiently(partial(consumer.get_watermark_offsets, place, timeout=ASK_S)) for place in places]
            return [(int(low), int(high)) for low, high in found]
        finally:
            consumer.close()

    def end(self, topic: str, partitions: int) -> int:
        """The next offsets of all partitions together: it stands still while nothing is written."""
        return sum(high for _, high in self.watermarks(topic, partitions))

    def totals(self, group: str, topics: Sequence[str], partitions: int) -> int:
        """A group's offsets of all partitions together."""
        return sum(max(0, offset) for topic in topics for offset in self.committed(group, topic, partitions))

    def set_topic(self, topic: str, **settings: str) -> None:
        """Change settings of a topic; underscores stand for dots."""
        entries = [
            ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
        ]
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=entries)
        self._admin.incremental_alter_configs([resource], request_timeout=ASK_S)[resource].result(ASK_S)

    def settings(self, topic: str) -> dict[str, str]:
        """A topic's own settings, without what the broker adds."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        found = self._admin.describe_configs([resource], request_timeout=ASK_S)[resource].result(ASK_S)
        return {name: entry.value for name, entry in found.items() if not entry.is_default and entry.value is not None}

    def delete_before(self, topic: str, offsets: Mapping[int, int]) -> None:
        """Move the beginning of partitions up to offsets, as retention does."""
        places = [TopicPartition(topic, partition, offset) for partition, offset in offsets.items()]
        for done in self._admin.delete_records(places, request_timeout=ASK_S).values():
            done.result(ASK_S)

    def recreate(self, topic: str) -> Any:
        """Delete a topic and make it anew with the same settings; returns its new uuid."""
        settings, partitions = self.settings(topic), self.topics()[topic]
        self._admin.delete_topics([topic], operation_timeout=ASK_S)[topic].result(ASK_S)
        self._patiently(lambda: self._admin.create_topics([NewTopic(topic, partitions, 1, config=settings)])[topic].result(ASK_S))
        return self._patiently(lambda: self.uuid(topic))

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Ask again while the answer is an error: what was done a moment ago is still under way. A client that gets no answer at all is
        replaced: one that had lived through the end of its broker was seen to wait in vain for the coordinator of a group."""
        end = time.monotonic() + 3 * ASK_S
        while True:
            try:
                return ask()
            except (KafkaException, TimeoutError) as error:
                if time.monotonic() > end:
                    raise
                if isinstance(error, TimeoutError):
                    self._admin = self._client()
                time.sleep(0.1)

    def move_group(self, group: str, places: dict[Place, int]) -> None:
        """Set a group's offsets; it must have no members."""
        wanted = ConsumerGroupTopicPartitions(group, [TopicPartition(*place, offset) for place, offset in places.items()])
        self._patiently(lambda: self._admin.alter_consumer_group_offsets([wanted], request_timeout=ASK_S)[group].result(ASK_S))

    def committed(self, group: str, topic: str, partitions: int) -> list[int]:
        """A group's offsets; -1001 where it has none."""
        asked = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, p) for p in range(partitions)])
        found = self._patiently(lambda: self._admin.list_consumer_group_offsets([asked], request_timeout=ASK_S)[group].result(ASK_S))
        return [int(place.offset) for place in found.topic_partitions]

    def members(self, group: str) -> int | None:
        """How many members a group has now; None where nobody could say: whoever waits asks again."""
        try:
            return len(self._admin.describe_consumer_groups([group], request_timeout=ASK_S)[group].result(ASK_S).members)
        except KafkaException:
            return None
        except TimeoutError:
            self._admin = self._client()  # as in `_patiently`
            return None


def murmur2(data: bytes) -> int:
    """Kafka's own hash of keys, written from its specification: it decides the partition of a source."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(data)
    for at in range(0, len(data) - len(data) % 4, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        h = (h * m & mask) ^ ((k ^ k >> 24) * m & mask)
    if rest := data[len(data) - len(data) % 4 :]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def frame_headers(source: str, epoch: str, sequence: int, at: dt.datetime) -> list[tuple[str, bytes | None]]:
    """The CloudEvents headers of a frame, as the documentation tells foreign producers to write them."""
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", f"{source}/{epoch}/{sequence}".encode()),
        ("ce_source", source.encode()),
        ("ce_type", b"headwater.frame.v1"),
        ("ce_time", at.strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()),
        ("content-type", b"image/jpeg"),
        ("ce_sequence", b"%019d" % sequence),
    ]


def everything(servers: str, topics: Sequence[str], *, last: int | None = None, quiet_s: float = 2.0) -> Iterator[Message]:
    """Every record of some topics as they are now; or the last so many of each partition."""
    admin, reader = Admin(servers), Reader(servers)
    known = admin.topics()
    places = {(t, p): bounds for t in topics for p, bounds in enumerate(admin.watermarks(t, known[t]))}
    ends = {place: high for place, (low, high) in places.items() if high > low}
    try:
        reader.follow(ends)
        if last is not None:
            for place, high in ends.items():
                reader.go_back(place, max(places[place][0], high - last))
        heard = time.monotonic()
        while any(reader.next_offset(place) < end for place, end in ends.items()):
            found = reader.read(0.2)
            heard = time.monotonic() if found else heard
            yield from found
            if time.monotonic() - heard > quiet_s:
                return  # the last offsets hold no record (compacted, or a transaction's marker)
    finally:
        reader.close()
