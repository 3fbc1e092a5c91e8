"""The topology told to people and programs: in the manner of Kafka Streams' `Topology#describe`, as a Mermaid flowchart, and as plain data.

Each role is a sub-topology: sources (topics it reads) -> processor (the role) -> sinks (topics it writes). Everything is read off the
declaration, so an arrow stands here if and only if a writer or reader is declared, or the link carries the topic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from schemas.messages import Tier
from streams.topology import Mirror, Role, Topic, Topology, mirrors

# Besides topics that nobody else reads, what people and sinks are meant to read; they may read every topic.
FOR_PEOPLE = ("results", "alerts", "incidents", "alerts.evidence")

_WHO = {
    Role.PRODUCER: "producers: cameras, clients",
    Role.LEAF: "leaf agent",
    Role.REGION: "region agent",
    Role.RESOLVER: "resolver",
    Role.LINK: "link",
    Role.READER: "people and sinks",
    Role.OPERATOR: "a person with the headwater command",
    Role.ACCOUNTANT: "accountant, beside the resolver",
}


class SubTopology(msgspec.Struct, frozen=True, kw_only=True):
    """What one role does: the topics it reads and writes, and the consumer group that keeps its place, if one does."""

    role: Role
    group: str | None
    sources: tuple[str, ...]
    sinks: tuple[str, ...]


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """A topic that the link carries, and where to."""

    source: str
    target: str
    direction: str


class TopicDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A declared topic."""

    name: str
    base: str
    site: str | None
    key: str
    value: str
    content_type: str
    description: str
    partitions: int
    partitioned_by: str
    settings: dict[str, str]
    writers: tuple[Role, ...]
    readers: tuple[Role, ...]


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """A site's topology as plain data. `region` is the region's side as the link sees it."""

    site: str
    tier: Tier
    cluster: str
    topics: tuple[TopicDescription, ...]
    sub_topologies: tuple[SubTopology, ...]
    carried: tuple[Carried, ...] = ()
    region: Description | None = None


def description(topology: Topology, region: Topology | None = None) -> Description:
    """The topology of a site, with the region's side of its link if that is given."""
    roles = [role for role in Role if any(role in topic.readers | topic.writers for topic in topology)]
    keeps_place = set(topology.groups().values())
    carried = [
        Carried(source=mirror.source.name, target=mirror.target.name, direction=mirror.direction) for mirror in _mirrors(topology, region)
    ]
    return Description(
        site=topology.site,
        tier=topology.tier,
        cluster=topology.config.kafka.bootstrap_servers,
        topics=tuple(_topic(topic) for topic in topology),
        sub_topologies=tuple(
            SubTopology(
                role=role,
                group=topology.group(role) if role in keeps_place else None,
                sources=tuple(topic.name for topic in topology.role(role).reads()),
                sinks=tuple(topic.name for topic in topology.role(role).writes()),
            )
            for role in roles
        ),
        carried=tuple(carried),
        region=None if region is None else description(linked(region)),
    )


def _mirrors(topology: Topology, region: Topology | None) -> list[Mirror]:
    return [] if region is None else mirrors(topology, region)


def _topic(topic: Topic) -> TopicDescription:
    return TopicDescription(
        name=topic.name,
        base=topic.base,
        site=topic.site,
        key=topic.key,
        value=topic.value,
        content_type=topic.content_type,
        description=topic.description,
        partitions=topic.partitions,
        partitioned_by="source" if topic.by_source else "nothing (one partition)",
        settings=topic.settings(),
        writers=tuple(sorted(topic.writers, key=list(Role).index)),
        readers=tuple(sorted(topic.readers, key=list(Role).index)),
    )


def linked(region: Topology) -> Topology:
    """Of a region's topology, the topics that a link touches: all that a leaf knows of its region."""
    view = Topology(region.config)
    view.topics = {topic.name: topic for topic in region if Role.LINK in topic.readers | topic.writers}
    return view


def label(topic: Topic | TopicDescription) -> str:
    """What a topic is called among people: as in code, with the site where a region has one for each."""
    direction, _, rest = topic.base.partition(".")
    return topic.base if topic.site is None else f"{direction}.{topic.site}.{rest}"


def describe(topology: Topology, region: Topology | None = None) -> str:
    """The topology as text, in the manner of Kafka Streams: one sub-topology a role, sources -> processor -> sinks."""
    told = description(topology, region)
    lines = [f"Topology of {told.tier} {told.site} at {told.cluster}"]
    lines += _sub_topologies(told)
    if told.region is not None:
        lines += ["", f"Carried by the link, between {told.site} at {told.cluster} and {told.region.site} at {told.region.cluster}"]
        lines += [f"    {one.direction:<4} {one.source} --> {one.target}" for one in told.carried]
    return "\n".join(lines) + "\n"


def _sub_topologies(told: Description) -> Iterator[str]:
    by_name = {topic.name: topic for topic in told.topics}
    for number, part in enumerate(told.sub_topologies):
        group = f", group: {part.group}" if part.group else ""
        yield f"  Sub-topology: {number} ({_WHO[part.role]}{group})"
        for name in part.sources:
            topic = by_name[name]
            yield f"    Source: {label(topic)} (topics: [{name}], partitions: {topic.partitions}, value: {topic.value})"
            yield f"      --> {part.role}"
        yield f"    Processor: {part.role}"
        yield f"      --> {', '.join(label(by_name[name]) for name in part.sinks) or 'none'}"
        yield f"      <-- {', '.join(label(by_name[name]) for name in part.sources) or 'none'}"
        for name in part.sinks:
            topic = by_name[name]
            yield f"    Sink: {label(topic)} (topic: {name}, partitions: {topic.partitions}, key: {topic.key})"
            yield f"      <-- {part.role}"


# ---- the drawing


def draw(topology: Topology, region: Topology | None = None, *, every_reader: bool = False) -> str:
    """A Mermaid flowchart: roles are boxes, topics are cylinders, and the link's arrows cross from one cluster to the other.

    Parameters
    ----------
    every_reader
        Also draw people and sinks as readers of topics that are not `FOR_PEOPLE` and have other readers: true, but crowded.
    """
    lines = ["flowchart LR"]
    lines += _cluster(topology, "leaf" if topology.tier is Tier.LEAF else "region", every_reader)
    if region is not None:
        lines += _cluster(linked(region), "far", every_reader, without=Role.LINK)
        link = _id(_prefix(topology), Role.LINK)
        for mirror in mirrors(topology, region):
            name = _id("far", mirror.target.name if mirror.direction == "up" else mirror.source.name)
            lines.append(f"  {link} ==> {name}" if mirror.direction == "up" else f"  {name} ==> {link}")
        positions = region.topic("up.positions", topology.site)
        lines += [f"  {link} ==> {_id('far', positions.name)}", f"  {_id('far', positions.name)} ==> {link}"]
    lines += ["  classDef topic fill:#eef6ff,stroke:#4a7ab5,color:#123", "  classDef role fill:#fff4e0,stroke:#b5803a,color:#321"]
    return "\n".join(lines) + "\n"


def _prefix(topology: Topology) -> str:
    return "leaf" if topology.tier is Tier.LEAF else "region"


def _cluster(topology: Topology, prefix: str, every_reader: bool, without: Role | None = None) -> Iterator[str]:
    yield f"  subgraph {prefix}_cluster [{_text(f'{topology.tier} {topology.site}')}]"
    yield "    direction LR"
    arrows: list[str] = []
    roles: set[Role] = set()
    for topic in topology:
        yield f"    {_id(prefix, topic.name)}[({_text(topic.name)})]:::topic"
        for role in sorted(topic.writers - {without}):
            arrows.append(f"{_id(prefix, role)} --> {_id(prefix, topic.name)}")
            roles.add(role)
        for role in sorted(topic.readers - {without}):
            if role is Role.READER and not (every_reader or _for_people(topic)):
                continue
            arrows.append(f"{_id(prefix, topic.name)} {'-.->' if role is Role.READER else '-->'} {_id(prefix, role)}")
            roles.add(role)
    yield from (f"    {_id(prefix, role)}[{_text(_WHO[role])}]:::role" for role in Role if role in roles)
    yield "  end"
    yield from (f"  {arrow}" for arrow in arrows)


def _for_people(topic: Topic) -> bool:
    return topic.base in FOR_PEOPLE or topic.readers <= {Role.READER, Role.ACCOUNTANT}


def _id(prefix: str, name: str) -> str:
    """An id that Mermaid takes, different for different names."""
    return f"{prefix}_{re.sub(r'[^A-Za-z0-9]', lambda found: f'_{ord(found[0]):x}_', name)}"


def _text(text: str) -> str:
    return '"' + text.replace('"', "#quot;") + '"'
