"""What is judged of a cluster that was looked at: pure, on clusters that are wrong in one way each."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from schemas.config import Kafka, Link, Region, SiteConfig, Topics
from streams.findings import Cluster, FoundGroup, FoundTopic, Span, judge, lags, outages
from streams.laws import Finding, Severity, size_text, time_text
from streams.topology import Role, Topology, region_view

TOPICS = Topics(prefix="p.", readers=("connect-*",), outbox_retention_s=3 * 86_400, outbox_retention_bytes=1 << 30)
CONFIG = SiteConfig(name="leaf-1", tier="leaf", topics=TOPICS, link=Link(region=Kafka()))
LEAF = Topology(CONFIG)


def cluster(topology: Topology, **changes: Any) -> Cluster:
    """A cluster that is as declared, but for what is changed."""
    topics = {
        topic.name: FoundTopic(
            name=topic.name, replication=1, spans=(Span(low=0, high=100),) * topic.partitions, settings={**topic.settings(), "other": "1"}
        )
        for topic in topology
    }
    return msgspec.structs.replace(
        Cluster(id="c", brokers=1, window_s=60.0, topics=topics, others=("__consumer_offsets",), groups=()), **changes
    )


def with_topic(base: str, **changes: Any) -> Cluster:
    seen = cluster(LEAF)
    name = LEAF.topic(base).name
    if "settings" in changes:
        changes["settings"] = {**LEAF.topic(base).settings(), **changes["settings"]}
    return msgspec.structs.replace(seen, topics={**seen.topics, name: msgspec.structs.replace(seen.topics[name], **changes)})


def group(name: str, topics: dict[str, list[int | None]], members: int = 1) -> FoundGroup:
    committed = {(LEAF.topic(base).name, n): at for base, places in topics.items() for n, at in enumerate(places) if at is not None}
    held = frozenset((LEAF.topic(base).name, n) for base, places in topics.items() for n in range(len(places))) if members else frozenset()
    return FoundGroup(name=name, state="stable" if members else "empty", members=members, committed=committed, held=held)


def told(seen: Cluster, topology: Topology = LEAF, role: Role | None = None) -> list[tuple[str, str, str]]:
    return [
        (str(found.severity), found.code, found.subject) for found in judge(topology, seen, role) if found.severity is not Severity.INFO
    ]


def one(seen: Cluster, code: str) -> Finding:
    (found,) = [finding for finding in judge(LEAF, seen) if finding.code == code]
    return found


def test_a_cluster_as_declared_is_clean() -> None:
    assert told(cluster(LEAF)) == []
    region = Topology(SiteConfig(name="r", tier="region", region=Region(sites=("leaf-1",))))
    assert told(cluster(region), region) == []


@pytest.mark.parametrize(
    ("base", "changes", "expected"),
    [
        ("verdicts", {"spans": (Span(low=0, high=1),) * 3}, ("error", "partitions")),
        ("results", {"spans": (Span(low=0, high=1),) * 4 + (Span(low=0, high=1),)}, ("error", "partitions")),
        ("frames", {"replication": 3}, ("warning", "replication")),
        ("frames", {"spans": (Span(low=0, high=1),) * 3 + (Span(low=0, high=1, leader=False),)}, ("error", "no-leader")),
        ("verdicts", {"settings": {"message.timestamp.type": "CreateTime"}}, ("error", "setting")),
        ("verdicts", {"settings": {"retention.ms": "1000"}}, ("error", "setting")),
        ("verdicts", {"settings": {"segment.bytes": "14"}}, ("warning", "setting")),
        ("frames", {"settings": {"max.message.bytes": "1000"}}, ("error", "setting")),
        ("drops", {"settings": {"retention.bytes": "-1"}}, ("error", "no-byte-bound")),
        ("results", {"settings": {"cleanup.policy": "compact"}}, ("error", "setting")),
        ("results", {"settings": {"retention.ms": "60000"}}, ("error", "resolver-memory")),
        ("verdicts", {"settings": {"retention.ms": "-1"}}, ("error", "resolver-memory")),
        ("verdicts.dlq", {"settings": {"retention.ms": str(10**12)}}, ("error", "resolver-memory")),
        ("results", {"settings": {"retention.bytes": "1048576"}}, ("warning", "resolver-memory")),
        ("frames.dlq", {"settings": {"max.message.bytes": "1048576"}}, ("error", "dead-letters-too-small")),
    ],
)
def test_what_is_wrong_with_a_topic_is_found(base: str, changes: dict[str, Any], expected: tuple[str, str]) -> None:
    found = told(with_topic(base, **changes))
    assert expected in {(severity, code) for severity, code, _ in found}
    assert all(finding.fix for finding in judge(LEAF, with_topic(base, **changes)) if finding.severity is not Severity.INFO)


def test_the_order_of_cleanup_policies_does_not_matter() -> None:
    assert told(with_topic("results", settings={"cleanup.policy": "delete,compact"})) == []


def test_unequal_partition_counts_break_the_law_of_the_resolver() -> None:
    seen = with_topic("region.verdicts", spans=(Span(low=0, high=1),) * 8)
    finding = one(seen, "resolver-partitions")
    assert finding.subject == "p.region.verdicts"
    assert "8 partitions and p.results 4" in finding.problem


def test_a_missing_topic_says_who_needs_it() -> None:
    seen = cluster(LEAF)
    topics = dict(seen.topics)
    del topics["p.escalations"]
    finding = one(msgspec.structs.replace(seen, topics=topics), "missing-topic")
    assert finding.subject == "p.escalations"
    assert "leaf, link" in finding.problem
    assert "topology create" in finding.fix


def test_settings_that_may_not_be_seen_are_no_fault() -> None:
    seen = with_topic("frames", settings={})
    name = "p.frames"
    hidden = msgspec.structs.replace(seen, topics={**seen.topics, name: msgspec.structs.replace(seen.topics[name], settings=None)})
    assert told(hidden) == []
    assert one(hidden, "not-allowed").severity is Severity.INFO


def test_topics_of_nobody_are_named_under_our_prefix_only() -> None:
    others = ("p.old", "q.theirs", "__transaction_state", "p.leaf-1.leaf.faust-__assignor-__leader", "connect-status")
    assert told(cluster(LEAF, others=others)) == [("warning", "undeclared-topic", "p.old")]


def test_many_topics_of_nobody_are_not_named_one_by_one() -> None:
    found = told(cluster(LEAF, others=tuple(f"p.x{number:03}" for number in range(500))))
    assert len(found) == 21
    assert found[-1][2] == "480 more topics"


def test_unknown_readers_are_named_unless_the_file_knows_them() -> None:
    groups = (
        group("somebody", {"frames": [1, 2, 3, 4]}),
        group("connect-sink", {"results": [1, 2, 3, 4]}),
        group("p.leaf-1.leaf", {"frames": [100] * 4}),
    )
    assert told(cluster(LEAF, groups=groups)) == [("warning", "unknown-reader", "somebody")]


def test_a_group_that_reads_what_its_role_does_not_is_drift() -> None:
    live = group("p.leaf-1.leaf", {"results": [100] * 4})
    stale = group("p.leaf-1.resolver", {"frames": [100] * 4}, members=0)
    assert told(cluster(LEAF, groups=(live, stale))) == [
        ("error", "undeclared-read", "p.leaf-1.leaf"),
        ("warning", "undeclared-read", "p.leaf-1.resolver"),
    ]


def test_lag_is_counted_from_the_commit_or_from_the_beginning() -> None:
    seen = with_topic("frames", spans=tuple(Span(low=low, high=high) for low, high in ((0, 100), (10, 100), (50, 100), (100, 100))))
    seen = msgspec.structs.replace(seen, groups=(group("p.leaf-1.leaf", {"frames": [90, None, 20, 100]}),))
    found = lags(LEAF, seen)
    assert [(lag.partition, lag.lag, lag.lost) for lag in found] == [(0, 10, 0), (1, 90, 0), (2, 50, 30), (3, 0, 0)]
    assert told(seen) == [("warning", "lost", "p.leaf-1.leaf")]
    assert "150 records of p.frames wait (partition 0: 10, 1: 90, 2: 50)" in one(seen, "lag").problem


def test_lag_that_nobody_works_off_is_a_warning() -> None:
    seen = cluster(LEAF, groups=(group("p.leaf-1.leaf", {"frames": [90, 100, 100, 100]}, members=0),))
    assert told(seen) == [("warning", "not-running", "p.leaf-1.leaf")]
    assert "headwater run leaf" in one(seen, "not-running").fix


def test_an_outage_is_survived_by_time_or_by_bytes_whichever_ends_first() -> None:
    spans = (Span(low=0, high=9_000, recent=600, record_bytes=1_000.0), *(Span(low=0, high=0),) * 3)
    seen = with_topic("verdicts", spans=spans)  # 10 records of 1000 bytes a second into one partition of 1 GiB
    (found,) = [outage for outage in outages(LEAF, seen) if outage.topic == "p.verdicts"]
    assert found.bytes_per_s == pytest.approx(10_000)
    assert found.by_bytes_s == pytest.approx((1 << 30) / 10_000)
    assert found.survives_s == pytest.approx((1 << 30) / 10_000)
    assert told(seen) == [], "a forecast is no fault"
    (short,) = [finding for finding in judge(LEAF, seen) if finding.code == "outage" and finding.fix]
    assert short.subject == "p.verdicts"
    assert "29.8 hours" in short.problem
    assert "shorter than the planned 3 days" in short.problem
    assert {outage.topic for outage in outages(LEAF, seen)} == {
        f"p.{base}" for base in ("verdicts", "alerts", "escalations", "escalations.alerts", "drops", "epochs")
    }
    (idle,) = [outage for outage in outages(LEAF, seen) if outage.topic == "p.drops"]
    assert idle.survives_s == CONFIG.topics.outbox_retention_s


def test_of_a_region_the_link_judges_only_what_it_touches() -> None:
    region = region_view(CONFIG)
    seen = cluster(region, others=("p.up.leaf-2.alerts",), groups=(group_at(region, "p.theirs", "down.verdicts"),))
    topics = {name: found for name, found in seen.topics.items() if name not in {"p.results", "p.up.leaf-1.alerts.dlq"}}
    kept = topics["p.up.leaf-1.drops"]
    topics["p.up.leaf-1.drops"] = msgspec.structs.replace(kept, replication=3, settings={**(kept.settings or {}), "retention.ms": "1"})
    assert told(msgspec.structs.replace(seen, topics=topics), region, Role.LINK) == []
    del topics["p.up.leaf-1.alerts"]
    small = topics["p.up.leaf-1.escalations"]
    topics["p.up.leaf-1.escalations"] = msgspec.structs.replace(small, settings={**(small.settings or {}), "max.message.bytes": "1"})
    assert told(msgspec.structs.replace(seen, topics=topics), region, Role.LINK) == [
        ("error", "missing-topic", "p.up.leaf-1.alerts"),
        ("error", "setting", "p.up.leaf-1.escalations"),
    ]


def group_at(topology: Topology, name: str, base: str) -> FoundGroup:
    place = (topology.topic(base, "leaf-1").name, 0)
    return FoundGroup(name=name, state="stable", members=1, committed={place: 1}, held=frozenset({place}))


def test_durations_and_sizes_for_people() -> None:
    assert [time_text(seconds) for seconds in (-1, 5, 90, 300, 7_200, 259_200)] == [
        "for ever",
        "5 s",
        "90 s",
        "5 minutes",
        "2 hours",
        "3 days",
    ]
    assert [size_text(count) for count in (0, 1000, 2048, 3 << 20, 5 << 30)] == ["0 bytes", "1000 bytes", "2 KiB", "3 MiB", "5 GiB"]
