"""`headwater label`: what is published is what the lines say, and a line that is none is named."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from infra.cli.common import CommandFailed
from infra.cli.label import read
from schemas.config import Kafka, SiteConfig, Topics
from schemas.labels import Label
from schemas.records import InvalidRecord
from streams.clients import Clients
from streams.cluster import create_topics
from streams.partition import partition_of
from streams.topology import Topology

FRAME = "cam-1/e1/42"
LIMIT_S = 20.0


def line(**fields: Any) -> bytes:
    return json.dumps({"id": FRAME, **fields}).encode()


def test_lines_become_labels() -> None:
    person = {"label": "person", "box": [192, 54, 384, 540]}
    lines = [line(objects=[person]), b"\n", line(id="cam-2/e1/0", objects=[], classes=["dog"])]
    first, second = read(lines, ("person",), (1920.0, 1080.0), "anna")
    assert (first.id, first.source, first.by, first.classes) == (FRAME, "cam-1", "anna", ("person",))
    ((label, score, *box),) = json.loads(first.objects.to_json())
    assert (label, score, box[:4]) == ("person", 1.0, [0.1, 0.05, 0.2, 0.5])
    assert (second.source, len(second.objects), second.classes) == ("cam-2", 0, ("dog",))
    (foreign,) = read([line(id="kafka/c/t/0/7", source="gate")], (), None, "anna")
    assert foreign.source == "gate"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (b"{", "line 2"),
        (line(objects=[{"label": "person", "box": [0, 0, 2, 1]}]), "x1"),
        (line(objects=[{"label": "cat", "box": [0, 0, 1, 1]}]), "expected one of its classes, person"),
        (line(id="nothing"), "record id 'nothing'"),
        (line(boxes=[]), "boxes"),
        (line(id="kafka/c/t/0/7"), "'source'"),
        (line(source="cam-9"), "expected a record of the source 'cam-9'"),
        (b'{"id": "' + b"x" * (1 << 20) + b'"}', "expected at most 1048576"),
    ],
)
def test_a_line_that_is_no_label_is_named(wrong: bytes, said: str) -> None:
    with pytest.raises(CommandFailed) as failed:
        list(read([line(objects=[]), wrong], ("person",), None, "anna"))
    assert "line 2" in failed.value.message
    assert said in failed.value.message


def test_a_label_has_no_object_that_was_not_looked_for() -> None:
    (found,) = read([line(objects=[])], (), None, "anna")
    with pytest.raises(InvalidRecord, match="at most 100"):
        Label(id=FRAME, source="cam-1", objects=found.objects, by="anna", at=found.at, classes=tuple(map(str, range(101))))


def test_labels_are_published_by_source(headwater: Callable[..., Any], kafka: Kafka, prefix: str, tmp_path: Path) -> None:
    config = SiteConfig(name="leaf-1", tier="leaf", kafka=kafka, topics=Topics(prefix=prefix, partitions=2))
    create_topics(Topology(config), Clients(kafka, "test"))
    site, labels = tmp_path / "leaf.toml", tmp_path / "labels.jsonl"
    site.write_text(
        f'name = "leaf-1"\ntier = "leaf"\n[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\n'
        f'[topics]\nprefix = "{prefix}"\npartitions = 2\n'
    )
    labels.write_bytes(b"\n".join(line(id=f"cam-1/e1/{number}", objects=[]) for number in range(1200)))
    ran = headwater("label", "frames", labels, "-c", site, "--by", "anna", "--json")
    assert (ran.code, json.loads(ran.out)) == (0, {"labels": 1200})
    reader = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": uuid.uuid4().hex})
    reader.assign([TopicPartition(f"{prefix}labels", partition_of("cam-1", 2), OFFSET_BEGINNING)])
    found = reader.consume(1200, LIMIT_S)
    reader.close()
    assert [message.key() for message in found] == [f"cam-1/e1/{number}".encode() for number in range(1200)]
    assert {json.loads(message.value() or b"")["by"] for message in found} == {"anna"}
    ran = headwater("tail", "labels", "-c", site, "--from", "beginning", "--no-follow")
    assert ran.code == 0, ran.err
    assert "cam-1/e1/0" in ran.out
