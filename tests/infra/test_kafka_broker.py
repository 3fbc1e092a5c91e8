"""The local broker, judged by plain Kafka clients and by the system's own list of processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from infra import paths
from infra.kafka.broker import Broker, BrokerFailed, stop_broker
from infra.kafka.folder import FolderUnusable, read_state
from infra.kafka.jvm import FORMAT, write_arguments
from infra.kafka.ports import free_port
from infra.kafka.prepare import Prepared, prepare
from infra.kafka.settings import BrokerSettings, Wan

Eventually = Callable[..., None]
ROOT = str(Path(__file__).parents[2])
MAX_RESIDENT_BYTES = 400 * 10**6


def settings(folder: Path, **more: object) -> BrokerSettings:
    return BrokerSettings(**{"name": "test", "folder": folder, "port": 0, **more})  # type: ignore[arg-type]


def create(servers: str, topic: str, **config: str) -> None:
    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([NewTopic(topic, 1, 1, config=config)])[topic].result(20)


def write(servers: str, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": servers, "message.max.bytes": 20 << 20, "linger.ms": 5})
    failed: list[KafkaError] = []
    for value in values:
        producer.produce(topic, value, on_delivery=lambda error, _: failed.append(error) if error else None)
        producer.poll(0)
    assert producer.flush(60) == 0
    assert not failed


def read(servers: str, topic: str, count: int) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "reader", "auto.offset.reset": "earliest"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        found: list[bytes] = []
        while len(found) < count and (message := consumer.poll(20)) is not None:
            assert message.error() is None
            found.append(message.value() or b"")
        return found
    finally:
        consumer.close()


def gone(pid: int | None) -> bool:
    return pid is None or not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Broker]:
    """A broker of the test's own, stopped in any case."""
    broker = Broker(settings(tmp_path / "own"))
    yield broker
    broker.stop()


def test_it_answers_and_makes_no_topics_by_itself(broker: Broker, prefix: str) -> None:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    assert admin.describe_cluster().result(20).cluster_id == broker.cluster_id
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "topic.metadata.propagation.max.ms": 0})
    errors: list[KafkaError] = []
    producer.produce(f"{prefix}misspelt", b"x", on_delivery=lambda error, _: errors.append(error))
    producer.flush(20)
    assert errors[0].code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)
    found = admin.describe_configs([ConfigResource("broker", "1")])
    values = next(iter(found.values())).result(20)
    assert values["auto.create.topics.enable"].value == "false"
    assert values["group.initial.rebalance.delay.ms"].value == "0"


def test_its_memory_is_bounded_under_load(own: Broker) -> None:
    """Of a broker that nobody else fills: what the whole suite's topics take of the shared one is no matter of the load."""
    own.start()
    create(own.bootstrap_servers, "frames", **{"max.message.bytes": str(16 << 20)})
    frames = [os.urandom(50_000) for _ in range(8)] * 100
    write(own.bootstrap_servers, "frames", frames)
    large = [os.urandom(8_000_000)] * 12
    write(own.bootstrap_servers, "frames", large)
    assert read(own.bootstrap_servers, "frames", 812) == frames + large
    assert own.pid is not None
    assert psutil.Process(own.pid).memory_info().rss <= MAX_RESIDENT_BYTES


def test_a_message_that_is_too_large_harms_nothing_else(broker: Broker, prefix: str) -> None:
    create(broker.bootstrap_servers, f"{prefix}frames", **{"max.message.bytes": str(16 << 20)})
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "message.max.bytes": 30 << 20})
    errors: list[KafkaError] = []
    producer.produce(f"{prefix}frames", bytes(20_000_000), on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(60) == 0
    assert errors[0].code() == KafkaError.MSG_SIZE_TOO_LARGE
    write(broker.bootstrap_servers, f"{prefix}frames", [b"small"])
    assert read(broker.bootstrap_servers, f"{prefix}frames", 1) == [b"small"]


def test_its_data_and_its_cluster_survive_stop_and_kill(own: Broker, eventually: Eventually) -> None:
    own.start()
    create(own.bootstrap_servers, "kept")
    write(own.bootstrap_servers, "kept", [b"one"])
    cluster, first = own.cluster_id, own.pid
    own.stop()
    assert gone(first)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((own.settings.host, own.settings.port), timeout=5)

    own.start()
    write(own.bootstrap_servers, "kept", [b"two"])
    assert own.pid is not None
    os.kill(own.pid, signal.SIGKILL)  # no lock, pid file or port is in the way of the next start
    eventually(lambda: own.poll() is not None)
    assert own.poll() == -signal.SIGKILL

    own.start()
    assert own.cluster_id == cluster
    assert read(own.bootstrap_servers, "kept", 2) == [b"one", b"two"]


def test_two_run_side_by_side_and_one_has_a_listener_that_is_advertised_elsewhere(tmp_path: Path) -> None:
    elsewhere = free_port()
    leaf, region = Broker(settings(tmp_path / "leaf")), Broker(settings(tmp_path / "region", wan=Wan(advertised_port=elsewhere)))
    try:
        leaf.spawn()
        region.spawn()
        leaf.wait_ready()
        region.wait_ready()
        assert leaf.cluster_id != region.cluster_id
        # consumer groups are served from the start: the coordinator's topic is there before the first client asks
        assert "__consumer_offsets" in AdminClient({"bootstrap.servers": leaf.bootstrap_servers}).list_topics(timeout=20).topics
        create(leaf.bootstrap_servers, "only-here")
        assert "only-here" not in AdminClient({"bootstrap.servers": region.bootstrap_servers}).list_topics(timeout=20).topics

        host, port = region.wan_address
        seen = AdminClient({"bootstrap.servers": f"{host}:{port}"}).list_topics(timeout=20)
        assert [(node.host, node.port) for node in seen.brokers.values()] == [("127.0.0.1", elsewhere)]
        assert port not in (elsewhere, region.settings.port)
    finally:
        leaf.stop()
        region.stop()


def test_a_folder_is_used_by_one_at_a_time(broker: Broker) -> None:
    with pytest.raises(FolderUnusable, match=rf"in use by a broker at {broker.bootstrap_servers} \(pid {broker.pid}\)"):
        Broker(settings(broker.settings.folder)).start()
    AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics(timeout=20)


def test_a_folder_that_kafka_formatted_is_used_as_it_is(tmp_path: Path) -> None:
    prepared = prepare(paths.cache_dir())
    folder = tmp_path / "foreign"
    folder.mkdir()
    (tmp_path / "format.properties").write_text(
        f"process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:9\nlisteners=PLAINTEXT://127.0.0.1:8,CONTROLLER://127.0.0.1:9\n"
        f"controller.listener.names=CONTROLLER\nlog.dirs={folder / 'data'}\n"
    )
    options = write_arguments(tmp_path / "args", prepared.jvm.arguments(heap_mb=128, log_path=tmp_path / "x.log"))
    cluster = "MkU3OEVBNTcwNTJENDM2Qg"
    argv = [*prepared.jvm.command(options, FORMAT), "format", "-t", cluster, "-c", str(tmp_path / "format.properties")]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    with Broker(settings(folder)) as broker:
        assert broker.cluster_id == cluster
        assert AdminClient({"bootstrap.servers": broker.bootstrap_servers}).describe_cluster().result(20).cluster_id == cluster


def test_a_port_in_use_is_named_with_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BrokerFailed, match=rf"port {port} on 127\.0\.0\.1 is in use.*--port"):
            Broker(settings(tmp_path / "b", port=port)).start()
    assert read_state(tmp_path / "b") is None


def test_a_full_disk_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        FolderUnusable,
        match=rf"needs 1,152,921,504,606,846,976 bytes free for its folder {tmp_path / 'b'}, and the disk has [\d,]+: free some",
    ):
        Broker(settings(tmp_path / "b", min_free_bytes=1 << 60)).start()
    assert not list((tmp_path / "b" / "data").iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FolderUnusable, match=rf"cannot write its folder {tmp_path / 'file' / 'b'}: .*--data-dir"):
        Broker(settings(tmp_path / "file" / "b")).start()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(FolderUnusable, match=r"holds files but no meta\.properties"):
        Broker(settings(tmp_path)).start()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["holiday.jpg"]


def test_a_setting_that_kafka_refuses_is_told_from_its_log(tmp_path: Path) -> None:
    broker = Broker(settings(tmp_path / "b", properties={"num.io.threads": "none"}))
    with pytest.raises(BrokerFailed, match=r"(?s)did not start \(it ended with code 1\).*broker\.log.*num\.io\.threads"):
        broker.start()
    assert gone(broker.pid)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_an_address_that_nobody_could_dial_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ValueError, match="no address that clients could dial"):
        settings(tmp_path, host=host)


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokerFailed, match=r"192\.0\.2\.1 is not an address of this machine"):
        Broker(settings(tmp_path / "b", host="192.0.2.1")).start()


def test_kill_9_of_the_parent_leaves_nothing_behind_and_the_folder_free(tmp_path: Path, eventually: Eventually) -> None:
    code = (
        f"import sys, time; sys.path.insert(0, {ROOT!r})\nfrom pathlib import Path\nfrom infra.kafka.broker import Broker\n"
        f"from infra.kafka.settings import BrokerSettings\n"
        f"b = Broker(BrokerSettings(folder=Path({str(tmp_path / 'b')!r}), port=0)).start()\nprint(b.pid, flush=True)\ntime.sleep(100)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    guard = psutil.Process(pid).ppid()
    assert read_state(tmp_path / "b") is not None
    parent.kill()
    parent.wait(20)
    eventually(lambda: gone(pid) and gone(guard))
    assert read_state(tmp_path / "b") is None
    assert stop_broker(tmp_path / "b") is None
    with Broker(settings(tmp_path / "b")) as again:
        assert again.pid != pid


def test_a_second_start_needs_no_network(tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "HEADWATER_MAVEN"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # whatever is fetched now fails
    with Broker(settings(tmp_path / "b")) as offline:
        assert offline.cluster_id


def test_a_damaged_archive_of_classes_only_costs_time(tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(paths.cache_dir())
    damaged = tmp_path / "classes.archive"
    damaged.write_bytes(b"not an archive")
    jvm = msgspec.structs.replace(prepared.jvm, archive=damaged)
    monkeypatch.setattr("infra.kafka.broker.prepare", lambda *_, **__: Prepared(jvm, prepared.seed))
    with Broker(settings(tmp_path / "b")) as slower:
        assert slower.cluster_id
    assert str(damaged) in (tmp_path / "b" / "java.args").read_text()


def test_the_archive_is_made_once_and_used(broker: Broker) -> None:
    archive = prepare(paths.cache_dir()).jvm.archive
    assert archive is not None
    assert archive.stat().st_mtime < psutil.Process(broker.pid).create_time()
    assert str(archive) in (broker.settings.folder / "java.args").read_text()
    assert broker.pid is not None
    assert any(str(archive) == mapped.path for mapped in psutil.Process(broker.pid).memory_maps())
