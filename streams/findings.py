"""What is wrong with a cluster, judged against the declared topology. Pure: `streams.cluster` looks, this module judges what it saw.

The laws are those that the join, the link and store-and-forward rest on; they hold for the declaration as well as for what is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

import msgspec

from streams.laws import Finding, Severity, laws, size_text, time_text
from streams.topology import INTERNAL, Role, Topic, Topology

Place = tuple[str, int]  # topic name, partition


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """What a partition holds: offsets `low` up to, not including, `high`. `recent` records came in the last `Cluster.window_s` seconds;
    `record_bytes` is the mean size of its last records, where it was measured."""

    low: int
    high: int
    recent: int = 0
    record_bytes: float | None = None
    leader: bool = True


class FoundTopic(msgspec.Struct, frozen=True, kw_only=True):
    """A topic as it is on the cluster. `settings` is None where the broker does not let us see them."""

    name: str
    replication: int
    spans: tuple[Span, ...]
    settings: Mapping[str, str] | None


class FoundGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A consumer group as it is on the cluster: its commits, and the partitions that its live members hold."""

    name: str
    state: str
    members: int
    committed: dict[Place, int]
    held: frozenset[Place]

    def topics(self) -> set[str]:
        return {topic for topic, _ in (*self.committed, *self.held)}


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a cluster: the declared topics that exist, the names of the others, and the groups that touch ours."""

    id: str
    brokers: int
    window_s: float
    topics: dict[str, FoundTopic]
    others: tuple[str, ...]
    groups: tuple[FoundGroup, ...]


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """How far a group is behind in one partition. `lost` records were removed by retention before the group read them."""

    group: str
    topic: str
    partition: int
    committed: int | None
    end: int
    lag: int
    lost: int


class Outage(msgspec.Struct, frozen=True, kw_only=True):
    """How long an outage of the link a topic survives: by its retention in time, and by its byte bound at the present rate of its
    busiest partition (None where nothing came lately)."""

    topic: str
    by_time_s: float
    by_bytes_s: float | None
    bytes_per_s: float

    @property
    def survives_s(self) -> float:
        return self.by_time_s if self.by_bytes_s is None else min(self.by_time_s, self.by_bytes_s)


def judge(topology: Topology, seen: Cluster, role: Role | None = None) -> list[Finding]:
    """Everything that is wrong, worst first.

    Parameters
    ----------
    role
        Judge only what this role touches, as a site's link does with its region: the retention of those topics is the region's own
        business then, and so are topics and groups that this site has no part in.
    """
    wanted = [topic for topic in topology if role is None or role in topic.readers | topic.writers]
    found = [*_topics(topology, wanted, seen, settings_matter=role is None)]
    if role is None:
        declared_laws = [*laws(topology)]
        found += declared_laws
        broken = {(finding.code, finding.subject) for finding in declared_laws}
        found += [law for law in laws(_as_found(topology, seen)) if (law.code, law.subject) not in broken]
        found += _others(topology, seen)
    found += _groups(topology, seen, {topic.name for topic in wanted}, strangers_matter=role is None)
    if role is None:
        found += _outages(topology, seen)
    order = list(Severity)
    return sorted(found, key=lambda finding: order.index(finding.severity))


def _as_found(topology: Topology, seen: Cluster) -> Iterator[Topic]:
    """The declared topics that exist, with the figures that they really have."""
    for topic in topology:
        found = seen.topics.get(topic.name)
        if found is None:
            continue
        settings = {**topic.settings(), **(found.settings or {})}
        milliseconds = int(settings["retention.ms"])
        yield msgspec.structs.replace(
            topic,
            partitions=len(found.spans),
            cleanup="compact,delete" if "," in settings["cleanup.policy"] else settings["cleanup.policy"],
            retention_s=milliseconds // 1000 if milliseconds >= 0 else -1,
            retention_bytes=int(settings["retention.bytes"]),
            max_message_bytes=int(settings["max.message.bytes"]),
        )


# ---- topics


def _topics(topology: Topology, wanted: Iterable[Topic], seen: Cluster, *, settings_matter: bool) -> Iterator[Finding]:
    for topic in wanted:
        found = seen.topics.get(topic.name)
        if found is None:
            used = ", ".join(sorted({*topic.writers, *topic.readers} - {Role.READER}))
            yield Finding(
                severity=Severity.ERROR,
                code="missing-topic",
                subject=topic.name,
                problem=f"does not exist{f' (used by {used})' if used else ''}",
                fix="`headwater topology create` creates it"
                if settings_matter
                else f"name site {topic.site} in region.sites of the region's file, then `headwater topology create` there",
            )
            continue
        leaderless = [number for number, span in enumerate(found.spans) if not span.leader]
        if leaderless:
            yield Finding(
                severity=Severity.ERROR,
                code="no-leader",
                subject=topic.name,
                problem=f"partitions {', '.join(map(str, leaderless))} have no leader: nothing can be read from or written to them",
                fix="start the broker that holds them",
            )
        if len(found.spans) != topic.partitions:
            yield Finding(
                severity=Severity.ERROR,
                code="partitions",
                subject=topic.name,
                problem=f"has {len(found.spans)} partitions, declared are {topic.partitions}: sources are looked for where they are not",
                fix=f"set topics.partitions to {len(found.spans)}, or delete and create the topic again (its records are lost)"
                if topic.by_source
                else "delete the topic and create it again (its records are lost)",
                declared=str(topic.partitions),
                found=str(len(found.spans)),
            )
        replication = topology.config.topics.replication
        if settings_matter and found.replication != replication:
            yield Finding(
                severity=Severity.WARNING,
                code="replication",
                subject=topic.name,
                problem=f"has {found.replication} copies of each partition, declared are {replication}",
                fix=f"set topics.replication to {found.replication}, or reassign the partitions (kafka-reassign-partitions)",
                declared=str(replication),
                found=str(found.replication),
            )
        yield from _settings(topic, found, settings_matter=settings_matter)


# Which settings a link depends on at the other end, whoever keeps the topic.
_LINK_SETTINGS = ("cleanup.policy", "message.timestamp.type", "max.message.bytes")
_WHY = {
    "message.timestamp.type": ": a wrong clock at the edge could stop the link or void retention",
    "max.message.bytes": ": larger records are refused by the broker",
    "retention.ms": ": how long an outage is survived, and what can be replayed, depends on it",
    "retention.bytes": ": how long an outage is survived, and whether the disk can fill, depends on it",
}


def _settings(topic: Topic, found: FoundTopic, *, settings_matter: bool) -> Iterator[Finding]:
    if found.settings is None:
        yield Finding(
            severity=Severity.INFO,
            code="not-allowed",
            subject=topic.name,
            problem="its settings may not be seen by this user",
            fix="grant DescribeConfigs on it to check them",
        )
        return
    for name, declared in topic.settings().items():
        value = found.settings.get(name)
        if not settings_matter and (name not in _LINK_SETTINGS or _enough(name, declared, value)):
            continue
        if value is None or _same(name, declared, value):
            continue
        slight = name.startswith("segment.") or (name == "max.message.bytes" and int(value) > int(declared))
        yield Finding(
            severity=Severity.WARNING if slight else Severity.ERROR,
            code="setting",
            subject=topic.name,
            problem=f"has {name}={value}, declared is {declared}{'' if slight else _WHY.get(name, '')}",
            fix="`headwater topology create --repair` sets what is declared"
            if settings_matter
            else "`headwater topology check` at the region says more",
            setting=name,
            declared=declared,
            found=value,
        )


def _same(name: str, declared: str, found: str) -> bool:
    if name == "cleanup.policy":
        return {part.strip() for part in declared.split(",")} == {part.strip() for part in found.split(",")}
    return declared == found


def _enough(name: str, declared: str, found: str | None) -> bool:
    return name == "max.message.bytes" and found is not None and int(found) >= int(declared)


MAX_OTHERS = 20  # undeclared topics that are named one by one


def _others(topology: Topology, seen: Cluster) -> Iterator[Finding]:
    prefix = topology.config.topics.prefix
    foreign = [
        name
        for name in seen.others
        if name.startswith(prefix) and name not in topology.topics and not any(re.fullmatch(pattern, name) for pattern, _ in INTERNAL)
    ]
    for name in foreign[:MAX_OTHERS]:
        yield Finding(
            severity=Severity.WARNING,
            code="undeclared-topic",
            subject=name,
            problem=f"is declared by nobody, but its name starts with our prefix {prefix!r}" if prefix else "is declared by nobody",
            fix="delete it if it is left over"
            + ("; if it is another system's, give each a topics.prefix of its own" if not prefix else ", or rename it: the prefix is ours"),
        )
    if len(foreign) > MAX_OTHERS:
        yield Finding(
            severity=Severity.WARNING,
            code="undeclared-topic",
            subject=f"{len(foreign) - MAX_OTHERS} more topics",
            problem="are declared by nobody",
            fix="give this system a topics.prefix of its own",
        )


# ---- groups


def lags(topology: Topology, seen: Cluster) -> list[Lag]:
    """How far each known group is behind, in each partition of the declared topics that it reads. A partition without a commit will be
    read from its beginning."""
    known = topology.groups()
    behind = []
    for group in seen.groups:
        if group.name not in known:
            continue
        for name in sorted(group.topics() & seen.topics.keys()):
            for number, span in enumerate(seen.topics[name].spans):
                committed = group.committed.get((name, number))
                start = span.low if committed is None else max(committed, span.low)
                behind.append(
                    Lag(
                        group=group.name,
                        topic=name,
                        partition=number,
                        committed=committed,
                        end=span.high,
                        lag=max(0, span.high - start),
                        lost=0 if committed is None else max(0, span.low - committed),
                    )
                )
    return behind


def _groups(topology: Topology, seen: Cluster, wanted: set[str], *, strangers_matter: bool) -> Iterator[Finding]:
    known = topology.groups()
    for group in seen.groups:
        touched = sorted(group.topics() & wanted)
        if not touched:
            continue
        role = known.get(group.name)
        if role is None:
            if strangers_matter and not any(fnmatchcase(group.name, pattern) for pattern in topology.config.topics.readers):
                yield Finding(
                    severity=Severity.WARNING,
                    code="unknown-reader",
                    subject=group.name,
                    problem=f"reads {', '.join(touched)} ({group.members} members, {group.state}), and is nobody's that we know",
                    fix="name it in topics.readers if it is a sink or a tool of yours; else stop it and delete the group",
                )
            continue
        yield from _known_group(topology, group, role, touched)
    yield from _lag_findings(topology, seen, wanted)


def _known_group(topology: Topology, group: FoundGroup, role: Role, touched: list[str]) -> Iterator[Finding]:
    held = {topic for topic, _ in group.held}
    for name in touched:
        if role not in topology.topics[name].readers:
            live = name in held
            yield Finding(
                severity=Severity.ERROR if live else Severity.WARNING,
                code="undeclared-read",
                subject=group.name,
                problem=f"{'reads' if live else 'has once read'} {name}, which role {role} does not: another version of Headwater?",
                fix="run the same version everywhere" if live else "delete the group's offsets for that topic",
            )


def _lag_findings(topology: Topology, seen: Cluster, wanted: set[str]) -> Iterator[Finding]:
    members = {group.name: group for group in seen.groups}
    by_topic: dict[tuple[str, str], list[Lag]] = {}
    for lag in lags(topology, seen):
        if lag.topic in wanted:
            by_topic.setdefault((lag.group, lag.topic), []).append(lag)
    for (group, name), parts in by_topic.items():
        total, lost = sum(part.lag for part in parts), sum(part.lost for part in parts)
        where = ", ".join(f"{part.partition}: {part.lag}" for part in parts if part.lag)
        if lost:
            yield Finding(
                severity=Severity.WARNING,
                code="lost",
                subject=group,
                problem=f"{lost} records of {name} were removed by retention before it read them",
                fix="it will write down the lost range and go on; keep the topic longer, or make the reader faster",
            )
        idle = total > 0 and members[group].members == 0
        yield Finding(
            severity=Severity.WARNING if idle else Severity.INFO,
            code="not-running" if idle else "lag",
            subject=group,
            problem=f"{total} records of {name} wait{' and nobody reads them' if idle else ''}"
            + (f" (partition {where})" if where else ""),
            fix=f"start it: `headwater run {topology.tier}`" if idle else "",
        )


# ---- outages


def outages(topology: Topology, seen: Cluster) -> list[Outage]:
    """How long an outage each topic that the link reads survives."""
    found = []
    for topic in topology:
        there = seen.topics.get(topic.name)
        if Role.LINK not in topic.readers or "delete" not in topic.cleanup or there is None:
            continue
        settings = {**topic.settings(), **(there.settings or {})}
        milliseconds, limit = int(settings["retention.ms"]), int(settings["retention.bytes"])
        rates = [span.recent * (span.record_bytes or 0.0) / seen.window_s for span in there.spans]
        busiest = max(rates, default=0.0)
        found.append(
            Outage(
                topic=topic.name,
                by_time_s=milliseconds / 1000 if milliseconds >= 0 else float("inf"),
                by_bytes_s=limit / busiest if busiest > 0 and limit > 0 else None,
                bytes_per_s=sum(rates),
            )
        )
    return found


def _outages(topology: Topology, seen: Cluster) -> Iterator[Finding]:
    planned_s = topology.config.topics.outbox_retention_s
    for outage in outages(topology, seen):
        short = outage.by_bytes_s is not None and outage.by_bytes_s < planned_s
        rate = f"at {size_text(outage.bytes_per_s)}/s" if outage.by_bytes_s is not None else "nothing came lately"
        yield Finding(
            severity=Severity.INFO,  # a forecast from the rate of a minute, not a fault of the cluster
            code="outage",
            subject=outage.topic,
            problem=f"survives an outage of the link of {time_text(outage.survives_s)} ({rate})"
            + (f", shorter than the planned {time_text(planned_s)}: its byte bound is reached first" if short else ""),
            fix="raise topics.outbox_retention_bytes (a partition), or spread the sources over more partitions" if short else "",
        )
