"""A live cluster against the declared topology: create what is missing, set what is wrong, look at what is there.

What is seen is judged in `streams.findings`; nothing is decided here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from schemas.errors import Fault
from streams.clients import BrokerUnavailable, Clients
from streams.findings import Cluster, FoundGroup, FoundTopic, Lag, Outage, Place, Span, judge, lags, outages
from streams.laws import Finding, Severity
from streams.topology import Role, Topic, Topology

__all__ = [
    "CannotChange",
    "ClusterRefused",
    "Finding",
    "Report",
    "Severity",
    "check",
    "create_topics",
    "inspect",
    "observe",
    "repair_settings",
    "unusable",
]

K = TypeVar("K")
_EARLIEST, _LATEST = OffsetSpec.earliest(), OffsetSpec.latest()  # type: ignore[no-untyped-call]
CONNECT_S = 10.0  # a cluster that has not answered by then is away
SAMPLE_RECORDS = 8  # of each partition of an outbox, to learn what a record weighs
_SILENT = {KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE, KafkaError._TIMED_OUT_QUEUE}
_HIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.GROUP_ID_NOT_FOUND,
}
_NOT_YET = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
}


class ClusterRefused(Fault, RuntimeError):
    """The cluster answered, but not with what was asked; or the client's settings are not usable. The message says what to do."""


class CannotChange(ClusterRefused):
    """The cluster refused to create or change a topic; the message says which, why, and what to do."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a cluster, judged."""

    cluster: str
    brokers: int
    findings: list[Finding]
    lags: list[Lag]
    outages: list[Outage]

    def count(self, severity: Severity) -> int:
        return sum(finding.severity is severity for finding in self.findings)


def check(topology: Topology, clients: Clients, *, role: Role | None = None, timeout_s: float = 15.0) -> list[Finding]:
    """Compare a live cluster with the topology: everything that is wrong or worth knowing, worst first.

    Raises
    ------
    BrokerUnavailable
        If no broker answers in time.
    ClusterRefused
        If it does not let us look, or the client's settings are not usable.
    """
    return judge(topology, observe(topology, clients, timeout_s=timeout_s), role)


def inspect(topology: Topology, clients: Clients, *, role: Role | None = None, timeout_s: float = 15.0) -> Report:
    """`check`, with the figures that its findings rest on; raises as `check` does."""
    seen = observe(topology, clients, timeout_s=timeout_s)
    return Report(
        cluster=seen.id,
        brokers=seen.brokers,
        findings=judge(topology, seen, role),
        lags=lags(topology, seen),
        outages=outages(topology, seen) if role is None else [],
    )


def create_topics(topology: Topology, clients: Clients, *, timeout_s: float = 30.0) -> list[str]:
    """Create the declared topics that do not exist, and wait until each has its leaders; returns their names. Those that exist are
    left as they are.

    Raises
    ------
    BrokerUnavailable
        If no broker answers in time.
    CannotChange
        If the cluster refuses: too few brokers for the replication, no permission, a policy.
    """
    with _asking(clients, timeout_s, CannotChange) as (admin, left):
        existing = admin.list_topics(timeout=left()).topics
        missing = [topic for topic in topology if topic.name not in existing]
        if not missing:
            return []
        wanted = [NewTopic(topic.name, topic.partitions, topology.config.topics.replication, config=topic.settings()) for topic in missing]
        created = []
        for name, future in admin.create_topics(wanted, operation_timeout=left(), request_timeout=left()).items():
            try:
                future.result(left())
                created.append(name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another process was faster
                    if error.args[0].code() in _SILENT:
                        raise
                    raise CannotChange(_refusal(error.args[0], topology.topics[name], topology)) from None
        _await_leaders(admin, missing, left)
        return created


def repair_settings(topology: Topology, clients: Clients, *, timeout_s: float = 30.0) -> list[str]:
    """Set on existing topics what is declared and differs; returns `topic: setting=value` for each change. Partition counts stay.

    Raises
    ------
    BrokerUnavailable, CannotChange
    """
    wrong: dict[str, dict[str, str]] = {}
    for finding in check(topology, clients, timeout_s=timeout_s):
        if finding.setting is not None and finding.declared is not None:
            wrong.setdefault(finding.subject, {})[finding.setting] = finding.declared
    with _asking(clients, timeout_s, CannotChange) as (admin, left):
        resources = [
            ConfigResource(
                ResourceType.TOPIC,
                topic,
                incremental_configs=[
                    ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
                ],
            )
            for topic, settings in wrong.items()
        ]
        if not resources:
            return []
        for resource, future in admin.incremental_alter_configs(resources, request_timeout=left()).items():
            try:
                future.result(left())
            except KafkaException as error:
                if error.args[0].code() in _SILENT:
                    raise
                raise CannotChange(_refusal(error.args[0], topology.topics[resource.name], topology)) from None
    return [f"{topic}: {name}={value}" for topic, settings in wrong.items() for name, value in settings.items()]


def _refusal(error: KafkaError, topic: Topic, topology: Topology) -> str:
    advice = {
        KafkaError.INVALID_REPLICATION_FACTOR: f"topics.replication is {topology.config.topics.replication}: lower it, or add brokers",
        KafkaError.TOPIC_AUTHORIZATION_FAILED: "this user may not create topics: grant Create on them, or create them as an administrator",
        KafkaError.CLUSTER_AUTHORIZATION_FAILED: "this user may not create topics: grant Create, or create them as an administrator",
        KafkaError.POLICY_VIOLATION: "the cluster's policy for topics forbids these settings",
        KafkaError.INVALID_CONFIG: f"the cluster takes none of these settings: {topic.settings()}",
    }
    return f"topic {topic.name} was refused: {error.str() or error.name()} ({advice.get(error.code(), error.name())})"


def _await_leaders(admin: AdminClient, topics: list[Topic], left: Callable[[], float]) -> None:
    """A topic that was just created is not known to every broker at once: whoever uses it next must not be told that it is unknown."""
    waiting = {topic.name: topic.partitions for topic in topics}
    while waiting:
        known = admin.list_topics(timeout=left()).topics
        for name in list(waiting):
            if name in known and known[name].partitions and all(part.leader >= 0 for part in known[name].partitions.values()):
                del waiting[name]
        if waiting:
            time.sleep(min(0.05, left()))
    places = [(topic.name, number) for topic in topics for number in range(topic.partitions)]
    while len(_offsets(admin, places, _LATEST, left)) < len(places):  # answered only by a leader that has taken its partition over
        time.sleep(min(0.05, left()))


def unusable(clients: Clients) -> str | None:
    """Why the client's settings cannot be used, without asking the cluster; None if they can."""
    try:
        clients.admin()
    except KafkaException as error:
        return str(error.args[0].str())
    return None


# ---- looking


def observe(topology: Topology, clients: Clients, *, timeout_s: float = 15.0, window_s: float = 60.0) -> Cluster:
    """Look at a cluster: the declared topics that exist, with offsets, settings and rates, and every group that touches them.

    Parameters
    ----------
    window_s
        How far back rates are measured, by the broker's timestamps.

    Raises
    ------
    BrokerUnavailable, ClusterRefused
    """
    with _asking(clients, timeout_s) as (admin, left):
        described = admin.describe_cluster(request_timeout=left()).result(left())
        metadata = admin.list_topics(timeout=left()).topics
        ours = {name: metadata[name] for name in topology.topics if name in metadata}
        settings = _settings(admin, list(ours), left)
        places = [(name, number) for name, found in ours.items() for number, part in found.partitions.items() if part.leader >= 0]
        low = _offsets(admin, places, _EARLIEST, left)
        high = _offsets(admin, places, _LATEST, left)
        since = _offsets(admin, places, OffsetSpec.for_timestamp(int((time.time() - window_s) * 1000)), left)
        outbox = [place for place in places if Role.LINK in topology.topics[place[0]].readers]
        moving = [place for place in outbox if 0 <= since.get(place, -1) < high.get(place, 0)]
        weights = _weights(clients, {place: (low[place], high[place]) for place in moving if place in low}, left)
        topics = {}
        for name, found in ours.items():
            spans = []
            for number, part in sorted(found.partitions.items()):
                place = (name, number)
                end, start = high.get(place, 0), since.get(place, -1)
                spans.append(
                    Span(
                        low=low.get(place, 0),
                        high=end,
                        recent=max(0, end - start) if start >= 0 else 0,
                        record_bytes=weights.get(place),
                        leader=part.leader >= 0,
                    )
                )
            copies = min((len(part.replicas) for part in found.partitions.values()), default=0)
            topics[name] = FoundTopic(name=name, replication=copies, spans=tuple(spans), settings=settings.get(name))
        return Cluster(
            id=described.cluster_id,
            brokers=len(described.nodes),
            window_s=window_s,
            topics=topics,
            others=tuple(sorted(metadata.keys() - ours.keys())),
            groups=tuple(_groups(admin, set(ours), left)),
        )


@contextmanager
def _asking(
    clients: Clients, timeout_s: float, refused: type[ClusterRefused] = ClusterRefused
) -> Iterator[tuple[AdminClient, Callable[[], float]]]:
    """An admin client and the seconds that are left; silence becomes `BrokerUnavailable`, by the words of `Clients.cluster`."""
    deadline = time.monotonic() + timeout_s

    def left() -> float:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        return max(0.1, remaining)

    try:
        clients.cluster([], timeout_s=min(timeout_s, CONNECT_S))
        yield clients.admin(), left
    except KafkaException as error:
        if error.args[0].code() in _SILENT:
            raise _fell_silent(clients, timeout_s, error.args[0].str()) from None
        if error.args[0].code() == KafkaError._INVALID_ARG:
            raise refused(f"the settings of the Kafka client are not usable: {error.args[0].str()} (see kafka.properties)") from None
        raise refused(f"the cluster at {clients.kafka.bootstrap_servers} refused: {error.args[0].str()}") from None
    except TimeoutError:
        raise _fell_silent(clients, timeout_s, "no more time") from None


def _fell_silent(clients: Clients, timeout_s: float, reason: str) -> BrokerUnavailable:
    return BrokerUnavailable(
        f"the broker at {clients.kafka.bootstrap_servers} answered first but did not finish within {timeout_s:g} s ({reason}): "
        "is it overloaded, or still starting?"
    )


def _gather(request: Callable[[list[K]], Mapping[K, Future[Any]]], keys: Iterable[K], left: Callable[[], float]) -> dict[K, Any]:
    """The answers to a request about many things. What this user may not see, or what has just gone, is left out; what the cluster is
    not ready for yet (a leader or coordinator that moves) is asked again while there is time."""
    found: dict[K, Any] = {}
    waiting = list(keys)
    while waiting:
        again = []
        for key, future in request(waiting).items():
            try:
                found[key] = future.result(left())
            except KafkaException as error:
                if error.args[0].code() in _NOT_YET:
                    again.append(key)
                elif error.args[0].code() not in _HIDDEN:
                    raise
        waiting = again
        if waiting:
            time.sleep(min(0.05, left()))
    return found


def _settings(admin: AdminClient, names: list[str], left: Callable[[], float]) -> dict[str, dict[str, str]]:
    found = _gather(
        lambda keys: admin.describe_configs(keys, request_timeout=left()),
        [ConfigResource(ResourceType.TOPIC, name) for name in names],
        left,
    )
    return {resource.name: {name: entry.value for name, entry in entries.items()} for resource, entries in found.items()}


def _offsets(admin: AdminClient, places: Iterable[Place], spec: OffsetSpec, left: Callable[[], float]) -> dict[Place, int]:
    found = _gather(
        lambda keys: admin.list_offsets(dict.fromkeys(keys, spec), request_timeout=left()),
        [TopicPartition(*place) for place in places],
        left,
    )
    return {(part.topic, part.partition): info.offset for part, info in found.items()}


def _groups(admin: AdminClient, ours: set[str], left: Callable[[], float]) -> Iterator[FoundGroup]:
    """Every group that has committed to one of our topics or holds a partition of one."""
    names = sorted(group.group_id for group in admin.list_consumer_groups(request_timeout=left()).result(left()).valid)
    if not names:
        return
    described = _gather(lambda keys: admin.describe_consumer_groups(keys, request_timeout=left()), names, left)
    committed = _gather(
        lambda keys: {
            name: admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(name)], request_timeout=left())[name] for name in keys
        },
        names,
        left,
    )
    for name in names:
        offsets = committed[name].topic_partitions if name in committed else []
        members = described[name].members if name in described else []
        held = frozenset(
            (part.topic, part.partition) for member in members if member.assignment for part in member.assignment.topic_partitions
        )
        group = FoundGroup(
            name=name,
            state=described[name].state.name.lower() if name in described else "unknown",
            members=len(members),
            committed={(part.topic, part.partition): part.offset for part in offsets if part.topic in ours and part.offset >= 0},
            held=frozenset(place for place in held if place[0] in ours),
        )
        if group.topics():
            yield group


def _weights(clients: Clients, bounds: dict[Place, tuple[int, int]], left: Callable[[], float]) -> dict[Place, float]:
    """The mean size in bytes (key, value, headers; before compression) of the last records of each partition."""
    if not bounds:
        return {}
    sizes: dict[Place, list[int]] = {place: [] for place in bounds}
    consumer = clients.consumer(None, enable__partition__eof=True, auto__offset__reset="earliest")
    try:
        consumer.assign([TopicPartition(*place, max(low, high - SAMPLE_RECORDS)) for place, (low, high) in bounds.items()])
        waiting = set(bounds)
        while waiting:
            message = consumer.poll(left())
            if message is None:
                break
            place = (message.topic() or "", message.partition() or 0)
            error = message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    waiting.discard(place)
                continue
            sizes[place].append(_size(message))
            if len(sizes[place]) >= SAMPLE_RECORDS:
                waiting.discard(place)
    finally:
        consumer.close()
    return {place: sum(found) / len(found) for place, found in sizes.items() if found}


def _size(message: Message) -> int:
    headers: Any = message.headers() or ()  # a list of pairs
    return len(message.value() or b"") + len(message.key() or b"") + sum(len(name) + len(value or b"") for name, value in headers)
