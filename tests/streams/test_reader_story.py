"""The story of an alert, and what waits for the link, from a real broker that the test fills itself."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

import pytest
from confluent_kafka import Producer

from schemas.alerts import judge
from schemas.config import Kafka, Link, Region, SiteConfig, Topics
from schemas.detections import Detection, Detections
from schemas.frames import Frame
from schemas.identity import RecordId, alert_id, content_digest, escalation_id, new_epoch
from schemas.messages import Alert, AlertState, Asked, Escalation, Position, Reason, Status, Tier, Verdict
from schemas.resolution import join, result_of
from schemas.rules import Zone
from streams import outputs
from streams.backlog import backlog
from streams.clients import Clients
from streams.cluster import create_topics
from streams.merging import TopicMissing
from streams.sink import Output
from streams.story import AlertUnknown, find_alert, tell
from streams.topology import Topology, region_view

UTC = dt.UTC
JPEG_BYTES = b"\xff\xd8\xff picture"


class Scene:
    """Alerts of one source, written as the stages write them."""

    def __init__(self, topology: Topology, producer: Producer) -> None:
        self.topology, self.producer, self.epoch, self.next = topology, producer, new_epoch(), 0

    def write(self, written: Iterable[Output]) -> None:
        for one in written:
            self.producer.produce(one.topic.name, key=one.key, value=one.value, headers=one.headers, partition=one.partition)
        self.producer.flush(10)

    def alert(self, rule: str = "gate", *, confirmed: bool = True, kept: bool = True) -> Alert:
        topic = self.topology.topic
        record = RecordId("cam-1", self.epoch, self.next)
        self.next += 1
        taken = dt.datetime.now(UTC)
        seen = Detections([Detection("person", 0.6, 0.1, 0.1, 0.3, 0.9)])
        verdict = Verdict(
            id=str(record),
            source="cam-1",
            captured_at=taken,
            status=Status.PROVISIONAL,
            detections=seen,
            confidence=0.6,
            tier=Tier.LEAF,
            site="leaf-1",
            rank=10,
            generation=0,
            model="small",
            model_digest="a" * 64,
            deadline_ms=1000,
        )
        raised = Alert(
            id=alert_id(rule, str(record)),
            rule=rule,
            source="cam-1",
            site="leaf-1",
            record=str(record),
            captured_at=taken,
            state=AlertState.RAISED,
            version=0,
            label="person",
            min_score=0.5,
            zone=Zone(),
            seen=seen,
            score=0.6,
            held_s=0.0,
            model_digest="a" * 64,
            deadline_ms=1000,
        )
        asked = Escalation(
            id=escalation_id((str(record),), content_digest(JPEG_BYTES)),
            source="cam-1",
            site="leaf-1",
            reason=Reason.ALERT,
            records=(Asked(id=str(record), captured_at=taken),),
            evidence=content_digest(JPEG_BYTES),
            content_type="image/jpeg",
            deadline_ms=1000,
            ttl_s=60.0,
            alerts=(raised.id,),
        )
        frame = Frame(id=record, source="cam-1", captured_at=taken, jpeg=JPEG_BYTES + rule.encode())
        self.write([outputs.answer(topic("verdicts"), verdict), outputs.answer(topic("results"), result_of(verdict))])
        self.write([outputs.alert(topic("alerts"), raised), outputs.escalation(topic("escalations"), asked, JPEG_BYTES + b"evidence")])
        if kept:
            self.write([outputs.picture(topic("alerts.evidence"), raised.id, frame)])
        if confirmed:
            higher = Verdict(
                id=str(record),
                source="cam-1",
                captured_at=taken,
                status=Status.FINAL,
                detections=seen,
                confidence=0.9,
                tier=Tier.REGION,
                site="north",
                rank=20,
                generation=0,
                model="large",
                model_digest="b" * 64,
            )
            result = join(result_of(verdict), result_of(higher))
            later = judge(raised, result)
            assert later is not None
            last = [outputs.answer(topic("results"), result), outputs.alert(topic("alerts"), later)]
            self.write([outputs.answer(topic("region.verdicts"), higher), *last, *last])  # delivered twice
        return raised


@pytest.fixture
def clients(kafka: Kafka) -> Clients:
    return Clients(kafka, "test")


@pytest.fixture
def leaf(kafka: Kafka, prefix: str, clients: Clients) -> Topology:
    topology = Topology(
        SiteConfig(name="leaf-1", tier="leaf", kafka=kafka, topics=Topics(prefix=prefix, partitions=2), link=Link(region=kafka))
    )
    create_topics(topology, clients)
    return topology


@pytest.fixture
def scene(leaf: Topology, kafka: Kafka) -> Scene:
    return Scene(leaf, Producer({"bootstrap.servers": kafka.bootstrap_servers}))


def test_the_story_holds_every_step_once_and_in_order(leaf: Topology, clients: Clients, scene: Scene) -> None:
    scene.alert("other")
    alert = scene.alert("gate")
    scene.alert("third", confirmed=False)
    story = tell(leaf, clients, alert.id)
    assert (story.alert.id, story.alert.state, story.alert.decided_by) == (alert.id, AlertState.CONFIRMED, Tier.REGION)
    told = [(event.what, event.topic.base, getattr(event.value, "state", getattr(event.value, "status", None))) for event in story.events]
    assert sorted(map(str, told)) == sorted(
        map(
            str,
            [
                ("state", "alerts", AlertState.RAISED),
                ("state", "alerts", AlertState.CONFIRMED),
                ("verdict", "verdicts", Status.PROVISIONAL),
                ("verdict", "region.verdicts", Status.FINAL),
                ("result", "results", Status.PROVISIONAL),
                ("result", "results", Status.FINAL),
                ("escalation", "escalations", None),
            ],
        )
    )
    times = [event.at for event in story.events if event.at is not None]
    assert times == sorted(times)
    assert all(getattr(event.value, "id", alert.record) in {alert.record, alert.id} or event.what == "escalation" for event in story.events)
    assert story.picture == JPEG_BYTES + b"gate"


def test_without_the_kept_picture_the_evidence_is_shown(leaf: Topology, clients: Clients, scene: Scene) -> None:
    story = tell(leaf, clients, scene.alert(kept=False).id)
    assert story.picture == JPEG_BYTES + b"evidence"
    assert story.picture_from is not None
    assert story.picture_from.base == "escalations"


def test_an_alert_is_found_by_id_by_beginning_and_as_the_last(leaf: Topology, clients: Clients, scene: Scene) -> None:
    with pytest.raises(AlertUnknown, match=r"no alert in .* yet"):
        find_alert(leaf, clients, "last")
    first, last = scene.alert("a"), scene.alert("b")
    scene.write([outputs.alert(leaf.topic("alerts"), first)])  # the latest record is an old alert, delivered again
    assert find_alert(leaf, clients, first.id) == first.id
    digits = next(n for n in range(1, 32) if first.id[6 : 6 + n] != last.id[6 : 6 + n])
    assert find_alert(leaf, clients, first.id[: 6 + digits]) == first.id
    assert find_alert(leaf, clients, last.id[6 : 6 + digits]) == last.id
    with pytest.raises(AlertUnknown, match="begins with 'zz'"):
        find_alert(leaf, clients, "zz")
    with pytest.raises(AlertUnknown, match="2 alerts begin with 'alert-'"):
        find_alert(leaf, clients, "alert-")


def test_the_last_is_the_one_that_was_raised_last(leaf: Topology, clients: Clients, scene: Scene) -> None:
    old = scene.alert("a")
    new = scene.alert("b", confirmed=False)
    later = tell(leaf, clients, old.id).alert
    scene.write([outputs.alert(leaf.topic("alerts"), later)])
    assert find_alert(leaf, clients, "last") == new.id


def test_topics_that_are_not_there(kafka: Kafka, prefix: str, clients: Clients, scene: Scene, leaf: Topology) -> None:
    nowhere = Topology(SiteConfig(name="leaf-1", tier="leaf", kafka=kafka, topics=Topics(prefix=f"{prefix}x")))
    with pytest.raises(TopicMissing, match="alerts"):
        find_alert(nowhere, clients, "last")


def test_what_waits_for_the_link_is_counted_from_its_positions(
    leaf: Topology, clients: Clients, kafka: Kafka, scene: Scene, prefix: str
) -> None:
    config = SiteConfig(
        name="region", tier="region", kafka=kafka, topics=Topics(prefix=prefix, partitions=2), region=Region(sites=("leaf-1",))
    )
    region = Topology(config)
    create_topics(region, clients)
    alert = scene.alert()  # two states, the second of them twice
    waiting = {one.source: one for one in backlog(leaf, region_view(leaf.config), clients, clients)}
    alerts = waiting[leaf.topic("alerts").name]
    assert (alerts.waiting, alerts.carried_before, alerts.direction) == (3, False, "up")
    assert alerts.target == f"{prefix}up.leaf-1.alerts"
    assert waiting[f"{prefix}down.leaf-1.verdicts"].waiting == 0

    partition = outputs.alert(leaf.topic("alerts"), alert).partition
    info = clients.cluster([leaf.topic("alerts").name])
    position = Position(
        cluster=info.id,
        topic=leaf.topic("alerts").name,
        topic_uuid=info.topics[leaf.topic("alerts").name][0],
        partition=partition,
        next_offset=2,
        writer="w",
    )
    key = f"{position.topic}/{partition}"
    scene.write([Output(region.topic("up.positions", "leaf-1"), "", key, position.to_bytes(), [])])
    alerts = next(one for one in backlog(leaf, region_view(leaf.config), clients, clients) if one.source == position.topic)
    assert (alerts.waiting, alerts.carried_before, alerts.by_partition[partition]) == (1, True, 1)
