"""Reading topics back: from the beginning to the end as it was at the call, and no waiting for ever."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streams import restore
from streams.clients import BrokerUnavailable, Clients
from streams.restore import to_end


def test_every_record_up_to_the_end_at_the_call(rig: Any) -> None:
    topic = rig.topic("state", partitions=3)
    wanted = {(partition, b"%d" % number) for partition in (0, 2) for number in range(300)}
    for partition in (0, 2):  # one is empty
        rig.put(topic, [b"%d" % number for number in range(300)], partition)
    rig.trim(topic, 100, 2)
    found = [(record.partition(), record.value()) for record in to_end(rig.clients, [(topic.name, partition) for partition in range(3)])]
    assert len(found) == 500
    assert set(found) == {(partition, value) for partition, value in wanted if partition == 0 or int(value) >= 100}
    assert [value for partition, value in found if partition == 0] == [b"%d" % number for number in range(300)]


def test_what_is_written_meanwhile_is_left_out(rig: Any) -> None:
    """Otherwise a busy topic would never be read to its end."""
    topic = rig.topic("state", partitions=2)
    rig.put(topic, [b"old"] * 5, 0)
    rig.put(topic, [b"." * 100_000] * 120, 1)  # many fetches: the other partition is read on meanwhile
    small = {"queued.max.messages.kbytes": "300", "queued.min.messages": "1", "fetch.message.max.bytes": "200000"}
    found = []
    for record in to_end(Clients(msgspec.structs.replace(rig.kafka, properties=small), "test"), [(topic.name, 0), (topic.name, 1)]):
        if not found:
            for partition in range(2):
                rig.put(topic, [b"new"] * 50, partition)
        found.append(record.value())
    assert len(found) == 125
    assert b"new" not in found


def test_a_topic_whose_end_was_compacted_away_is_read_to_its_end(rig: Any) -> None:
    """A transaction's marker is the last offset, and no reader ever sees it."""
    from confluent_kafka import Producer

    topic = rig.topic("state")
    producer = Producer({"bootstrap.servers": rig.servers, "transactional.id": f"{rig.prefix}t"})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic.name, b"one", partition=0)
    producer.commit_transaction(30)
    rig.until(lambda: rig.end(topic) == 2, "the marker")
    assert [record.value() for record in to_end(rig.clients, [(topic.name, 0)])] == [b"one"]


def test_nothing_to_read(rig: Any) -> None:
    topic = rig.topic("state")
    assert list(to_end(rig.clients, [(topic.name, 0)])) == []
    assert list(to_end(rig.clients, [])) == []


def test_a_missing_topic_is_told(rig: Any) -> None:
    with pytest.raises(BrokerUnavailable, match="nknown"):
        list(to_end(rig.clients, [(f"{rig.prefix}nowhere", 0)]))


def test_a_broker_that_falls_silent_is_not_waited_for_without_end(far: Any, far_rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "_QUIET_S", 1.0)
    topic = far_rig.topic("state")
    far_rig.put(topic, [b"x" * 60_000] * 200)
    clients = Clients(
        msgspec.structs.replace(far.wan, properties={"queued.min.messages": "1", "fetch.message.max.bytes": "100000"}), "test"
    )
    found = 0

    def read_and_cut() -> None:
        nonlocal found
        for _ in to_end(clients, [(topic.name, 0)]):
            found += 1
            if found == 3:
                far.proxy.cut()

    with pytest.raises(BrokerUnavailable, match="sent nothing for 1 s"):
        read_and_cut()
    assert 3 <= found < 200
    with pytest.raises(BrokerUnavailable):
        list(to_end(clients, [(topic.name, 0)]))
