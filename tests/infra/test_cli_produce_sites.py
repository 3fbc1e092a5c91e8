"""`headwater produce` with several leaf sites, as a person and a program see it: two real brokers, one of them killed under it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, TopicPartition

from infra.cli.produce import produce
from infra.kafka.broker import Broker
from infra.kafka.settings import BrokerSettings
from schemas.config import Kafka, SiteConfig, Topics
from streams.clients import Clients
from streams.cluster import create_topics
from streams.topology import Topology


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.jpg"), np.full((32, 32, 3), 60 * number, np.uint8))
    return folder


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Broker]:
    """A broker that a test may kill."""
    with Broker(BrokerSettings(name="mortal", folder=tmp_path / "mortal", port=0)) as broker:
        yield broker


def topics_of(kafka: Kafka, prefix: str) -> None:
    config = SiteConfig(name="any", tier="leaf", kafka=kafka, topics=Topics(prefix=prefix, partitions=1))
    create_topics(Topology(config), Clients(kafka, "test"))


def file_of(folder: Path, name: str, kafka: Kafka, prefix: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(
        f'name = "{name}"\ntier = "leaf"\nkafka.bootstrap_servers = "{kafka.bootstrap_servers}"\n'
        f'[topics]\nprefix = "{prefix}"\npartitions = 1\n'
    )
    return path


def command(*arguments: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "HEADWATER_CONFIG"}
    arguments_ = [sys.executable, "-m", "infra.cli", "produce", "images", *map(str, arguments)]
    return subprocess.Popen(arguments_, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=environment)


def run(*arguments: str | Path, cwd: Path | None = None) -> tuple[int, str, str]:
    process = command(*arguments, cwd=cwd)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


def sequences(kafka: Kafka, prefix: str, names: tuple[str, ...]) -> list[set[int]]:
    """The sequences on `frames` of each source, with librdkafka alone."""
    reader = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": uuid.uuid4().hex, "enable.auto.commit": False})
    with contextlib.closing(reader):
        place = TopicPartition(f"{prefix}frames", 0, 0)
        _, high = reader.get_watermark_offsets(place, timeout=10)
        reader.assign([place])
        found: dict[str, set[int]] = {name: set() for name in names}
        deadline = time.monotonic() + 30
        read = 0
        while read < high:
            assert time.monotonic() < deadline, "frames were not read to their end"
            message = reader.poll(1.0)
            if message is not None and message.error() is None:
                read = message.offset() + 1
                found[message.key().decode()].add(int(dict(message.headers())["ce_sequence"]))
        return [found[name] for name in names]


def wait_for(condition: Callable[[], Any], limit_s: float = 40.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.05)


def test_it_goes_on_at_the_other_site_when_one_dies(pictures: Path, kafka: Kafka, mortal: Broker, prefix: str, tmp_path: Path) -> None:
    """Two producers, one shown to a program and one to a person."""
    for each in (kafka, mortal.kafka):
        topics_of(each, prefix)
    sites = tmp_path / "sites.toml"  # the bias makes `mortal` the nearer one
    sites.write_text(
        f'[[sites]]\nname = "steady"\nkafka.bootstrap_servers = "{kafka.bootstrap_servers}"\nbias_ms = 500\n'
        f'topics.prefix = "{prefix}"\ntopics.partitions = 1\n'
        f'[[sites]]\nname = "mortal"\nkafka.bootstrap_servers = "{mortal.kafka.bootstrap_servers}"\n'
        f'topics.prefix = "{prefix}"\ntopics.partitions = 1\n[routing]\nhold_s = 1\nmax_age_s = 30\n'
    )
    names, processes = ("program", "person"), []
    try:
        for name in names:
            options = ["--loop", "--fps", "20", "--name", name, "--manifest", tmp_path / name]
            processes.append(command(pictures, "--sites", sites, *options, *(["--json"] if name == "program" else [])))
        wait_for(lambda: all(len(found) > 10 for found in sequences(mortal.kafka, prefix, names)))
        before = sequences(mortal.kafka, prefix, names)
        assert mortal.pid is not None
        os.kill(mortal.pid, signal.SIGKILL)
        wait_for(lambda: all(len(found) > 20 for found in sequences(kafka, prefix, names)))
        for process in processes:
            process.send_signal(signal.SIGTERM)
        (out, err), (shown, told) = (process.communicate(timeout=40) for process in processes)
    finally:
        for process in processes:
            process.kill()
    mortal.stop()
    mortal.start()
    numbers = [[json.loads(line)["sequence"] for line in (tmp_path / name).read_text().splitlines()] for name in names]
    at_mortal, at_steady = sequences(mortal.kafka, prefix, names), sequences(kafka, prefix, names)
    for process, said, listed, early, late, then in zip(processes, (err, told), numbers, at_mortal, at_steady, before, strict=True):
        assert process.returncode == 0, said
        assert "Traceback" not in said
        assert listed == list(range(len(listed)))
        assert early | late == set(listed)
        assert then <= early
    assert "moved from mortal to steady" in told
    assert "moved between sites" in shown
    assert "steady" in shown.splitlines()[-1]
    lines = [json.loads(line) for line in out.splitlines()]
    moves = [(line["old"], line["new"]) for line in lines if line["type"] == "moved"]
    assert moves[0][0] is None
    assert [new for _, new in moves[:-1]] == [old for old, _ in moves[1:]]
    assert moves[-1] == ("mortal", "steady")
    assert any(line["type"] == "site" and (line["site"], line["ok"]) == ("mortal", False) for line in lines)
    counters = [line for line in lines if line["type"] == "counters"]
    assert {"mortal", "steady"} >= {line["site"] for line in counters}
    summary = lines[-1]
    assert (summary["type"], summary["site"], sum(summary["moves"].values())) == ("summary", "steady", len(moves) - 1)
    assert summary["sites"]["steady"]["rtt_ms"] > 0
    assert (summary["frames"], summary["dropped"], summary["open"], summary["unaccounted"]) == (len(numbers[0]), 0, 0, [])


def test_sites_by_their_files_and_by_their_addresses(pictures: Path, kafka: Kafka, prefix: str, tmp_path: Path) -> None:
    topics_of(kafka, prefix)
    site = file_of(tmp_path, "hall", kafka, prefix)
    dead = file_of(tmp_path, "dead", Kafka(bootstrap_servers="127.0.0.1:1"), prefix)
    code, out, err = run(pictures, "-c", dead, "-c", site, "--frames", "3", "--fps", "50", "--json")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["site"] == "hall"
    assert "dead" in err
    code, out, err = run(pictures, "-c", site, "--to", f"hall={kafka.bootstrap_servers}", "--to", "127.0.0.1:1", "--frames", "3", "--json")
    assert code == 0, err
    assert set(json.loads(out.splitlines()[-1])["sites"]) == {"hall", "127-0-0-1-1"}
    assert sequences(kafka, prefix, (pictures.name,)) == [{0, 1, 2}]


def test_wrong_sites_are_told_in_one_line(pictures: Path, kafka: Kafka, prefix: str, tmp_path: Path) -> None:
    site = file_of(tmp_path, "hall", kafka, prefix)
    other = file_of(tmp_path, "gate", kafka, prefix)
    broken = tmp_path / "broken.toml"
    broken.write_text('[[sites]]\nname = "A"\n')
    region = tmp_path / "region.toml"
    region.write_text(site.read_text().replace('tier = "leaf"', 'tier = "region"') + '[region]\nsites = ["gate"]\n')
    for arguments, code, said in [
        (("--to", "a=127.0.0.1:1", "--bootstrap-servers", "127.0.0.1:1"), 2, "give one of them"),
        (("--to", "a=127.0.0.1:1", "--to", "a=127.0.0.1:2"), 2, "two sites are called a"),
        (("--to", "nowhere"), 2, "HOST:PORT"),
        (("--sites", "nope.toml"), 1, "nope.toml cannot be read"),
        (("--sites", broken), 1, "$.sites[0].name is 'A'"),
        (("--sites", broken, "-c", site), 2, "both name sites"),
        (("-c", site, "-c", other, "--to", "127.0.0.1:1"), 2, "several --config"),
        (("-c", site, "-c", region), 1, "frames go to a leaf"),
        (("-c", tmp_path / "none.toml"), 1, "there is no file"),
    ]:
        result = CliRunner().invoke(produce, ["images", str(pictures), *map(str, arguments)])
        assert (result.exit_code, result.stdout) == (code, ""), (arguments, result.stderr)
        assert said in result.stderr, (arguments, result.stderr)
        assert code == 2 or len(result.stderr.splitlines()) == 1, result.stderr
    found, out, err = run(pictures, "-c", site, "-c", other)
    assert (found, out) == (1, "")
    assert "none of the 2 sites can be used: hall: " in err
    assert len(err.splitlines()) == 1
    assert "--to HOST:PORT" in run(pictures, cwd=tmp_path)[2]
