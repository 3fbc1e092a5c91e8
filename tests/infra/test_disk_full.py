"""A broker on a disk that really fills: what a person is told, that nothing acknowledged is lost, and that all goes on when there is room.

The disk is a small file system of its own, a tmpfs: mounting it takes root, or sudo without a password.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

SIZE_MB = 96
BALLAST_MB = 40
RECORD = 20_000


class Command:
    """`headwater broker up` as a person runs it, its lines as they come."""

    def __init__(self, folder: Path, home: Path, log: Path) -> None:
        arguments = ["broker", "up", "small", "--port", "0", "--data-dir", str(folder / "broker"), "--min-free-mb", "20"]
        self._log = log
        self._file = log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", *arguments],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HEADWATER_DATA": str(home), "COLUMNS": "400"},
        )

    def text(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(40)
        finally:
            self.process.kill()
            self._file.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of `SIZE_MB`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    options = f"size={SIZE_MB}m,mode=0777"
    subprocess.run([*as_root, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, timeout=20)
    try:
        yield folder
    finally:
        subprocess.run([*as_root, "umount", "-l", str(folder)], check=True, timeout=20)


class Writer:
    """A producer that goes on through it all, and remembers what was acknowledged."""

    def __init__(self, servers: str) -> None:
        self.acknowledged: set[int] = set()
        self.failed: list[str] = []
        self.sent = 0
        self._producer = Producer(
            {"bootstrap.servers": servers, "enable.idempotence": True, "message.timeout.ms": 0, "batch.size": 60_000, "linger.ms": 1}
        )

    def write(self, count: int) -> None:
        for _ in range(count):
            number = self.sent
            self._producer.produce(
                "filled", str(number).encode().ljust(RECORD, b"."), on_delivery=lambda e, m, n=number: self._report(n, e, m)
            )
            self.sent += 1
            self._producer.poll(0)

    def _report(self, number: int, error: KafkaError | None, _: Message) -> None:
        if error is None:
            self.acknowledged.add(number)
        else:
            self.failed.append(error.str())

    def poll(self) -> None:
        self._producer.poll(0.05)


def read_all(servers: str) -> list[int]:
    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": "reader", "enable.auto.commit": False, "fetch.message.max.bytes": 1 << 20}
    )
    found: list[int] = []
    try:
        place = TopicPartition("filled", 0, 0)
        _, high = consumer.get_watermark_offsets(place, timeout=20)
        consumer.assign([place])
        until = time.monotonic() + 60
        while len(found) < high:
            assert time.monotonic() < until
            message = consumer.poll(1.0)
            if message is not None and message.error() is None:
                found.append(int((message.value() or b"").rstrip(b".")))
    finally:
        consumer.close()
    return found


def test_a_full_disk_is_said_and_recovered_from(disk: Path, tmp_path: Path, eventually: Callable[..., None]) -> None:
    (disk / "ballast").write_bytes(bytes(BALLAST_MB << 20))
    command = Command(disk, tmp_path / "home", tmp_path / "broker-up.log")
    try:
        eventually(lambda: "is ready at" in command.text() or command.process.poll() is not None, timeout_s=90)
        servers = re.search(r"is ready at (\S+)", command.text())[1]  # type: ignore[index]
        admin = AdminClient({"bootstrap.servers": servers})
        admin.create_topics([NewTopic("filled", 1, 1)])["filled"].result(20)
        writer = Writer(servers)
        while "disk full" not in command.text():
            assert command.process.poll() is None, command.text()
            assert writer.sent * RECORD < 2 * SIZE_MB << 20, "the disk holds more than it can"
            if writer.sent - len(writer.acknowledged) < 200:
                writer.write(10)
            writer.poll()
        before = set(writer.acknowledged)
        assert shutil.disk_usage(disk).free < 20 << 20, "the disk really is full"
        said = next(line for line in command.text().splitlines() if "disk full" in line)
        assert re.search(rf"disk full: {disk}/broker has [\d,]+ bytes free\. Broker small has stopped", said)
        assert "it starts again by itself when 20 MiB are free" in said
        (disk / "ballast").unlink()
        eventually(lambda: "is ready again" in command.text() or command.process.poll() is not None, timeout_s=90)
        assert command.process.poll() is None, command.text()
        writer.write(20)

        def delivered() -> bool:
            writer.poll()
            return len(writer.acknowledged) == writer.sent

        eventually(delivered, timeout_s=60)
        assert not writer.failed
        stored = read_all(servers)
        assert before <= set(stored), "what was acknowledged before the disk was full is still there"
        assert sorted(stored) == list(range(writer.sent)), "the producer went on by itself: everything is there, once"
        assert command.text().count("disk full") == 1, "said once"
    finally:
        code = command.stop()
    assert code == 130
    assert "stopping broker small" in command.text()
