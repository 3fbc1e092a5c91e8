"""The demo with an outage in it, judged from outside: a raw reader of the topics against the cameras' own manifest, foreign clients, and
the topology check on the brokers it left behind. The product's account is compared with that, never trusted.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient

from infra.kafka.broker import Broker
from infra.kafka.settings import BrokerSettings
from schemas.config import parse

SECONDS, OUTAGE = 24, (8, 7)
HEADWATER = [sys.executable, "-m", "infra.cli"]

pytestmark = pytest.mark.timeout(420)


class Ran(NamedTuple):
    """A demo that has ended, with its leaf's and its region's broker up again."""

    folder: Path
    output: str
    figures: dict[str, Any]
    leaf: str
    region: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("demo")
    kept, figures = folder / "kept", folder / "figures.json"
    command = [*HEADWATER, "demo", "--seconds", str(SECONDS), "--cameras", "1", "--outage", f"{OUTAGE[0]}:{OUTAGE[1]}"]
    command += ["--degrade", "darkness@13"]
    done = subprocess.run([*command, "--json", str(figures), "--keep", str(kept)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    brokers = []
    for name in ("leaf", "region"):
        config = parse((kept / f"{name}.toml").read_text(), {})
        port = int(config.kafka.bootstrap_servers.rpartition(":")[2])
        brokers.append(Broker(BrokerSettings(name=name, folder=kept / f"kafka-{name}", port=port)))
    for broker in brokers:
        broker.spawn()
    try:
        for broker in brokers:
            broker.wait_ready()
        yield Ran(kept, done.stdout, json.loads(figures.read_text()), *(broker.bootstrap_servers for broker in brokers))
    finally:
        for broker in brokers:
            broker.stop()


def raw(bootstrap: str, topic: str) -> list[Any]:
    """Every message of a topic, by librdkafka alone."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "raw", "enable.auto.commit": False, "enable.partition.eof": True})
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        left, found, deadline = set(partitions), [], time.monotonic() + 60
        while left:
            assert time.monotonic() < deadline, f"{topic} was not read to its end"
            message = consumer.poll(1.0)
            if message is None:
                continue
            if message.error() is None:
                found.append(message)
            elif message.error().code() == KafkaError._PARTITION_EOF:
                left.discard(message.partition())
        return found
    finally:
        consumer.close()


def values(bootstrap: str, topic: str) -> list[dict[str, Any]]:
    return [json.loads(message.value()) for message in raw(bootstrap, topic)]


def manifest(ran: Ran) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ran.folder / "manifest.jsonl").read_text().splitlines()]


def test_every_frame_of_the_manifest_has_ended(ran: Ran) -> None:
    produced = {f"{line['source']}/{line['epoch']}/{line['sequence']}" for line in manifest(ran)}
    assert len(produced) >= SECONDS * 29
    results = {message.key().decode() for message in raw(ran.leaf, "results")}
    dead = {dict(message.headers())["ce_id"].decode() for message in raw(ran.leaf, "frames.dlq")}
    dropped = set()
    for drop in values(ran.leaf, "drops"):
        for first, last in json.loads(drop["ranges"]):
            dropped |= {f"{drop['source']}/{drop['epoch']}/{number}" for number in range(first, last + 1)}
    assert produced == results | dead | dropped
    assert len(results) >= 0.9 * len(produced)
    account = ran.figures["account"]["lines"]
    assert sum(line["produced"] for line in account) == len(produced)
    assert sum(line["results"] for line in account) == len(results)


def test_sequences_are_dense_and_frames_arrive_as_they_were_made(ran: Ran) -> None:
    import hashlib

    wanted = {(line["source"], line["epoch"], line["sequence"]): line["sha256"] for line in manifest(ran)}
    by_epoch: dict[tuple[str, str], set[int]] = {}
    for source, epoch, sequence in wanted:
        by_epoch.setdefault((source, epoch), set()).add(sequence)
    assert all(numbers == set(range(len(numbers))) for numbers in by_epoch.values())
    for message in raw(ran.leaf, "frames"):
        source, epoch, sequence = dict(message.headers())["ce_id"].decode().split("/")
        assert wanted[source, epoch, int(sequence)] == hashlib.sha256(message.value()).hexdigest()


def test_alerts_fired_during_the_outage_and_were_judged_after_it(ran: Ran) -> None:
    alerts: dict[str, dict[str, Any]] = {}
    raised_ms: dict[str, int] = {}
    for message in raw(ran.leaf, "alerts"):
        alert = json.loads(message.value())
        if alert["state"] == "raised":
            raised_ms[alert["id"]] = message.timestamp()[1]
        if alert["version"] >= alerts.get(alert["id"], alert)["version"]:
            alerts[alert["id"]] = alert
    first_frame_ms = min(message.timestamp()[1] for message in raw(ran.leaf, "frames"))
    begin = first_frame_ms + OUTAGE[0] * 1000 + 1500  # the demo counts from the first answer, a little after the first frame
    during = [alert for alert, at in raised_ms.items() if begin <= at <= begin + (OUTAGE[1] - 2) * 1000]
    assert during
    assert {alerts[alert]["state"] for alert in during} <= {"confirmed", "retracted"}
    pictures = {message.key().decode(): message.value() for message in raw(ran.leaf, "alerts.evidence")}
    assert set(alerts) <= set(pictures)
    assert all(picture.startswith(b"\xff\xd8\xff") for picture in pictures.values())


def test_nothing_passed_the_link_during_the_outage_and_everything_after_it(ran: Ran) -> None:
    times = sorted(message.timestamp()[1] for message in raw(ran.region, "up.demo-leaf.verdicts"))
    longest = max(after - before for before, after in itertools.pairwise(times))
    assert longest >= (OUTAGE[1] - 1) * 1000
    here = {message.key() for message in raw(ran.leaf, "verdicts")}
    there = {message.key() for message in raw(ran.region, "up.demo-leaf.verdicts")}
    assert here == there
    kinds = ("escalations", "escalations.alerts")
    asked = {message.value() for kind in kinds for message in raw(ran.leaf, kind)}
    assert asked == {message.value() for kind in kinds for message in raw(ran.region, f"up.demo-leaf.{kind}")}
    answers = {message.key() for message in raw(ran.region, "down.demo-leaf.verdicts")}
    assert answers == {message.key() for message in raw(ran.leaf, "region.verdicts")}
    questions = [json.loads(dict(message.headers() or [])["escalation"] or b"") for kind in kinds for message in raw(ran.leaf, kind)]
    assert {key.decode() for key in answers if key} == {record["id"] for question in questions for record in question["records"]}


def test_both_tiers_believe_the_same(ran: Ran) -> None:
    def latest(bootstrap: str) -> dict[str, str]:
        return {message.key().decode(): json.loads(message.value())["order"] for message in raw(bootstrap, "results")}

    assert latest(ran.leaf) == latest(ran.region)
    tiers = {result["id"]: result["tier"] for result in values(ran.leaf, "results")}
    assert set(tiers.values()) == {"leaf", "region"}


def test_kcat_reads_results_and_alerts_as_plain_json(ran: Ran, kcat: str) -> None:
    for topic, fields in (("results", {"id", "status", "detections", "order"}), ("alerts", {"id", "state", "rule", "seen"})):
        shown = subprocess.run(
            [kcat, "-C", "-b", ran.leaf, "-t", topic, "-o", "beginning", "-e", "-q"], capture_output=True, text=True, timeout=60, check=True
        )
        records = [json.loads(line) for line in shown.stdout.splitlines()]
        assert records
        assert all(fields <= set(record) for record in records)
        assert not any(isinstance(value, (dict, list)) for record in records for value in record.values())


def test_topology_check_is_clean_and_names_a_topic_that_is_deleted(ran: Ran) -> None:
    def check(file: str) -> subprocess.CompletedProcess[str]:
        command = [*HEADWATER, "topology", "check", "-c", str(ran.folder / file), "--json"]
        return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)

    for file in ("leaf.toml", "region.toml"):
        found = check(file)
        assert found.returncode == 0, found.stdout + found.stderr
    admin = AdminClient({"bootstrap.servers": ran.region})
    admin.delete_topics(["down.demo-leaf.verdicts"])["down.demo-leaf.verdicts"].result(30)
    deadline = time.monotonic() + 30
    while "down.demo-leaf.verdicts" in admin.list_topics(timeout=10).topics:
        assert time.monotonic() < deadline
    found = check("region.toml")
    assert found.returncode == 1
    assert "down.demo-leaf.verdicts" in found.stdout


def test_tail_and_show_tell_the_story_of_an_alert(ran: Ran, tmp_path: Path) -> None:
    tail = subprocess.run(
        [*HEADWATER, "tail", "alerts", "-c", str(ran.folder / "leaf.toml"), "--from", "beginning", "--no-follow", "--json"],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert tail.returncode == 0, tail.stderr
    assert len(tail.stdout.splitlines()) == len(raw(ran.leaf, "alerts"))
    picture = tmp_path / "alert.jpg"
    show = subprocess.run(
        [*HEADWATER, "show", "last", "-c", str(ran.folder / "leaf.toml"), "--picture", str(picture)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert show.returncode == 0, show.stderr
    assert picture.read_bytes().startswith(b"\xff\xd8\xff")


def test_the_demo_printed_what_it_promises(ran: Ran) -> None:
    for word in (
        "alert latency",
        "saved",
        "The account",
        "Every frame is accounted for",
        "outage",
        "cam-1: brightness from",
        "live accuracy",
    ):
        assert word in ran.output
    assert ran.figures["failures"] == []
    assert ran.figures["wire"]["saved"] > 0.9
    assert ran.figures["alert_latency_ms"]["frames"] > 0


def test_nothing_of_the_demo_is_left_running(ran: Ran) -> None:
    listing = subprocess.run(
        ["ps", "-eo", "args"], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "4000"}
    ).stdout
    ours = [line for line in listing.splitlines() if str(ran.folder) in line and "kafka-" not in line]
    assert not ours
