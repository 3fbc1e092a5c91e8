"""`headwater dlq` on a real broker: what is listed and shown, what a replay writes, and what a decision leaves behind. What is in the
topics is read past the code under test.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from schemas.config import Kafka, SiteConfig, Topics
from schemas.frames import Origin, read_frame
from streams.burial import letter_headers
from streams.clients import Clients
from streams.cluster import create_topics
from streams.topology import Topology

Run = Callable[..., Any]
JPEG = b"\xff\xd8\xff" + b"x" * 40
OWN = [
    ("ce_specversion", b"1.0"),
    ("ce_id", b"cam-1/e1/7"),
    ("ce_source", b"cam-1"),
    ("ce_type", b"headwater.frame.v1"),
    ("ce_time", b"2026-01-31T12:00:00Z"),
    ("x", b"\xff\x00"),
    ("x", None),
]


class Failed:
    """A record as delivery has it in hand when it fails."""

    def __init__(self, message: Message) -> None:
        self.message = message

    def __getattr__(self, name: str) -> Any:
        return getattr(self.message, name)


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as found:  # noqa: BLE001 - any
        return found


class Site:
    """A leaf whose frames failed."""

    def __init__(self, kafka: Kafka, prefix: str, folder: Path) -> None:
        self.kafka, self.prefix = kafka, prefix
        self.topology = Topology(SiteConfig(name="leaf-1", tier="leaf", kafka=kafka, topics=Topics(prefix=prefix, partitions=4)))
        self.clients = Clients(kafka, "test")
        create_topics(self.topology, self.clients)
        self.producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        self.file = folder / "leaf.toml"
        self.file.write_text(
            f'name = "leaf-1"\ntier = "leaf"\n[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\n'
            f'[topics]\nprefix = "{prefix}"\npartitions = 4\n'
        )

    def put(self, base: str, value: bytes | None, key: bytes | None, headers: list[Any], partition: int) -> Message:
        taken: list[Message] = []
        topic = f"{self.prefix}{base}"
        self.producer.produce(topic, value, key, partition, lambda _, message: taken.append(message), headers=headers)
        assert self.producer.flush(20) == 0
        assert taken[0].error() is None
        return next(row for row in self.rows(base) if (row.partition(), row.offset()) == (taken[0].partition(), taken[0].offset()))

    def bury(self, message: Message, error: Exception, record: str | None = None, **parts: Any) -> None:
        headers = letter_headers(Failed(message), raised(error), "leaf-1.leaf", record)  # type: ignore[arg-type]
        base = (message.topic() or "").removeprefix(self.prefix)
        self.put(f"{base}.dlq", parts.get("value", message.value()), message.key(), [*headers, *parts.get("more", [])], 0)

    def rows(self, base: str) -> list[Message]:
        consumer = Consumer({"bootstrap.servers": self.kafka.bootstrap_servers, "group.id": "none", "enable.partition.eof": True})
        topic, found = f"{self.prefix}{base}", []
        try:
            for partition in consumer.list_topics(topic, timeout=20).topics[topic].partitions:
                consumer.assign([TopicPartition(topic, partition, 0)])
                while (message := consumer.poll(20)) is not None and message.error() is None:
                    found.append(message)
        finally:
            consumer.close()
        return found


@pytest.fixture
def site(kafka: Kafka, prefix: str, tmp_path: Path) -> Site:
    return Site(kafka, prefix, tmp_path)


def test_letters_are_listed_by_kind_and_one_by_one(headwater: Run, site: Site) -> None:
    unnamed = [(name, value) for name, value in OWN if name != "ce_id"]
    for number in range(3):
        site.bury(site.put("frames", JPEG, b"cam-1", unnamed, 1), RuntimeError(f"bug {number}"))
    site.bury(site.put("frames", b"text", b"gate", [], 2), ValueError("no JPEG"), "kafka/c/u/2/0")
    site.bury(site.put("verdicts", b"{}", b"v", [], 0), ValueError("no verdict"))
    ran = headwater("dlq", "list", "-c", site.file)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert re.search(rf"^ +3  {site.prefix}frames  RuntimeError [0-9a-f]{{8}}  \S+ to \S+, 1 source$", lines[0]), lines[0]
    assert lines[1].strip() == "bug 2"
    assert "5 letters of 3 kinds" in ran.err
    ran = headwater("dlq", "list", "-c", site.file, "--each", "--topic", "frames", "--error", "valueerror")
    (line,) = ran.out.splitlines()
    assert re.search(rf"{site.prefix}frames.dlq@0:3 +gate +ValueError [0-9a-f]{{8}}  no JPEG$", line), line
    answer = json.loads(headwater("dlq", "list", "-c", site.file, "--json").out)
    assert (answer[0]["count"], answer[0]["topic"], answer[0]["error"]) == (3, f"{site.prefix}frames", "builtins.RuntimeError")
    each = json.loads(headwater("dlq", "list", "-c", site.file, "--json", "--each", "--source", "gate").out)
    assert [(row["record"], row["partition"], row["offset"], row["replays"]) for row in each] == [("kafka/c/u/2/0", 2, 0, 0)]
    digest = answer[0]["digest"]
    assert len(json.loads(headwater("dlq", "list", "-c", site.file, "--json", "--each", "--digest", digest[:6]).out)) == 3
    assert json.loads(headwater("dlq", "list", "-c", site.file, "--json", "--each", "--until", "1h").out) == []
    assert len(json.loads(headwater("dlq", "list", "-c", site.file, "--json", "--each", "--since", "1h").out)) == 5


def test_one_letter_is_shown_and_its_bytes_saved(headwater: Run, site: Site, tmp_path: Path) -> None:
    origin = site.put("frames", JPEG, b"cam-1", OWN, 1)
    site.bury(origin, RuntimeError("a \x1b[31mbug"), "cam-1/e1/7")
    place, picture = f"{site.prefix}frames.dlq@0:0", tmp_path / "frame.jpg"
    ran = headwater("dlq", "show", place, "-c", site.file, "--save", picture)
    assert ran.code == 0, ran.err
    assert picture.read_bytes() == JPEG
    assert "\x1b[31m" not in ran.out
    for part in ("cam-1/e1/7", "builtins.RuntimeError", f"{site.prefix}frames@1:0", "in raised", "ff d8 ff", "ce_time: 2026-01-31"):
        assert part in ran.out, part
    told = json.loads(headwater("dlq", "show", "cam-1/e1/7", "-c", site.file, "--json").out)
    assert (told["letter"], told["size_bytes"], told["offset"]) == (place, len(JPEG), 0)
    assert ["x", None] in told["headers"]
    assert dt.datetime.fromisoformat(told["appended_at"]).timestamp() * 1000 == origin.timestamp()[1]
    ran = headwater("dlq", "show", "frames.dlq@0:9", "-c", site.file)
    assert (ran.code, "dlq list --each" in ran.err) == (1, True)
    assert "frames" in headwater("dlq", "list", "--topic", "nothing", "-c", site.file).err


def test_a_replay_keeps_what_a_record_was_and_counts(headwater: Run, site: Site) -> None:
    origin = site.put("frames", JPEG, b"cam-1", OWN, 1)
    site.bury(origin, RuntimeError("bug"), "cam-1/e1/7")
    ran = headwater("dlq", "replay", "-c", site.file, "--dry-run")
    assert (ran.code, len(site.rows("frames")), site.rows("dlq.decisions")) == (0, 1, [])
    assert "1 record would be replayed" in ran.err
    ran = headwater("dlq", "replay", "-c", site.file, "--yes", "--rate", "0")
    assert ran.code == 0, ran.err
    (again,) = (row for row in site.rows("frames") if dict(row.headers() or ()).get("headwater.replays"))
    # cam-1 lives in partition 3 of 4, as Java's murmur2 of "cam-1" says, wherever the record had been
    assert (again.key(), again.value(), again.partition()) == (b"cam-1", JPEG, 3)
    extra = [("headwater.appended", str(origin.timestamp()[1]).encode()), ("headwater.replays", b"1")]
    assert again.headers() == [*OWN, *extra]
    (decision,) = site.rows("dlq.decisions")
    assert msgspec.json.decode(decision.value() or b"")["settlement"] == "replayed"
    assert "no dead letters" in headwater("dlq", "replay", "-c", site.file, "--yes").err  # it is settled
    assert len(site.rows("frames")) == 2
    site.bury(again, RuntimeError("still"), "cam-1/e1/7")
    (row,) = json.loads(headwater("dlq", "list", "-c", site.file, "--each", "--json").out)
    assert (row["replays"], row["message"]) == (1, "still")
    assert dt.datetime.fromisoformat(row["appended_at"]).timestamp() * 1000 == origin.timestamp()[1]  # of its first life
    assert len(json.loads(headwater("dlq", "list", "-c", site.file, "--each", "--json", "--all").out)) == 2
    assert "replayed 1 time before" in headwater("dlq", "list", "-c", site.file).out
    assert headwater("dlq", "replay", "-c", site.file, "--yes").code == 0
    assert sorted(dict(row.headers() or ()).get("headwater.replays", b"") for row in site.rows("frames")) == [b"", b"1", b"2"]


def test_a_foreign_record_keeps_its_identity_over_replays(headwater: Run, site: Site) -> None:
    first = site.put("frames", JPEG, None, [("trace", b"1")], 2)
    site.bury(first, RuntimeError("bug"))
    assert headwater("dlq", "replay", "-c", site.file, "--yes").code == 0
    cluster = site.clients.cluster([f"{site.prefix}frames"])
    uuid = cluster.topics[f"{site.prefix}frames"][0]

    def read(message: Message) -> Any:
        at = dt.datetime.fromtimestamp(message.timestamp()[1] / 1000, dt.UTC)
        origin = Origin(
            cluster=cluster.id,
            topic="frames",
            topic_uuid=uuid,
            partition=message.partition() or 0,
            offset=message.offset() or 0,
            appended_at=at,
        )
        return read_frame(message.value(), message.key(), message.headers(), origin)

    before, again = read(first), read(site.rows("frames")[-1])
    assert str(before.id) == f"kafka/{cluster.id}/{uuid}/2/0"
    assert (again.id, again.source, again.captured_at) == (before.id, before.source, before.captured_at)
    assert (before.replays, again.replays) == (0, 1)
    assert again.waited_s == pytest.approx((site.rows("frames")[-1].timestamp()[1] - first.timestamp()[1]) / 1000)
    site.bury(site.rows("frames")[-1], RuntimeError("still"))
    assert headwater("dlq", "replay", "-c", site.file, "--yes").code == 0
    assert (read(site.rows("frames")[-1]).id, read(site.rows("frames")[-1]).replays) == (before.id, 2)


def test_what_a_letter_does_not_hold_cannot_be_replayed(headwater: Run, site: Site) -> None:
    site.bury(site.put("frames", JPEG, b"cam-1", OWN, 1), RuntimeError("bug"), value=None, more=[("headwater.value.omitted", b"9 bytes")])
    ran = headwater("dlq", "replay", "-c", site.file, "--yes")
    assert ran.code == 1
    assert "its bytes were too many" in ran.err
    assert len(site.rows("frames")) == 1
    assert not site.rows("dlq.decisions")


def test_a_letter_that_was_written_twice_counts_once(headwater: Run, site: Site) -> None:
    origin = site.put("frames", JPEG, b"cam-1", OWN, 1)
    for _ in range(2):
        site.bury(origin, RuntimeError("bug"), "cam-1/e1/7")
    assert headwater("dlq", "replay", "-c", site.file, "--yes").code == 0
    assert len(site.rows("frames")) == 2


def test_a_discard_is_a_recorded_decision_and_an_explained_drop(headwater: Run, site: Site) -> None:
    site.bury(site.put("frames", JPEG, b"cam-1", OWN, 1), RuntimeError("bug"), "cam-1/e1/7")
    site.bury(site.put("frames", JPEG, b"cam-2", [], 1), RuntimeError("bug"), "kafka/c/u/1/1")
    ran = headwater("dlq", "discard", "-c", site.file, "--yes", "--note", "lens cap on")
    assert ran.code == 0, ran.err
    drops = [msgspec.json.decode(row.value() or b"") for row in site.rows("drops")]
    assert {(drop["source"], drop["epoch"], drop["stage"], drop["reason"], drop["ranges"]) for drop in drops} == {
        ("cam-1", "e1", "dlq", "discarded", "[[7,7]]"),
        ("kafka", "c/u/1", "dlq", "discarded", "[[1,1]]"),
    }
    decisions = [msgspec.json.decode(row.value() or b"") for row in site.rows("dlq.decisions")]
    assert {(each["record"], each["settlement"], each["note"]) for each in decisions} == {
        ("cam-1/e1/7", "discarded", "lens cap on"),
        ("kafka/c/u/1/1", "discarded", "lens cap on"),
    }
    assert "no dead letters" in headwater("dlq", "list", "-c", site.file).err
    assert headwater("dlq", "list", "-c", site.file, "--all", "--each").out.count("discarded by") == 2
    assert headwater("dlq", "replay", "-c", site.file, "--yes").code == 0
    assert len(site.rows("frames")) == 2  # what was given up does not come back by the way


def test_it_asks_before_it_acts(headwater: Run, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.bury(site.put("frames", JPEG, b"cam-1", OWN, 1), RuntimeError("bug"), "cam-1/e1/7")
    asked: list[str] = []
    monkeypatch.setattr("click.confirm", lambda text, **_: asked.append(text))
    ran = headwater("dlq", "discard", "-c", site.file)
    assert ran.code == 130
    assert asked == [f"give up 1 record of {site.prefix}frames?"]
    assert not site.rows("dlq.decisions")
    assert headwater("dlq", "list", "--since", "soon", "-c", site.file).code == 2
