"""Workers as people run them: processes of their own, a real Kafka, the real model. What became of every frame is judged by a plain
Kafka consumer against what the test itself has published."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from confluent_kafka import Producer

from infra.cli.run import NEEDS_A_PERSON
from schemas.config import Kafka
from streams.topology import Topology

LIMIT_S = 60.0  # longest wait for anything
PARTITIONS = 2
MAX_AGE_MS = 6000  # less than a killed member is missed by its group for


RULES = [{"name": "person", "label": "person", "min_score": 0.5, "cooldown_s": 3600.0}]
AWAY = {"region": {"bootstrap_servers": "127.0.0.1:9"}, "region_name": "region-1"}  # a region that never answers


def test_every_frame_is_accounted_for_through_a_kill_and_bad_records(
    tools: ModuleType, site: Callable[..., Any], nanodet: Any, street: list[bytes]
) -> None:
    leaf = site(rules=RULES, ingress={"max_age_ms": MAX_AGE_MS}, link=AWAY, policy={"deadline_ms": 500})
    reader = tools.Reader(leaf, "verdicts", "results", "alerts", "alerts.evidence", "drops", "frames.dlq", "escalations.alerts")
    camera = tools.Camera(leaf, street)
    agent, _ = leaf.start("agent"), leaf.start("resolver")
    camera.shoot(1)
    reader.until(lambda: set(camera.manifest) <= reader.ids("verdicts") | reader.dropped(), "the first frames are answered")

    first = camera.shoot(5)
    corrupt = tools.frame("cam-1", 1 << 40, jpeg=street[0][:7000])
    bad = [(corrupt.jpeg, list(corrupt.to_headers())), (b"", None), (None, None), (b"<html>no picture</html>", None)]
    for value, headers in bad:
        camera.put("cam-1", value, headers)
    camera.flush()
    rest = camera.shoot(25)
    reader.until(lambda: {*first, *rest} <= reader.ids("verdicts"), "frames before and after bad records are answered")
    for source in ("cam-1", "cam-2"):  # several batches were in work at once
        answers = [value for value in reader.values("verdicts") if value["source"] == source and "seen" in value]
        sequences = [int(value["id"].rsplit("/", 1)[1]) for value in answers]
        assert sequences == sorted(sequences)
    reader.until(lambda: len(reader.records["frames.dlq"]) >= len(bad), "bad records are dead letters")
    reader.until(lambda: {a["source"] for a in reader.values("alerts")} == {"cam-1", "cam-2"}, "both cameras raised an alert")

    agent.send_signal(signal.SIGKILL)
    agent.wait(LIMIT_S)
    lost = camera.shoot(20)
    shot_s = time.monotonic()
    reader.until(lambda: time.monotonic() > shot_s + MAX_AGE_MS / 1000, "an outage longer than a frame may wait")
    restarted = leaf.start("agent")
    reader.until(lambda: set(lost) <= reader.dropped() | reader.ids("results"), "what waited meanwhile is answered or explained")
    late = camera.shoot(5)
    reader.until(lambda: set(late) <= reader.ids("verdicts"), "frames after the restart are answered")
    reader.until(lambda: set(camera.manifest) <= reader.dropped() | reader.ids("results"), "every frame has a result or a drop")

    reader.until(lambda: "provisional" not in {r["status"] for r in reader.latest("results")}, "every deadline passes")
    reader.until(lambda: {a["state"] for a in reader.latest("alerts")} == {"unreviewed"}, "alerts that nobody reviewed say so")
    reader.until(lambda: len(reader.latest("alerts.evidence")) >= 2, "both alerts have their picture")
    restarted.send_signal(signal.SIGTERM)
    assert restarted.wait(LIMIT_S) == 0, leaf.logs()
    reader.close()

    # nothing but what was published, and nothing that only a region could have said
    assert reader.ids("results") == set(camera.manifest) - (reader.dropped() - reader.ids("results"))
    assert reader.dropped() <= {*camera.manifest, str(corrupt.id)}  # read again after the kill, the bad frame may be too old for a look
    assert reader.dropped() & set(lost), "the outage was longer than a frame may wait"
    assert {(r["tier"], r["site"]) for r in reader.values("results")} == {("leaf", "leaf-1")}
    assert {r["status"] for r in reader.latest("results")} == {"unanswered"}, "nothing was audited: nobody can say of what the leaf is sure"
    assert {drop["reason"] for drop in reader.values("drops")} == {"stale"}
    for record in {r["id"]: r["order"] for r in reader.values("results")}.items():  # what was written last is the best
        assert record[1] == max(r["order"] for r in reader.values("results") if r["id"] == record[0])

    # one event, one alert: also across the restart, whose process learned of it from the topic; and its frame was asked about
    assert sorted(alert["source"] for alert in reader.latest("alerts")) == ["cam-1", "cam-2"]
    asked = [json.loads(dict(message.headers() or [])["escalation"] or b"") for message in reader.records["escalations.alerts"]]
    assert {alert for question in asked for alert in question.get("alerts", ())} == reader.ids("alerts")
    pictures = {message.key(): message.value() for message in reader.records["alerts.evidence"]}
    for alert in reader.values("alerts"):
        number = int(alert["record"].rsplit("/", 1)[1])
        assert pictures[alert["id"].encode()] == street[number % len(street)]
        assert nanodet.look(street[number % len(street)]).detections

    # dead letters hold what came, and say what was wrong and where it lay; the count is exact but for those in work when it was killed
    letters = {int(dict(m.headers() or [])["__connect.errors.offset"]): m for m in reader.records["frames.dlq"]}
    assert [m.value() or b"" for _, m in sorted(letters.items())] == [value or b"" for value, _ in bad]
    for message in letters.values():
        headers = dict(message.headers() or [])
        assert headers["__connect.errors.topic"] == f"{leaf.prefix}frames".encode()
        assert headers["__connect.errors.exception.message"]
    assert dict(letters[min(letters)].headers() or [])["headwater.record"] == str(corrupt.id).encode()


def test_a_region_announces_what_it_affords_and_answers_what_it_can_judge(
    tools: ModuleType, site: Callable[..., Any], nanodet: Any, street: list[bytes]
) -> None:
    region = site(name="region-1", tier="region", region={"sites": ["leaf-1", "leaf-2"], "inferences_per_s": 3.0})
    bases = [f"{name}.{rest}" for name in ("down.leaf-1", "down.leaf-2") for rest in ("control", "verdicts")]
    reader = tools.Reader(region, *bases, "up.leaf-1.escalations.dlq")
    region.start("agent")
    evidence = street[0]
    question = {
        "id": "esc-1",
        "source": "cam-1",
        "site": "leaf-2",
        "reason": "uncertain",
        "records": [{"id": "cam-1/e1/7", "captured_at": "2026-01-31T12:00:00Z"}],
        "evidence": hashlib.sha256(evidence).hexdigest(),
        "content_type": "image/jpeg",
        "deadline_ms": 1000,
        "ttl_s": 60.0,
    }
    producer = Producer({"bootstrap.servers": region.kafka.bootstrap_servers})
    for value in (evidence, b"something else"):
        producer.produce(f"{region.prefix}up.leaf-1.escalations", value=value, key="cam-1", headers={"escalation": json.dumps(question)})
    assert producer.flush(LIMIT_S) == 0
    reader.until(lambda: reader.records["down.leaf-1.verdicts"], "the question is answered")
    reader.until(lambda: reader.records["up.leaf-1.escalations.dlq"], "what cannot be judged is a dead letter")
    reader.until(lambda: all(reader.records[base] for base in bases if base.endswith("control")), "each site hears its share")
    reader.close()
    (verdict,) = reader.values("down.leaf-1.verdicts")
    assert (verdict["id"], verdict["tier"], verdict["site"], verdict["rank"]) == ("cam-1/e1/7", "region", "region-1", 20)
    assert json.loads(verdict["detections"]) == json.loads(nanodet.look(evidence).detections.to_json())
    assert reader.records["down.leaf-2.verdicts"] == []
    for name in ("leaf-1", "leaf-2"):
        control = reader.values(f"down.{name}.control")[0]
        assert (control["site"], control["region"], control["inferences_per_s"]) == (name, "region-1", 1.5)


def test_who_cannot_start_says_why_in_one_line(site: Callable[..., Any]) -> None:
    nowhere = Kafka(bootstrap_servers="127.0.0.1:9")
    cases = [
        (site(create=False), "agent", "topics", NEEDS_A_PERSON),
        (site(create=False), "resolver", "topics", NEEDS_A_PERSON),
        (site(create=False, kafka=nowhere), "agent", "no Kafka broker answered at 127.0.0.1:9", 1),
        (site(create=False, kafka=nowhere), "resolver", "no Kafka broker answered at 127.0.0.1:9", 1),
    ]
    processes = [each.start(role) for each, role, _, _ in cases]
    for (each, role, expected, code), process in zip(cases, processes, strict=True):
        assert process.wait(LIMIT_S) == code, each.logs()
        lines = next(each.folder.glob("*.log")).read_text().splitlines()
        assert "metrics of leaf-1" in lines[0]
        assert len(lines) == 2, (role, lines)
        assert lines[1].startswith("headwater: ")
        assert expected in lines[1]
        if expected == "topics":
            names = {topic.name for topic in Topology(each.config).role(role if role != "agent" else "leaf").writes()}  # type: ignore[arg-type]
            assert all(name in lines[1] for name in names)
            assert "headwater topology create" in lines[1]
