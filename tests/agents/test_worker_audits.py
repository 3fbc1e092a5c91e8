"""The audit between workers on a real Kafka: a leaf asks about its sample, and says how accurate it is once it was answered."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from types import ModuleType
from typing import Any

from schemas.detections import Detections
from schemas.messages import RANK, Status, Tier, Verdict
from streams import outputs
from streams.clients import Clients
from streams.sink import Sink
from streams.topology import Role, Topology

AWAY = {"region": {"bootstrap_servers": "127.0.0.1:9"}, "region_name": "region-1"}
FRAMES = 150  # of each camera: 100 judged ones make an estimate, 135 a threshold


def test_a_leaf_says_how_accurate_it_is(tools: ModuleType, site: Callable[..., Any], street: list[bytes]) -> None:
    """The region agrees with whatever the leaf has answered, so every share is 1."""
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
