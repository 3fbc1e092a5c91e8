"""What a topic is: its names, who writes and who reads it, its settings on the broker; and the roles that do so."""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

from schemas.messages import Tier

Cleanup = Literal["delete", "compact", "compact,delete"]
COMPACTED_SEGMENT_BYTES = 16 << 20


class Role(enum.StrEnum):
    """Who reads and writes. `producer` and `reader` are also people, foreign clients and sinks; `operator` is a person with the
    `headwater` command; `accountant` runs beside the resolver."""

    PRODUCER = "producer"
    LEAF = "leaf"
    REGION = "region"
    RESOLVER = "resolver"
    LINK = "link"
    READER = "reader"
    OPERATOR = "operator"
    ACCOUNTANT = "accountant"


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """One declared topic.

    `name` is what it is called on its cluster, `base` what code calls it; on a region `site` says which leaf it belongs to. All
    partitioning is by source (`by_source`) or there is one partition.
    """

    base: str
    name: str
    tier: Tier
    key: str
    value: str
    content_type: str
    description: str
    writers: frozenset[Role]
    readers: frozenset[Role]
    cleanup: Cleanup = "delete"
    retention_s: int = -1
    retention_bytes: int = -1
    max_message_bytes: int = 1 << 20
    partitions: int = 1
    by_source: bool = True
    site: str | None = None

    def settings(self) -> dict[str, str]:
        """The topic's settings on the broker."""
        settings = {
            "cleanup.policy": self.cleanup,
            "max.message.bytes": str(self.max_message_bytes),
            "message.timestamp.type": "LogAppendTime",  # a wrong clock at the edge must not stop a link or void retention
            "retention.ms": str(self.retention_s * 1000 if self.retention_s >= 0 else -1),
            "retention.bytes": str(self.retention_bytes),
        }
        if (
            "delete" in self.cleanup
        ):  # a segment is the least that retention removes: a small share of what is kept, and room for one record
            share = min(1 << 26, self.retention_bytes // 8) if self.retention_bytes > 0 else 1 << 26
            settings["segment.bytes"] = str(max(1 << 20, self.max_message_bytes, share))
            if self.retention_s > 0:
                settings["segment.ms"] = str(max(10_000, min(7 * 86_400_000, self.retention_s * 1000 // 8)))
        else:  # only closed segments are compacted: Kafka's own gigabyte and week would keep every old value for so long
            settings["segment.bytes"] = str(max(COMPACTED_SEGMENT_BYTES, self.max_message_bytes))
            settings["segment.ms"] = str(6 * 3_600_000)
        return settings

    def most_bytes(self) -> int:
        """The bytes that it takes on the disk at most, one copy: what each partition keeps, and the segment that is being written.
        A compacted topic is bounded by its keys; here it counts with the segments that wait to be compacted."""
        segment = int(self.settings()["segment.bytes"])
        kept = self.retention_bytes if "delete" in self.cleanup else segment
        return self.partitions * (max(0, kept) + segment)


class Mirror(msgspec.Struct, frozen=True, kw_only=True):
    """One topic that the link carries: read from `source` on one cluster, written to `target` on the other, partition by partition."""

    source: Topic
    target: Topic
    direction: Literal["up", "down"]
