"""Partitions as Java, and the clients that follow it, have them."""

from __future__ import annotations

import pytest
from aiokafka.partitioner import murmur2 as of_aiokafka  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from streams.partition import murmur2, partition_of

# Of Apache Kafka's own UtilsTest#testMurmur2, as Java's signed 32 bits.
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("data", "signed"), JAVA.items())
def test_murmur2_is_javas(data: bytes, signed: int) -> None:
    assert murmur2(data) == signed & 0xFFFFFFFF


@pytest.mark.parametrize(("data", "signed"), JAVA.items())
@pytest.mark.parametrize("partitions", [1, 2, 4, 12, 256])
def test_the_partition_is_the_one_of_javas_default_partitioner(data: bytes, signed: int, partitions: int) -> None:
    positive = signed & 0x7FFFFFFF  # Utils.toPositive
    assert partition_of(data.decode(), partitions) == positive % partitions


@given(st.binary())
def test_murmur2_is_aiokafkas_too(data: bytes) -> None:
    assert murmur2(data) == of_aiokafka(data) & 0xFFFFFFFF


@given(st.text(st.characters(codec="utf-8")), st.integers(1, 512))
def test_a_partition_is_one_of_the_topic_and_always_the_same(source: str, partitions: int) -> None:
    partition = partition_of(source, partitions)
    assert 0 <= partition < partitions
    assert partition == (murmur2(source.encode()) & 0x7FFFFFFF) % partitions


def test_sources_spread() -> None:
    counts = [0] * 8
    for number in range(4000):
        counts[partition_of(f"cam-{number}", 8)] += 1
    assert min(counts) > 400
