"""The one declaration of every topic: on which tier, with which key and value, how long it is kept, who writes it and who reads it.

Code gets its topics from here and nowhere else: a role asks for the topics that it reads and writes (`Topology.role`) and is refused any
that is not declared for it, so that what is written here is what happens.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from schemas import envelope
from schemas.config import SiteConfig
from schemas.messages import Tier

Cleanup = Literal["delete", "compact", "compact,delete"]


class Role(enum.StrEnum):
    """Who reads and writes. `producer` and `reader` are also people, foreign clients and sinks."""

    PRODUCER = "producer"
    LEAF = "leaf"
    REGION = "region"
    RESOLVER = "resolver"
    LINK = "link"
    READER = "reader"


class UndeclaredTopic(LookupError):
    """A role asked for a topic that the topology does not give it."""


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
            share = min(1 << 28, self.retention_bytes // 8) if self.retention_bytes > 0 else 1 << 26
            settings["segment.bytes"] = str(max(1 << 20, self.max_message_bytes, share))
            if self.retention_s > 0:
                settings["segment.ms"] = str(max(10_000, min(7 * 86_400_000, self.retention_s * 1000 // 8)))
        return settings


class Mirror(msgspec.Struct, frozen=True, kw_only=True):
    """One topic that the link carries: read from `source` on one cluster, written to `target` on the other, partition by partition."""

    source: Topic
    target: Topic
    direction: Literal["up", "down"]


# Topics whose owner is not Headwater: declared so that `topology check` knows them, exempt from the rules above.
INTERNAL = (
    (r"__consumer_offsets|__transaction_state|__share_group_state|__cluster_metadata", "Kafka itself"),
    (r".*-__assignor-__leader", "Faust: keeps the leader of an app's group"),
    (r"connect-(configs|offsets|status)", "Kafka Connect"),
)

UPWARDS = ("alerts", "verdicts", "escalations", "drops", "epochs")
DOWNWARDS = {"region.verdicts": "verdicts", "control": "control"}  # name on the leaf: name under down.<site>.

_P, _L, _R, _J, _K, _X = Role.PRODUCER, Role.LEAF, Role.REGION, Role.RESOLVER, Role.LINK, Role.READER


class Topology:
    """All topics of one site's cluster, as its configuration shapes them.

    Parameters
    ----------
    config
        The site. A leaf has the plain topics; a region has `up.<site>.…` and `down.<site>.…` for each of its sites, and its own.
    """

    def __init__(self, config: SiteConfig) -> None:
        self.config = config
        self.tier = config.tier_name
        self.site = config.name
        topics = tuple(_leaf_topics(config) if self.tier is Tier.LEAF else _region_topics(config))
        self.topics: dict[str, Topic] = {topic.name: topic for topic in topics}
        self._by_base = {(topic.base, topic.site): topic for topic in topics}

    def __iter__(self) -> Iterator[Topic]:
        return iter(self.topics.values())

    def topic(self, base: str, site: str | None = None) -> Topic:
        """A topic by what code calls it; raises `UndeclaredTopic`."""
        try:
            return self._by_base[base, site]
        except KeyError:
            known = ", ".join(sorted({name for name, _ in self._by_base}))
            raise UndeclaredTopic(f"no topic {base!r} of site {site!r} on a {self.tier} (there are: {known})") from None

    def role(self, role: Role) -> RoleView:
        """What one role may read and write here."""
        return RoleView(self, role)

    def group(self, role: Role) -> str:
        """The consumer group of a role on this cluster."""
        return f"{self.config.topics.prefix}{self.site}.{role}"

    def groups(self) -> dict[str, Role]:
        """Every consumer group that belongs here, and whose it is. The link and readers keep no offsets in Kafka."""
        hot = {self.group(role): role for role in (Role.LEAF, Role.REGION, Role.RESOLVER)}
        return {**hot, **{f"{group}.faust": role for group, role in hot.items()}}


class RoleView:
    """The topics of one role: `read` and `write` give a declared topic, or raise `UndeclaredTopic`."""

    def __init__(self, topology: Topology, role: Role) -> None:
        self.topology = topology
        self.role = role

    def read(self, base: str, site: str | None = None) -> Topic:
        return self._allowed(base, site, "read")

    def write(self, base: str, site: str | None = None) -> Topic:
        return self._allowed(base, site, "write")

    def reads(self) -> list[Topic]:
        return [topic for topic in self.topology if self.role in topic.readers]

    def writes(self) -> list[Topic]:
        return [topic for topic in self.topology if self.role in topic.writers]

    def group(self) -> str:
        return self.topology.group(self.role)

    def _allowed(self, base: str, site: str | None, verb: str) -> Topic:
        topic = self.topology.topic(base, site)
        if self.role not in (topic.readers if verb == "read" else topic.writers):
            raise UndeclaredTopic(f"role {self.role} may not {verb} {topic.name}: declare it in streams/topology.py first")
        return topic


def mirrors(leaf: Topology, region: Topology) -> list[Mirror]:
    """What the link of a leaf carries between its cluster and its region's, the most urgent first."""
    up = [Mirror(source=leaf.topic(base), target=region.topic(f"up.{base}", leaf.site), direction="up") for base in UPWARDS]
    down = [
        Mirror(source=region.topic(f"down.{remote}", leaf.site), target=leaf.topic(base), direction="down")
        for base, remote in DOWNWARDS.items()
    ]
    return up + down


def region_view(config: SiteConfig) -> Topology:
    """The region's cluster as a leaf's link sees it: only this leaf's own topics, made from the leaf's file."""
    if config.link is None:
        raise UndeclaredTopic(f"site {config.name} has no [link]: it has no region")
    region = msgspec.structs.replace(
        config,
        name=config.link.region_name,
        tier="region",
        kafka=config.link.region,
        link=None,
        region=msgspec.structs.replace(config.region, sites=(config.name,)),
    )
    return Topology(region)


def dead_letters(topic: Topic) -> str:
    """The name of a topic's dead letters."""
    return f"{topic.name}.dlq"


def _leaf_topics(config: SiteConfig) -> Iterable[Topic]:
    make = _Maker(config, Tier.LEAF)
    short, outbox = _frames(config), _outbox(config)
    largest = config.ingress.max_frame_bytes + (64 << 10)
    yield make(
        "frames",
        "source",
        "JPEG bytes",
        [_P],
        [_L, _X],
        "encoded images from cameras and clients",
        content_type=envelope.JPEG,
        max_message_bytes=max(largest, 16 << 20),
        **short,
    )
    yield make("verdicts", "record id", "Verdict", [_L, _J], [_J, _K, _X], "the leaf's answer to each frame; passed deadlines", **outbox)
    yield make("region.verdicts", "record id", "Verdict", [_K], [_J, _X], "the region's answers, brought by the link", **outbox)
    yield make(
        "results",
        "record id",
        "Result",
        [_J],
        [_J, _X],
        "what to believe of each frame: the join of its verdicts",
        cleanup="compact,delete",
        **_results(config),
    )
    yield make("alerts", "alert id", "Alert", [_L, _J], [_L, _J, _K, _X], "rules that fired, and what became of each", **_alerts(config))
    yield make(
        "alerts.evidence",
        "alert id",
        "JPEG bytes",
        [_L],
        [_X],
        "the picture of each alert",
        content_type=envelope.JPEG,
        retention_s=_alerts(config)["retention_s"],  # a picture is kept as long as its alert
        retention_bytes=1 << 30,
        max_message_bytes=largest,
    )
    yield make(
        "escalations",
        "source",
        "evidence; Escalation in a header",
        [_L],
        [_K, _X],
        "what the region is asked to judge",
        content_type=envelope.JPEG,
        max_message_bytes=4 << 20,
        **outbox,
    )
    yield make("drops", "source/epoch/site/stage", "Drop", [_P, _L], [_K, _X], "sequences that were not processed, and why", **outbox)
    yield make("epochs", "source/epoch/site/stage", "EpochMark", [_P], [_K, _X], "runs of sources: start, acknowledged mark, end", **outbox)
    yield make("control", "site", "Control", [_K], [_L, _X], "the region's capacity and wishes", cleanup="compact")
    yield make(
        "positions",
        "topic/partition",
        "Position",
        [_K],
        [_K, _X],
        "how far the link has carried each topic down",
        cleanup="compact",
        by_source=False,
    )
    for topic, reader in (("frames", _L), ("verdicts", _J), ("region.verdicts", _J), ("alerts", _J), ("control", _L)):
        yield make(
            f"{topic}.dlq",
            "as origin",
            "the origin's bytes",
            [reader],
            [_X],
            f"records of {topic} that failed for good",
            content_type="as origin",
            max_message_bytes=_letter(max(largest, 16 << 20) if topic == "frames" else 1 << 20),
            by_source=False,
            **outbox,
        )


def _region_topics(config: SiteConfig) -> Iterable[Topic]:
    make = _Maker(config, Tier.REGION)
    outbox = _outbox(config)
    for site in config.region.sites:
        yield make("up.alerts", "alert id", "Alert", [_K], [_J, _X], f"alerts of {site}", site=site, **outbox)
        yield make("up.verdicts", "record id", "Verdict", [_K], [_J, _X], f"verdicts of {site}", site=site, **outbox)
        yield make(
            "up.escalations",
            "source",
            "evidence; Escalation in a header",
            [_K],
            [_R, _X],
            f"what {site} asks",
            content_type=envelope.JPEG,
            max_message_bytes=4 << 20,
            site=site,
            **outbox,
        )
        yield make("up.drops", "source/epoch/site/stage", "Drop", [_K], [_X], f"drops of {site}", site=site, **outbox)
        yield make("up.epochs", "source/epoch/site/stage", "EpochMark", [_K], [_X], f"runs of the sources of {site}", site=site, **outbox)
        yield make(
            "up.positions",
            "topic/partition",
            "Position",
            [_K],
            [_K, _X],
            f"how far the link of {site} has come",
            cleanup="compact",
            by_source=False,
            site=site,
        )
        yield make("down.verdicts", "record id", "Verdict", [_R], [_J, _K, _X], f"answers for {site}", site=site, **outbox)
        yield make("down.control", "site", "Control", [_R], [_K, _X], f"capacity announced to {site}", cleanup="compact", site=site)
        yield make(
            "up.escalations.dlq",
            "as origin",
            "the origin's bytes",
            [_R],
            [_X],
            f"escalations of {site} that failed for good",
            content_type="as origin",
            max_message_bytes=_letter(4 << 20),
            by_source=False,
            site=site,
            **outbox,
        )
        for base in ("up.verdicts", "up.alerts", "down.verdicts"):
            yield make(
                f"{base}.dlq",
                "as origin",
                "the origin's bytes",
                [_J],
                [_X],
                f"records of {base} of {site} that failed for good",
                content_type="as origin",
                max_message_bytes=_letter(1 << 20),
                by_source=False,
                site=site,
                **outbox,
            )
    yield make(
        "results",
        "record id",
        "Result",
        [_J],
        [_J, _X],
        "what to believe of each frame, for the whole region",
        cleanup="compact,delete",
        **_results(config),
    )
    yield make("alerts", "alert id", "Alert", [_J], [_J, _X], "alerts of the whole region, and what became of each", **_alerts(config))


def _letter(origin_bytes: int) -> int:
    """The largest dead letter: its record, and the headers that say what was wrong with it."""
    return origin_bytes + (64 << 10)


def _frames(config: SiteConfig) -> dict[str, Any]:
    return {"retention_s": config.topics.frames_retention_s, "retention_bytes": config.topics.frames_retention_bytes}


def _outbox(config: SiteConfig) -> dict[str, Any]:
    return {"retention_s": config.topics.outbox_retention_s, "retention_bytes": config.topics.outbox_retention_bytes}


def _alerts(config: SiteConfig) -> dict[str, Any]:
    return {"retention_s": 2 * config.topics.outbox_retention_s, "retention_bytes": 2 * config.topics.outbox_retention_bytes}


def _results(config: SiteConfig) -> dict[str, Any]:
    """Results outlive every input of the resolver, so that its memory can be read back for as long as an input can be replayed; and
    they have room for its two inputs of verdicts (of each site)."""
    sites = max(1, len(config.region.sites)) if config.tier_name is Tier.REGION else 1
    return {"retention_s": 3 * config.topics.outbox_retention_s, "retention_bytes": 2 * sites * config.topics.outbox_retention_bytes}


class _Maker:
    def __init__(self, config: SiteConfig, tier: Tier) -> None:
        self.config, self.tier = config, tier

    def __call__(
        self,
        base: str,
        key: str,
        value: str,
        writers: list[Role],
        readers: list[Role],
        description: str,
        *,
        site: str | None = None,
        by_source: bool = True,
        content_type: str = envelope.JSON,
        **settings: Any,
    ) -> Topic:
        direction, _, rest = base.partition(".")
        name = f"{direction}.{site}.{rest}" if site else base
        return Topic(
            base=base,
            name=self.config.topics.prefix + name,
            tier=self.tier,
            key=key,
            value=value,
            content_type=content_type,
            description=description,
            writers=frozenset(writers),
            readers=frozenset(readers),
            site=site,
            by_source=by_source,
            partitions=self.config.topics.partitions if by_source else 1,
            **settings,
        )
