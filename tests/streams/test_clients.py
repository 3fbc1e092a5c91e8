"""What the factory of clients makes of what a cluster says about itself."""

from __future__ import annotations

import base64

from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient, NewTopic
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import Kafka
from schemas.identity import RecordId, foreign_id
from streams.clients import Clients, canonical_uuid


@given(st.binary(min_size=16, max_size=16))
def test_any_uuid_makes_an_id_that_can_be_read(raw: bytes) -> None:
    written = canonical_uuid(base64.b64encode(raw).decode())
    assert base64.urlsafe_b64decode(written + "==") == raw
    assert RecordId.parse(str(foreign_id("cluster", written, 3, 7))).sequence == 7


def test_the_uuids_of_real_topics_are_kafkas_own(kafka: Kafka, prefix: str) -> None:
    names = [f"{prefix}{number}" for number in range(24)]  # enough that some uuid holds a character that the two forms write differently
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    for future in admin.create_topics([NewTopic(name, 1) for name in names]).values():
        future.result(30)
    found = Clients(kafka, "test").cluster(names)
    described = admin.describe_topics(TopicCollection(names))
    assert set(found.topics) == set(names)
    for name, (uuid, partitions) in found.topics.items():
        bits = described[name].result(30).topic_id
        number = (bits.get_most_significant_bits() % (1 << 64) << 64) | bits.get_least_significant_bits() % (1 << 64)
        assert (uuid, partitions) == (base64.urlsafe_b64encode(number.to_bytes(16, "big")).decode().rstrip("="), 1)
