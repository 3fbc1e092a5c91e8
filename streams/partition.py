"""Which partition a source lives in: murmur2 as Java's and aiokafka's default partitioner have it, over the source and never the key.

librdkafka's own default (CRC32) differs, and its Python binding has no partitioner callback, so every producer of ours passes the
partition itself.
"""

from __future__ import annotations

from functools import lru_cache

_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """MurmurHash2, 32 bits, with Kafka's seed (org.apache.kafka.common.utils.Utils.murmur2), as an unsigned number."""
    length = len(data)
    h = 0x9747B28C ^ length
    whole = length & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _MASK
        k = (k ^ (k >> 24)) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    rest = data[whole:]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * _M & _MASK
    h = (h ^ (h >> 13)) * _M & _MASK
    return h ^ (h >> 15)


@lru_cache(maxsize=65_536)
def partition_of(source: str, partitions: int) -> int:
    """The partition of a source in a topic of that many partitions.

    >>> partition_of("cam-1", 1)
    0
    """
    return (murmur2(source.encode()) & 0x7FFFFFFF) % partitions
