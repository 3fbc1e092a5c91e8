"""`headwater tail` on a real broker: what a person sees, what a program gets, and how it ends."""

from __future__ import annotations

import datetime as dt
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer

from schemas.config import Kafka, SiteConfig, Topics
from schemas.detections import Detection, Detections
from schemas.messages import Drop, Ranges, Status, Tier, Verdict
from streams import outputs
from streams.burial import error_headers
from streams.clients import Clients
from streams.cluster import create_topics
from streams.topology import Topology

Run = Callable[..., Any]


class Site:
    """A leaf's topics on the suite's broker, and verdicts of two cameras in them."""

    def __init__(self, kafka: Kafka, prefix: str, folder: Path) -> None:
        self.topology = Topology(SiteConfig(name="leaf-1", tier="leaf", kafka=kafka, topics=Topics(prefix=prefix, partitions=2)))
        create_topics(self.topology, Clients(kafka, "test"))
        self.producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        self.file = folder / "leaf.toml"
        self.file.write_text(
            f'name = "leaf-1"\ntier = "leaf"\n[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\n'
            f'[topics]\nprefix = "{prefix}"\npartitions = 2\n'
        )
        self.written = 0

    def verdict(self, source: str = "cam-1", status: Status = Status.FINAL) -> None:
        value = Verdict(
            id=f"{source}/e1/{self.written}",
            source=source,
            captured_at=dt.datetime.now(dt.UTC),
            status=status,
            detections=Detections(
                [Detection("person", 0.9, 0, 0, 1, 1), Detection("person", 0.62, 0, 0, 1, 1), Detection("dog", 0.3, 0, 0, 1, 1)]
            ),
            confidence=0.9,
            tier=Tier.LEAF,
            site="leaf-1",
            rank=10,
            generation=0,
            model="nanodet-g",
            model_digest="a" * 64,
            deadline_ms=1000 if status is Status.PROVISIONAL else None,
        )
        self.written += 1
        self.put(outputs.answer(self.topology.topic("verdicts"), value))

    def put(self, output: Any) -> None:
        self.producer.produce(output.topic.name, key=output.key, value=output.value, headers=output.headers, partition=output.partition)
        self.producer.flush(10)


@pytest.fixture
def site(kafka: Kafka, prefix: str, tmp_path: Path) -> Site:
    return Site(kafka, prefix, tmp_path)


def test_one_line_a_record(headwater: Run, site: Site) -> None:
    site.verdict()
    site.verdict("cam-2", Status.PROVISIONAL)
    ran = headwater("tail", "verdicts", "-c", site.file, "--no-follow")
    assert ran.code == 0
    first, second = ran.out.splitlines()
    form = r"\d\d:\d\d:\d\d\.\d{3}  cam-1 +#0 +final +2 person \.90 \.62, 1 dog \.30  leaf nanodet-g  -?\d+ ms"
    assert re.fullmatch(form, first), first
    assert re.search(r"cam-2 +#1 +provisional ", second)


def test_the_last_the_first_and_one_source(headwater: Run, site: Site) -> None:
    for number in range(12):
        site.verdict(f"cam-{number % 2}")

    def sequences(*arguments: str) -> list[int]:
        ran = headwater("tail", "verdicts", "-c", site.file, "-F", *arguments)
        assert ran.code == 0, ran.err
        return [int(found) for found in re.findall(r"#(\d+)", ran.out)]

    assert sequences() == list(range(2, 12)), "the last ten, in order of time over both partitions"
    assert sequences("-n", "3") == [9, 10, 11]
    assert sequences("-n", "0") == []
    assert sequences("--from", "beginning") == list(range(12))
    assert sequences("--from", "1h", "--source", "cam-1") == [1, 3, 5, 7, 9, 11]
    assert sequences("-n", "2", "--source", "cam-0") == [8, 10]
    assert sequences("--from", "end") == []


def test_programs_get_one_object_a_line(headwater: Run, site: Site) -> None:
    site.verdict()
    ran = headwater("tail", "verdicts", "-c", site.file, "-F", "--json")
    (line,) = ran.out.splitlines()
    answer = msgspec.json.decode(line)
    assert (answer["kind"], answer["source"], answer["envelope"]["sequence"]) == ("verdict", "cam-1", 0)
    assert answer["value"]["detections"][0][:2] == ["person", 0.9]
    assert dt.datetime.fromisoformat(answer["appended_at"]).tzinfo is not None


def test_dead_letters_foreign_records_and_drops(headwater: Run, site: Site, prefix: str) -> None:
    class Failed:
        topic, partition, offset = (lambda self: "frames"), (lambda self: 1), (lambda self: 7)

    failed: Any = Failed()
    site.producer.produce(
        f"{prefix}frames.dlq", value=b"GIF89a\x1b[31m", headers=error_headers(failed, ValueError("a JPEG starts with ffd8ff"), "leaf", None)
    )
    site.producer.produce(f"{prefix}frames", value=b"\x1b]0;owned\x07", key=b"gate 3")
    drop = Drop(source="cam-1", epoch="e1", site="leaf-1", stage="leaf", reason="stale", ranges=Ranges([(3, 5), (9, 9)]))
    site.put(outputs.drop(site.topology.topic("drops"), drop, dt.datetime.now(dt.UTC)))
    letter = headwater("tail", "frames.dlq", "-c", site.file, "-F").out
    assert "frames@1:7  a JPEG starts with ffd8ff" in letter
    foreign = headwater("tail", "frames", "-c", site.file, "-F").out
    assert "unreadable of 10 bytes" in foreign
    assert "\x1b" not in letter + foreign, "a record must not steer the terminal"
    assert "stale        4 records not processed by leaf: 3-5, 9" in headwater("tail", "drops", "-c", site.file, "-F").out


def test_any_topic_of_the_cluster_and_full_names(headwater: Run, site: Site, prefix: str) -> None:
    site.verdict()
    assert "cam-1" in headwater("tail", f"{prefix}verdicts", "-c", site.file, "-F").out
    other = site.file.with_name("other.toml")
    other.write_text(site.file.read_text().replace(prefix, f"{prefix}other."))
    assert "cam-1" in headwater("tail", f"{prefix}verdicts", "-c", other, "-F").out, "not declared there, but on the cluster"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("verdict",), 1, "has no topic 'verdict': did you mean verdicts"),
        (("zzz",), 1, "has no topic 'zzz': there are: accounts, accuracy, alerts, "),
        (("alerts", "--from", "yesterday"), 2, "expected beginning, end, an age"),
        (("alerts", "-n", "3", "--from", "end"), 2, "-n and --from both say where to begin"),
        (("alerts", "--region"), 1, "has no [link]: this site has no region"),
    ],
)
def test_what_cannot_be_read_is_said(headwater: Run, site: Site, arguments: tuple[str, ...], code: int, told: str) -> None:
    ran = headwater("tail", *arguments, "-c", site.file, "-F")
    assert ran.code == code
    assert told in ran.err


def test_a_topic_that_was_not_created_is_said(headwater: Run, site: Site, prefix: str) -> None:
    site.file.write_text(site.file.read_text().replace(prefix, f"{prefix}new."))
    ran = headwater("tail", "alerts", "-c", site.file)
    assert ran.code == 1
    assert f"topic {prefix}new.alerts does not exist" in ran.err
    assert "headwater topology check" in ran.err


def follow(site: Site, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "infra.cli", "tail", "verdicts", "-c", str(site.file), *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_it_follows_until_ctrl_c_which_is_its_good_end(site: Site) -> None:
    site.verdict()
    process = follow(site)
    assert process.stdout is not None
    try:
        assert "#0" in process.stdout.readline()
        for number in range(1, 4):
            site.verdict()
            assert f"#{number}" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        told, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, told, said) == (0, "", "")


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_reader_that_has_enough_ends_it_quietly(site: Site, form: tuple[str, ...]) -> None:
    site.verdict()
    process = follow(site, *form)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.readline()
        process.stdout.close()
        end = time.monotonic() + 30
        while process.poll() is None:
            assert time.monotonic() < end, "it goes on though nobody reads"
            site.verdict()
        said = process.stderr.read()
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, said) == (0, "")
