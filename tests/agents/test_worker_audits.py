"""The audit between workers on a real Kafka: a leaf asks about its sample, and says how accurate it is once it was answered."""

from __future__ import annotations

import datetime as dt
import json
import signal
from collections.abc import Callable
from types import ModuleType
from typing import Any

import msgspec

from agents.cascade.agreement import SCORE
from schemas.detections import Detections
from schemas.labels import Label
from schemas.messages import LEAF_PREFERRED_RANK, RANK, Status, Tier, Verdict
from streams import outputs
from streams.clients import Clients
from streams.sink import Sink
from streams.topology import Role, Topology

AWAY = {"region": {"bootstrap_servers": "127.0.0.1:9"}, "region_name": "region-1"}
FRAMES = 150  # of each camera: 100 judged ones make an estimate, 135 a threshold


def asked_about_all(tools: ModuleType, site: Callable[..., Any], street: list[bytes]) -> tuple[Any, Any, Any, Any]:
    """A leaf that audits every frame, once it has asked about `FRAMES` of each camera: site, reader, camera, agent."""
    leaf = site(
        link=AWAY,
        audit={"rate": 1.0},
        policy={"inferences_per_s": 10_000.0, "budget_bytes_per_s": 100 << 20, "teach": False},
        detector={"degrade": False},
        ingress={"max_age_ms": 60_000},
        evidence={"form": "frame", "side": 128, "quality": 20},
    )
    reader = tools.Reader(leaf, "verdicts", "escalations", "accuracy")
    camera = tools.Camera(leaf, street)
    agent = leaf.start("agent")
    camera.shoot(FRAMES)
    reader.until(lambda: set(camera.manifest) <= {each for message in reader.records["escalations"] for each in audited(message)}, "asked")
    return leaf, reader, camera, agent


def test_a_leaf_says_how_accurate_it_is(tools: ModuleType, site: Callable[..., Any], street: list[bytes]) -> None:
    """The region agrees with whatever the leaf has answered, so every share is 1."""
    leaf, reader, _, agent = asked_about_all(tools, site, street)
    topic, sink = Topology(leaf.config).role(Role.LINK).write("region.verdicts"), Sink(Clients(leaf.config.kafka, "test"))
    sink.write_blocking([outputs.answer(topic, agreed(each)) for each in reader.values("verdicts")])
    sink.close()

    def told() -> dict[str, Any]:
        return {each["source"]: each for each in reader.values("accuracy")}

    reader.until(lambda: sum(each["frames"] for each in told().values()) == 2 * FRAMES, "it says how accurate it is, camera by camera")
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(tools.WORKER_LIMIT_S) == 0, leaf.logs()
    reader.close()
    assert set(told()) == {"cam-1", "cam-2"}
    for each in told().values():
        assert (each["frames"], each["missing"], each["leaf_f1"], each["results_recall"]) == (FRAMES, 0, 1.0, 1.0)
        assert 0.9 < each["leaf_precision_low"] <= 1
        assert each["sure_from"] <= 1


def test_where_labels_show_that_the_leaf_is_better_its_answers_hold(
    tools: ModuleType, site: Callable[..., Any], street: list[bytes]
) -> None:
    """The region sees nothing, and labels say that the leaf was right: so from then on the leaf outranks it, and asks about its sample
    alone."""
    leaf, reader, camera, agent = asked_about_all(tools, site, street)
    topology, sink = Topology(leaf.config), Sink(Clients(leaf.config.kafka, "test"))
    answers, labels = topology.role(Role.LINK).write("region.verdicts"), topology.role(Role.OPERATOR).write("labels")
    right = [agreed(each) for each in reader.values("verdicts")]
    blind = [msgspec.structs.replace(each, detections=Detections()) for each in right]
    sink.write_blocking([outputs.answer(answers, each) for each in blind])
    sink.write_blocking([outputs.label(labels, labelled(each)) for each in right])
    sink.close()

    def told() -> dict[str, Any]:
        return {each["source"]: each for each in reader.values("accuracy") if each["against"] == "labels"}

    reader.until(lambda: sum(each["frames"] for each in told().values()) == 2 * FRAMES, "the accuracy is against labels")
    assert {each["leaf_f1"] for each in told().values()} == {1.0}
    later = set(camera.shoot(2))
    reader.until(lambda: later <= reader.ids("verdicts"), "answered")
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(tools.WORKER_LIMIT_S) == 0, leaf.logs()
    reader.close()
    ranks = {(each["id"] in later, each["rank"]) for each in reader.values("verdicts")}
    assert ranks == {(False, RANK[Tier.LEAF]), (True, LEAF_PREFERRED_RANK)}


def labelled(right: Verdict) -> Label:
    truly = Detections(msgspec.structs.replace(each, score=1.0) for each in right.detections if each.score >= SCORE)
    return Label(id=right.id, source=right.source, objects=truly, by="test", at=dt.datetime.now(dt.UTC))


def audited(message: Any) -> list[str]:
    """The records of a question of the audit."""
    question = json.loads(dict(message.headers() or [])["escalation"])
    return [record["id"] for record in question["records"]] if question["reason"] == "audit" and question["audit_rate"] == 1 else []


def agreed(leaf: dict[str, Any]) -> Verdict:
    verdict = Verdict.from_bytes(json.dumps(leaf).encode())
    return Verdict(
        id=verdict.id,
        source=verdict.source,
        captured_at=verdict.captured_at,
        status=Status.FINAL,
        detections=Detections.from_json(verdict.detections.to_json()),
        confidence=verdict.confidence,
        tier=Tier.REGION,
        site="region-1",
        rank=RANK[Tier.REGION],
        generation=0,
        model="large",
        model_digest="a" * 64,
        evidence="b" * 64,
    )
