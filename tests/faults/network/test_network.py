"""Real networks: what a wire is told to do to packets is what happens to them, and nothing of it is left behind.

These need Linux, root and iproute2 (`.ci/run` installs it).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from infra.faults.network import NetworkUnavailable, namespaces
from infra.faults.network.scenarios import flapping_link
from infra.faults.network.wire import Wire
from infra.kafka.broker import Broker
from infra.kafka.settings import BrokerSettings
from infra.processes import Child

LIMIT_S = 60.0
Count = Callable[[int], int]


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as made:
        yield made


class Datagrams:
    """Sends numbered datagrams from one end, and counts what arrives at the other."""

    def __init__(self, wire: Wire) -> None:
        with wire.near.inside():
            self.near = self._socket(wire.near.address)
        with wire.far.inside():
            self.far = self._socket(wire.far.address)

    @staticmethod
    def _socket(address: str) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        made.bind((address, 0))
        return made

    def send(self, numbers: range, *, down: bool = False) -> list[int]:
        """The numbers that arrive, in order; it waits until nothing has come for a while."""
        source, target = (self.far, self.near) if down else (self.near, self.far)
        for number in numbers:
            source.sendto(number.to_bytes(4, "big"), target.getsockname())
            if number % 50 == 49:
                time.sleep(0.002)  # a device's own queue is short
        target.settimeout(1.5)
        found = []
        try:
            while len(found) < len(numbers):
                found.append(int.from_bytes(target.recv(16), "big"))
        except TimeoutError:
            pass
        return found


def test_delay_is_there_both_ways(wire: Wire) -> None:
    with wire.far.inside():
        listener = socket.create_server((wire.far.address, 0))

    def connect_s() -> float:
        with wire.near.inside():
            started = time.perf_counter()
            with socket.create_connection(listener.getsockname(), timeout=20):
                return time.perf_counter() - started

    with listener:
        connect_s()
        wire.set(delay_ms=60)
        assert connect_s() >= 0.120
        wire.set(delay_ms=100, way="up")
        wire.set(delay_ms=0, way="down")
        assert connect_s() >= 0.100


def test_loss_happens_and_is_counted(wire: Wire) -> None:
    wire.set(loss=0.2)
    found = Datagrams(wire).send(range(2000))
    lost = wire.counters().up.lost
    assert len(found) == 2000 - lost
    assert 280 < lost < 520  # nine standard deviations
    assert found == sorted(found)


def test_jitter_keeps_order_and_reordering_does_not(wire: Wire) -> None:
    wire.set(delay_ms=30, jitter_ms=20)
    datagrams = Datagrams(wire)
    assert datagrams.send(range(300)) == list(range(300))
    wire.set(jitter_ms=0, reorder=0.2)
    found = datagrams.send(range(300))
    assert sorted(found) == list(range(300))
    assert found != sorted(found)
    assert wire.counters().up.reordered > 20


def test_one_direction_can_be_cut(wire: Wire) -> None:
    datagrams = Datagrams(wire)
    wire.cut("down")
    assert len(datagrams.send(range(20))) == 20
    assert datagrams.send(range(20), down=True) == []
    assert wire.counters().down.cut >= 20
    wire.restore()
    assert len(datagrams.send(range(20), down=True)) == 20


def test_a_rate_is_obeyed_and_a_full_queue_loses(wire: Wire) -> None:
    wire.set(rate_bytes_per_s=20_000, queue_bytes=4_000)
    started = time.monotonic()
    found = Datagrams(wire).send(range(1000))
    counters = wire.counters().up
    assert counters.overflowed == 1000 - len(found) > 0
    assert counters.bytes <= 20_000 * (time.monotonic() - started) + 4_000 + 1_500


def test_an_interface_that_is_down_tells_its_users(wire: Wire) -> None:
    datagrams = Datagrams(wire)
    wire.interface_down()
    with pytest.raises(OSError, match="unreachable"):
        datagrams.send(range(1))
    wire.interface_up()
    assert datagrams.send(range(5)) == list(range(5))


def test_kafka_delivers_every_record_over_delay_loss_and_a_cut(wire: Wire, tmp_path: Path) -> None:
    count = 3000
    with wire.far.inside(), Broker(BrokerSettings(name="far", folder=tmp_path / "far", host=wire.far.address, port=9092)) as broker:
        wire.set(delay_ms=40, loss=0.01)
        with wire.near.inside():
            admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
            admin.create_topics([NewTopic("t", 2, 1)])["t"].result(LIMIT_S)
            producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "enable.idempotence": True, "linger.ms": 5})
            consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": "g", "auto.offset.reset": "earliest"})
        consumer.subscribe(["t"])
        failures: list[object] = []

        def publish(numbers: range) -> None:
            for number in numbers:
                producer.produce(
                    "t", str(number), partition=number % 2, on_delivery=lambda error, _: failures.append(error) if error else None
                )
                producer.poll(0)

        publish(range(count // 2))
        assert producer.flush(LIMIT_S) == 0
        wire.cut()
        publish(range(count // 2, count))
        assert producer.flush(1.5) > 0  # nothing gets through
        before = wire.counters()
        assert before.up.cut > 0
        wire.restore()
        assert producer.flush(LIMIT_S) == 0
        assert not failures
        found: list[int] = []
        end = time.monotonic() + LIMIT_S
        while len(set(found)) < count and time.monotonic() < end:
            found += [int(message.value() or b"") for message in consumer.consume(500, 0.5) if message.error() is None]
        consumer.close()
        assert sorted(found) == list(range(count))
        assert wire.counters().up.lost > 0


def test_both_sites_outlive_an_interface_that_comes_and_goes(tmp_path: Path) -> None:
    """The long form's scenario for some seconds: whole sites, real processes."""
    outcome = flapping_link(tmp_path, minutes=0.15, down_s=2.0, up_s=2.0, fps=10)
    assert outcome.times_down >= 2
    assert outcome.seen.produced > 50
    assert outcome.good, msgspec.json.format(msgspec.json.encode(outcome)).decode()
    assert outcome.seen.carried["verdicts"].sent >= outcome.seen.results


# ---- beginning and end


def test_only_the_thread_that_enters_is_inside(wire: Wire) -> None:
    def devices() -> set[str]:
        return {name for _, name in socket.if_nameindex()}

    outside: list[set[str]] = []
    with wire.near.inside():
        assert devices() == {"lo", "wire0"}
        with Child("look", ["sleep", "60"]) as child:
            inside = os.readlink(f"/proc/{child.pid}/ns/net")
        told = threading.Thread(target=lambda: outside.append(devices()))
        told.start()
        told.join()
    assert inside != os.readlink("/proc/self/ns/net")
    assert "wire0" not in devices()
    assert outside == [{"lo", "wire0"}]  # a thread that was started inside
    ran = subprocess.run(wire.far.command(["ip", "-br", "addr"]), capture_output=True, text=True, check=True, timeout=20)
    assert wire.far.address in ran.stdout


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with Wire() as wire, wire.near.inside():
        left = subprocess.Popen(["sleep", "60"])
    assert left.wait(10) == -signal.SIGKILL
    assert not [path for path in namespaces.RUN.glob("hw-*") if path.name in (wire.near.name, wire.far.name)]


def test_what_a_killed_process_leaves_is_swept_up_by_the_next() -> None:
    script = """
import json, subprocess, sys, time
from infra.faults.network.wire import Wire
wire = Wire().start()
with wire.far.inside():
    left = subprocess.Popen(["sleep", "300"], start_new_session=True)
print(json.dumps([wire.near.name, wire.far.name, left.pid]), flush=True)
time.sleep(300)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    near, far, pid = json.loads(process.stdout.readline())
    process.kill()
    process.wait(10)
    process.stdout.close()
    assert (namespaces.RUN / near).exists()
    with Wire():
        assert not (namespaces.RUN / near).exists()
        assert not (namespaces.RUN / far).exists()
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()


def test_without_root_it_says_what_is_missing() -> None:
    script = "import os; os.setuid(65534)\nfrom infra.faults.network import namespaces\nnamespaces.check()"
    preloaded = f"import infra.faults.network.namespaces\n{script}"  # nobody need not be able to read this folder
    ran = subprocess.run([sys.executable, "-c", preloaded], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    assert "NetworkUnavailable" in ran.stderr
    assert "root (run it with sudo)" in ran.stderr


def test_a_line_with_unknown_or_absurd_fields_is_refused(wire: Wire) -> None:
    with pytest.raises(ValueError, match="no latency"):
        Wire(latency=3)
    with pytest.raises(msgspec.ValidationError):
        wire.set(loss=1.5)
    assert wire.up.loss == 0.0
    wire.stop()
    with pytest.raises(NetworkUnavailable, match="not started, or has been stopped"):
        wire.counters()
