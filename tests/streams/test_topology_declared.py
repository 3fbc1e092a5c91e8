"""The declaration itself: its laws hold for every configuration, code gets no topic that is not declared for it, and what is described
and drawn is what is declared."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import Ingress, Kafka, Link, Region, SiteConfig, Topics
from streams.describe import describe, description, draw, linked
from streams.laws import laws
from streams.topology import INTERNAL, Role, Topology, UndeclaredTopic, mirrors, region_view

DAY_S = 86_400


@st.composite
def configs(draw: st.DrawFn) -> SiteConfig:
    size = st.integers(1 << 20, 1 << 40)
    topics = Topics(
        prefix=draw(st.sampled_from(["", "a.", "site-7."])),
        partitions=draw(st.integers(1, 32)),
        frames_retention_s=draw(st.integers(10, 30 * DAY_S)),
        frames_retention_bytes=draw(size),
        outbox_retention_s=draw(st.integers(60, 60 * DAY_S)),
        outbox_retention_bytes=draw(size),
    )
    ingress = Ingress(max_frame_bytes=draw(st.integers(1024, 64 << 20)))
    if draw(st.booleans()):
        return SiteConfig(name="leaf-1", tier="leaf", topics=topics, ingress=ingress, link=Link(region=Kafka(bootstrap_servers="r:1")))
    sites = draw(st.lists(st.from_regex(r"[a-z0-9-]{1,20}\Z", fullmatch=True), min_size=1, max_size=4, unique=True))
    return SiteConfig(name="the-region", tier="region", topics=topics, ingress=ingress, region=Region(sites=tuple(sites)))


@settings(max_examples=80, deadline=None)
@given(config=configs())
def test_the_laws_hold_for_every_configuration(config: SiteConfig) -> None:
    topology = Topology(config)
    assert [*laws(topology)] == []
    for topic in topology:
        told = topic.settings()
        assert told["message.timestamp.type"] == "LogAppendTime"
        if "delete" in told["cleanup.policy"]:
            assert int(told["retention.bytes"]) > 0, topic.name
            assert int(told["segment.bytes"]) >= int(told["max.message.bytes"]), f"{topic.name}: a record would not fit into a segment"
        assert topic.partitions == (config.topics.partitions if topic.by_source else 1)
        assert topic.name.startswith(config.topics.prefix)
        assert len(topic.name) <= 249
        assert re.fullmatch(r"[a-zA-Z0-9._-]+", topic.name)
        assert not any(re.fullmatch(pattern, topic.name) for pattern, _ in INTERNAL)


@settings(max_examples=30, deadline=None)
@given(config=configs())
def test_the_law_of_the_resolvers_memory_by_plain_arithmetic(config: SiteConfig) -> None:
    """The same law, worked out here without the product's own code."""
    topology = Topology(config)
    results = topology.topic("results").settings()
    own = {"results", "incidents", "resolver.memory"}  # what only it writes, and reads to restore itself
    read = [topic for topic in topology if Role.RESOLVER in topic.readers and topic.base not in own]
    assert {topic.base for topic in read} >= {"alerts", "incidents.alerts"}
    for topic in read:
        assert topology.topic("results").partitions == topic.partitions
        letters = topology.topics[topic.name + ".dlq"].settings()
        assert int(letters["max.message.bytes"]) > int(topic.settings()["max.message.bytes"])
        again_ms = int(topic.settings()["retention.ms"]) + int(letters["retention.ms"])
        if topic.base.startswith("up.") or topic.base == "region.verdicts":  # a link may bring it again from the other side
            again_ms += int(topic.settings()["retention.ms"])
        assert int(results["retention.ms"]) > again_ms


@pytest.mark.parametrize(
    ("base", "more_s", "told"),
    [
        ("verdicts", 3 * DAY_S, "of its topic"),
        ("verdicts.dlq", 3 * DAY_S, "of its dead letters"),
        ("region.verdicts", DAY_S, "of the link's backfill"),
    ],
)
def test_an_input_that_can_come_again_after_it_is_forgotten_is_found(base: str, more_s: int, told: str) -> None:
    """Each way by itself is short enough; together they are not."""
    topics = [
        msgspec.structs.replace(topic, retention_s=topic.retention_s + more_s) if topic.base == base else topic for topic in Topology(LEAF)
    ]
    (finding,) = [finding for finding in laws(topics) if finding.code == "resolver-memory"]
    assert finding.subject == f"p.{base.removesuffix('.dlq')}"
    assert told in finding.problem


def test_snapshots_are_no_input() -> None:
    topics = [
        msgspec.structs.replace(topic, retention_s=1000 * DAY_S) if topic.base in {"resolver.memory", "incidents"} else topic
        for topic in Topology(LEAF)
    ]
    assert [*laws(topics)] == []


LEAF = SiteConfig(name="leaf-1", tier="leaf", topics=Topics(prefix="p."), link=Link(region=Kafka(bootstrap_servers="r:1")))
REGION = SiteConfig(name="region", tier="region", topics=Topics(prefix="p."), region=Region(sites=("leaf-1", "leaf-2")))


@pytest.mark.parametrize("config", [LEAF, REGION])
@pytest.mark.parametrize("role", list(Role))
def test_a_role_gets_what_is_declared_for_it_and_nothing_else(config: SiteConfig, role: Role) -> None:
    topology = Topology(config)
    view = topology.role(role)
    for topic in topology:
        for verb, allowed in (("read", topic.readers), ("write", topic.writers)):
            ask = getattr(view, verb)
            if role in allowed:
                assert ask(topic.base, topic.site) is topic
            else:
                with pytest.raises(UndeclaredTopic, match=f"{role} may not {verb} {re.escape(topic.name)}"):
                    ask(topic.base, topic.site)
    with pytest.raises(UndeclaredTopic, match="no topic 'nowhere'"):
        view.read("nowhere")


def test_the_link_carries_between_topics_that_fit() -> None:
    leaf, region = Topology(LEAF), region_view(LEAF)
    real = Topology(REGION)
    for mirror in mirrors(leaf, region):
        assert mirror.target.partitions == mirror.source.partitions
        assert mirror.target.max_message_bytes >= mirror.source.max_message_bytes
        assert Role.LINK in mirror.source.readers
        assert Role.LINK in mirror.target.writers
        far = mirror.target if mirror.direction == "up" else mirror.source
        assert real.topics[far.name].settings() == far.settings()
        assert mirror.source.name != mirror.target.name, "a record could come back"


def arrows(mermaid: str) -> set[tuple[str, str]]:
    """The arrows of a flowchart by the words on its boxes."""
    words = dict(re.findall(r"^ *(\w+)\[\(?\"(.*?)\"\)?\]:::\w+$", mermaid, re.MULTILINE))
    found = re.findall(r"^ *(\w+) (?:-->|-\.->|==>) (\w+)$", mermaid, re.MULTILINE)
    return {(words[left], words[right]) for left, right in found}


WORDS = {
    "producers: cameras, clients": Role.PRODUCER,
    "leaf agent": Role.LEAF,
    "region agent": Role.REGION,
    "resolver": Role.RESOLVER,
    "link": Role.LINK,
    "people and sinks": Role.READER,
    "a person with the headwater command": Role.OPERATOR,
    "accountant, beside the resolver": Role.ACCOUNTANT,
}


@pytest.mark.parametrize("config", [LEAF, REGION])
def test_the_drawing_has_every_topic_and_every_declared_arrow(config: SiteConfig) -> None:
    topology = Topology(config)
    found = arrows(draw(topology, every_reader=True))
    drawn = {(WORDS.get(a, a), WORDS.get(b, b)) for a, b in found}
    declared = {(role, topic.name) for topic in topology for role in topic.writers}
    declared |= {(topic.name, role) for topic in topology for role in topic.readers}
    assert drawn == declared


def test_the_plain_drawing_leaves_out_only_readers_where_others_read() -> None:
    topology = Topology(LEAF)
    left_out = arrows(draw(topology, every_reader=True)) - arrows(draw(topology))
    assert left_out
    assert {reader for _, reader in left_out} == {"people and sinks"}
    assert not {"p.results", "p.alerts", "p.alerts.evidence", "p.frames.dlq"} & {topic for topic, _ in left_out}


def test_the_drawing_of_a_leaf_crosses_to_its_region_where_the_link_does() -> None:
    leaf, region = Topology(LEAF), region_view(LEAF)
    crossing = set(re.findall(r"^ *(\w+) ==> (\w+)$", draw(leaf, region), re.MULTILINE))
    assert all("leaf_link" in pair for pair in crossing)
    names = dict(re.findall(r"^ *(\w+)\[\(\"(.*?)\"\)\]:::topic$", draw(leaf, region), re.MULTILINE))
    far = {(names.get(a, a), names.get(b, b)) for a, b in crossing}
    expected = {("leaf_link", m.target.name) if m.direction == "up" else (m.source.name, "leaf_link") for m in mirrors(leaf, region)}
    positions = region.topic("up.positions", "leaf-1").name
    assert far == expected | {("leaf_link", positions), (positions, "leaf_link")}


def test_every_line_of_the_drawing_is_mermaid() -> None:
    """The grammar of the lines that are used, as mermaid 11 parsed them."""
    forms = (
        r"flowchart LR",
        r' *subgraph \w+ \["[^"]+"\]',
        r" *direction LR",
        r" *end",
        r' *\w+\[\("[^"]+"\)\]:::topic',
        r' *\w+\["[^"]+"\]:::role',
        r" *\w+ (-->|-\.->|==>) \w+",
        r" *classDef \w+ \S+",
    )
    for line in draw(Topology(LEAF), region_view(LEAF)).splitlines():
        assert any(re.fullmatch(form, line) for form in forms), line


@pytest.mark.parametrize("config", [LEAF, REGION])
def test_the_description_says_every_source_and_sink(config: SiteConfig) -> None:
    topology = Topology(config)
    text = describe(topology)
    sources, sinks = set(), set()
    for part in re.split(r"^  Sub-topology: \d+ ", text, flags=re.MULTILINE)[1:]:
        (role,) = re.findall(r"^    Processor: (\w+)$", part, re.MULTILINE)
        sources |= {(role, name) for name in re.findall(r"^    Source: .*\(topics: \[(\S+)\],", part, re.MULTILINE)}
        sinks |= {(role, name) for name in re.findall(r"^    Sink: .*\(topic: (\S+),", part, re.MULTILINE)}
    assert sources == {(str(role), topic.name) for topic in topology for role in topic.readers}
    assert sinks == {(str(role), topic.name) for topic in topology for role in topic.writers}


def test_the_plain_form_holds_the_declaration() -> None:
    told = description(Topology(LEAF), region_view(LEAF))
    assert {topic.name: topic.settings for topic in told.topics} == {topic.name: topic.settings() for topic in Topology(LEAF)}
    groups = {part.role: part.group for part in told.sub_topologies}
    assert groups[Role.LEAF] == "p.leaf-1.leaf"
    assert groups[Role.LINK] is None, "the link keeps its place in the positions topics"
    assert told.region is not None
    assert {topic.name for topic in told.region.topics} == set(linked(region_view(LEAF)).topics)
    assert all(".leaf-1." in topic.name for topic in told.region.topics)
