"""Creating, checking and repairing topics on a real broker. What is there is asked of the broker itself, not of the product."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from schemas.config import Kafka, Region, SiteConfig, Topics
from streams.clients import BrokerUnavailable, Clients
from streams.cluster import CannotChange, ClusterRefused, Severity, check, create_topics, inspect, observe, repair_settings, unusable
from streams.topology import Topology


@pytest.fixture
def config(kafka: Kafka, prefix: str) -> SiteConfig:
    return SiteConfig(name="leaf-1", tier="leaf", kafka=kafka, topics=Topics(prefix=prefix, partitions=2))


@pytest.fixture
def topology(config: SiteConfig) -> Topology:
    return Topology(config)


@pytest.fixture
def clients(kafka: Kafka) -> Clients:
    return Clients(kafka, "test")


@pytest.fixture
def admin(kafka: Kafka) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka.bootstrap_servers})


@pytest.fixture
def created(topology: Topology, clients: Clients, admin: AdminClient) -> Iterator[list[str]]:
    names = create_topics(topology, clients)
    yield names
    admin.delete_topics([name for name in admin.list_topics(timeout=10).topics if name.startswith(topology.config.topics.prefix)])


def told(topology: Topology, clients: Clients) -> list[tuple[str, str]]:
    return [(found.code, found.subject) for found in check(topology, clients) if found.severity is not Severity.INFO]


def until(condition: Callable[[], bool], what: str, limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not within {limit_s:g} s: {what}"
        time.sleep(0.05)


def test_what_is_created_is_what_is_declared(topology: Topology, clients: Clients, admin: AdminClient, created: list[str]) -> None:
    assert sorted(created) == sorted(topology.topics)
    there = admin.list_topics(timeout=10).topics
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in created]
    for resource, future in admin.describe_configs(resources).items():
        found = {name: entry.value for name, entry in future.result(10).items()}
        declared = topology.topics[resource.name]
        assert len(there[resource.name].partitions) == declared.partitions
        assert {name: found[name] for name in declared.settings()} == declared.settings()
    assert told(topology, clients) == []
    assert create_topics(topology, clients) == [], "a second time there is nothing to do"


def test_a_regions_topics_too(kafka: Kafka, prefix: str, clients: Clients, admin: AdminClient) -> None:
    config = SiteConfig(name="north", tier="region", kafka=kafka, topics=Topics(prefix=prefix), region=Region(sites=("a", "b")))
    topology = Topology(config)
    names = create_topics(topology, clients)
    assert f"{prefix}up.a.escalations" in names
    assert f"{prefix}down.b.verdicts" in names
    assert told(topology, clients) == []
    admin.delete_topics(names)


def test_a_deleted_topic_is_the_one_thing_that_is_wrong(
    topology: Topology, clients: Clients, admin: AdminClient, created: list[str]
) -> None:
    name = topology.topic("escalations").name
    admin.delete_topics([name])[name].result(10)
    until(lambda: name not in admin.list_topics(timeout=10).topics, "the topic is gone")
    assert told(topology, clients) == [("missing-topic", name)]
    assert create_topics(topology, clients) == [name], "only what is missing is created"
    assert told(topology, clients) == []


def test_a_changed_setting_is_found_and_repaired(topology: Topology, clients: Clients, admin: AdminClient, created: list[str]) -> None:
    name = topology.topic("results").name
    entry = ConfigEntry("retention.ms", "60000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result(10)
    until(lambda: bool(told(topology, clients)), "the change is seen")
    found = {(finding.code, finding.subject): finding for finding in check(topology, clients) if finding.severity is Severity.ERROR}
    assert found["setting", name].found == "60000"
    assert found["setting", name].declared == topology.topic("results").settings()["retention.ms"]
    broken = {subject for code, subject in found if code == "resolver-memory"}
    assert topology.topic("verdicts").name in broken, "with it falls the law that results outlive their inputs"
    assert repair_settings(topology, clients) == [f"{name}: retention.ms={topology.topic('results').settings()['retention.ms']}"]
    until(lambda: told(topology, clients) == [], "the repair is seen")
    assert repair_settings(topology, clients) == []


def test_a_topic_of_nobody_and_wrong_partitions_are_found(topology: Topology, clients: Clients, admin: AdminClient) -> None:
    prefix = topology.config.topics.prefix
    stray, wrong = f"{prefix}stray", topology.topic("verdicts").name
    for future in admin.create_topics([NewTopic(stray, 1, 1), NewTopic(wrong, 3, 1)]).values():
        future.result(10)
    assert wrong not in create_topics(topology, clients), "what exists is left as it is"
    found = told(topology, clients)
    assert ("undeclared-topic", stray) in found
    assert {code for code, subject in found if subject == wrong} >= {"partitions", "resolver-partitions", "setting"}
    admin.delete_topics([stray, *topology.topics])


def test_strangers_and_lag_are_found(topology: Topology, clients: Clients, kafka: Kafka, created: list[str]) -> None:
    frames, prefix = topology.topic("frames").name, topology.config.topics.prefix
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for number in range(10):
        producer.produce(frames, value=b"x" * 100, partition=number % 2)
    producer.flush(10)
    consumers = []
    for group in (f"{prefix}leaf-1.leaf", "stranger"):
        consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": group, "auto.offset.reset": "earliest"})
        consumer.subscribe([frames])
        consumers.append(consumer)
        read = 0
        end = time.monotonic() + 30
        while read < 6:
            assert time.monotonic() < end
            message = consumer.poll(0.2)
            if message is not None and message.error() is None:
                consumer.commit(message, asynchronous=False)
                read += 1
    report = inspect(topology, clients)
    assert [(one.code, one.subject) for one in report.findings if one.severity is not Severity.INFO] == [("unknown-reader", "stranger")]
    assert sum(lag.lag for lag in report.lags) == 4
    assert {lag.group for lag in report.lags} == {f"{prefix}leaf-1.leaf"}
    known = Topology(msgspec.structs.replace(topology.config, topics=msgspec.structs.replace(topology.config.topics, readers=("strang*",))))
    assert told(known, clients) == []
    for consumer in consumers:
        consumer.close()
    assert ("not-running", f"{prefix}leaf-1.leaf") in told(topology, clients), "records wait, and their reader has gone"


def test_rates_come_from_offsets_over_time(topology: Topology, clients: Clients, kafka: Kafka, created: list[str]) -> None:
    verdicts = topology.topic("verdicts")
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for _ in range(120):
        producer.produce(verdicts.name, key=b"k" * 10, value=b"v" * 980, headers=[("h", b"123456789")], partition=1)
    producer.flush(10)
    spans = observe(topology, clients, window_s=600).topics[verdicts.name].spans
    assert [span.recent for span in spans] == [0, 120]
    assert spans[1].record_bytes == pytest.approx(1000)
    (outage,) = [one for one in inspect(topology, clients).outages if one.topic == verdicts.name]
    assert outage.bytes_per_s == pytest.approx(120 * 1000 / 60)
    assert outage.by_bytes_s == pytest.approx(topology.config.topics.outbox_retention_bytes / 2000)


def test_more_copies_than_brokers_are_refused_with_the_field_to_change(kafka: Kafka, prefix: str, clients: Clients) -> None:
    topology = Topology(SiteConfig(name="leaf-1", tier="leaf", kafka=kafka, topics=Topics(prefix=prefix, replication=3)))
    with pytest.raises(CannotChange, match=r"topics\.replication is 3: lower it, or add brokers"):
        create_topics(topology, clients)


def test_no_broker_is_said_in_time(topology: Topology) -> None:
    with socket.socket() as silent:  # takes connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for port in (silent.getsockname()[1], 1):
            away = Clients(Kafka(bootstrap_servers=f"127.0.0.1:{port}"), "test")
            started = time.monotonic()
            for ask in (check, create_topics):
                with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}"):
                    ask(topology, away, timeout_s=1.0)
            assert time.monotonic() - started < 20, "a wait without a deadline"


def test_settings_of_the_client_that_are_not_usable_are_said(topology: Topology, kafka: Kafka) -> None:
    wrong = Clients(Kafka(bootstrap_servers=kafka.bootstrap_servers, properties={"no.such.thing": "1"}), "test")
    assert "no.such.thing" in (unusable(wrong) or "")
    assert unusable(Clients(kafka, "test")) is None
    with pytest.raises(ClusterRefused, match=r"no\.such\.thing"):
        check(topology, wrong)
