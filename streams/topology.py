"""The topology of one site: its declared topics (`streams/declarations.py`), by name and by role.

Code gets its topics from here and nowhere else: a role asks for the topics that it reads and writes (`Topology.role`) and is refused any
that is not declared for it, so that what is declared is what happens.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from schemas.config import SiteConfig
from schemas.messages import Tier
from streams.declarations import leaf_topics, region_topics, with_operators
from streams.topic import Cleanup, Mirror, Role, Topic

__all__ = ["Cleanup", "Mirror", "Role", "RoleView", "Topic", "Topology", "UndeclaredTopic", "dead_letters", "mirrors", "region_view"]


class UndeclaredTopic(LookupError):
    """A role asked for a topic that the topology does not give it."""


# Topics whose owner is not Headwater: declared so that `topology check` knows them, exempt from the rules above.
INTERNAL = (
    (r"__consumer_offsets|__transaction_state|__share_group_state|__cluster_metadata", "Kafka itself"),
    (r".*-__assignor-__leader", "Faust: keeps the leader of an app's group"),
    (r"connect-(configs|offsets|status)", "Kafka Connect"),
)

UPWARDS = (
    "alerts",
    "escalations.alerts",
    "alerts.evidence",
    "verdicts",
    "drops",
    "epochs",
    "accounts",
    "escalations",
)  # the most urgent first
DOWNWARDS = {"region.verdicts": "verdicts", "control": "control"}  # name on the leaf: name under down.<site>.


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
        topics = tuple(with_operators(leaf_topics(config) if self.tier is Tier.LEAF else region_topics(config)))
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
        hot = {self.group(role): role for role in (Role.LEAF, Role.REGION, Role.RESOLVER, Role.ACCOUNTANT)}
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
    pictures = leaf.config.link is not None and leaf.config.link.pictures
    up = [
        Mirror(source=leaf.topic(base), target=region.topic(f"up.{base}", leaf.site), direction="up")
        for base in UPWARDS
        if base != "alerts.evidence" or pictures
    ]
    down = [
        Mirror(source=region.topic(f"down.{remote}", leaf.site), target=leaf.topic(base), direction="down")
        for base, remote in DOWNWARDS.items()
    ]
    return up + down


def region_view(config: SiteConfig, *, second: bool = False) -> Topology:
    """The cluster of a leaf's region (or second region) as its link sees it: only this leaf's own topics, made from the leaf's file."""
    link = config.link
    if link is None:
        raise UndeclaredTopic(f"site {config.name} has no [link]: it has no region")
    if second and link.second is None:
        raise UndeclaredTopic(f"site {config.name} has no [link.second]: it has one region")
    where = link.second if second and link.second is not None else link
    region = msgspec.structs.replace(
        config,
        name=where.region_name,
        tier="region",
        kafka=where.region,
        link=None,
        region=msgspec.structs.replace(config.region, sites=(config.name,)),
    )
    return Topology(region)


def dead_letters(topic: Topic) -> str:
    """The name of a topic's dead letters."""
    return f"{topic.name}.dlq"
