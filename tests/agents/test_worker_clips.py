"""Clips between workers on a real Kafka: what a killed leaf had in an open clip is asked about again, and the region answers it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from confluent_kafka import Producer

LIMIT_S = 60.0
COMMIT_S = 1.0
AWAY = {"region": {"bootstrap_servers": "127.0.0.1:9"}, "region_name": "region-1"}
EVERYTHING = {"inferences_per_s": 10_000.0, "budget_bytes_per_s": 100 << 20, "mode": "everything"}


def questions(reader: Any) -> list[Any]:
    return [json.loads(dict(message.headers() or [])["escalation"] or b"") for message in reader.records["escalations"]]


def asked(reader: Any) -> set[str]:
    return {record["id"] for question in questions(reader) for record in question["records"]}


def _pause(reader: Any, seconds: float) -> None:
    until_s = time.monotonic() + seconds
    reader.until(lambda: time.monotonic() > until_s, "time passes")


def test_every_frame_is_asked_about_though_the_leaf_is_killed_with_open_clips(
    tools: ModuleType, site: Callable[..., Any], nanodet: Any, street: list[bytes]
) -> None:
    assert all(nanodet.look(jpeg).detections for jpeg in street), "each of them is unsure"
    leaf = site(
        link=AWAY,
        policy=EVERYTHING,
        ingress={"max_age_ms": 60_000},
        evidence={"form": "clip", "clip_frames": 6, "clip_s": 8.0, "side": 256},
    )
    reader = tools.Reader(leaf, "verdicts", "drops", "escalations", "frames.dlq")
    camera = tools.Camera(leaf, street)
    agent = leaf.start("agent")
    for _ in range(5):  # a second apart, so that a clip waits for more than a moment
        camera.shoot(1)
        reader.until(lambda: set(camera.manifest) <= reader.ids("verdicts"), "frames are answered")
        _pause(reader, COMMIT_S)
    _pause(reader, COMMIT_S)  # what is finished is committed
    assert not set(camera.manifest) <= asked(reader), "some of them are in an open clip"
    agent.send_signal(signal.SIGKILL)
    agent.wait(LIMIT_S)
    camera.shoot(8)
    restarted = leaf.start("agent")
    camera.shoot(8)
    reader.until(lambda: set(camera.manifest) <= asked(reader), "every frame is asked about, in whichever clip")
    restarted.send_signal(signal.SIGTERM)
    assert restarted.wait(LIMIT_S) == 0, leaf.logs()
    reader.close()
    assert reader.dropped() == set()
    assert reader.records["frames.dlq"] == []
    found = questions(reader)
    assert {question["content_type"] for question in found} == {"video/h264"}
    for question in found:
        sequences = [int(record["id"].rsplit("/", 1)[1]) for record in question["records"]]
        assert sequences == sorted(set(sequences))
        assert {record["id"].partition("/")[0] for record in question["records"]} == {question["source"]}
        assert len(sequences) <= 6

    region = site(name="region-1", tier="region", region={"sites": ["leaf-1"], "inferences_per_s": 1000.0}, create=True)
    answers = tools.Reader(region, "down.leaf-1.verdicts", "up.leaf-1.escalations.dlq")
    producer = Producer({"bootstrap.servers": region.kafka.bootstrap_servers})
    first = reader.records["escalations"][0]
    cut = first.value()[:-30]
    for message, value in ((first, cut), *((message, message.value()) for message in reader.records["escalations"])):
        producer.produce(f"{region.prefix}up.leaf-1.escalations", value=value, key=message.key(), headers=message.headers())
    assert producer.flush(LIMIT_S) == 0
    region.start("agent")
    answers.until(lambda: set(camera.manifest) <= answers.ids("down.leaf-1.verdicts"), "the region answers each frame of each clip")
    answers.until(lambda: answers.records["up.leaf-1.escalations.dlq"], "and what is damaged is a dead letter")
    answers.close()
    digests = {question["evidence"] for question in found}
    assert {verdict["evidence"] for verdict in answers.values("down.leaf-1.verdicts")} <= digests
    assert all(json.loads(verdict["detections"]) for verdict in answers.values("down.leaf-1.verdicts"))
