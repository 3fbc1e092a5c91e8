"""The region's work: it judges evidence for the site that the topic names, and believes nothing of what a payload claims about itself."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import msgspec
import pytest

from agents.cascade.evidence import encode_frame, escalate
from agents.inference.detector import Detector
from agents.inference.images import UndecodableImage
from agents.region import InvalidEvidence, Region
from schemas.config import Region as RegionConfig
from schemas.config import SiteConfig
from schemas.detections import Detections
from schemas.envelope import InvalidEnvelope
from schemas.messages import Alert, Asked, Control, Escalation, Reason, Status, Tier, Verdict
from schemas.records import InvalidRecord
from schemas.rules import Rule
from streams import outputs
from streams.delivery import Rejected
from streams.topology import Role, Topology

SITES = ("leaf-1", "leaf-2", "leaf-3")


class RegionBench:
    """A region, driven by hand, and what leaves would send to it."""

    def __init__(self, tools: ModuleType, detector: Any = None, **region: Any) -> None:
        self.tools = tools
        self.detector = detector or tools.ScriptedDetector()
        rules = region.pop("rules", ())
        self.config = SiteConfig(name="region-1", tier="region", region=RegionConfig(sites=SITES, **region), rules=rules)
        self.topology = Topology(self.config)
        self.role = self.topology.role(Role.REGION)
        self.clock = tools.Clock()
        self.region = Region(self.config, self.role, self.detector, self.clock)

    def question(self, evidence: bytes, frame: Any = None, site: str = "leaf-1", **changes: Any) -> Escalation:
        frame = frame or self.tools.frame("cam", 3)
        verdict = Verdict(
            id=str(frame.id),
            source=frame.source,
            captured_at=frame.captured_at,
            status=Status.FINAL,
            detections=Detections([self.tools.person(0.4)]),
            confidence=0.2,
            tier=Tier.LEAF,
            site=site,
            rank=10,
            generation=0,
            model="m",
            model_digest="d" * 64,
        )
        asked = escalate(frame, evidence, verdict, reason=Reason.UNCERTAIN, deadline_ms=5000, ttl_s=60.0)
        return msgspec.structs.replace(asked, **changes)

    def record(self, evidence: bytes | None, asked: Escalation | None, *, site: str = "leaf-1", trace: str | None = None) -> Any:
        """An escalation as the link brings it to the site's topic."""
        topic = self.role.read("up.escalations", site)
        pairs: Any = None
        if asked is not None:
            pairs = list(outputs.escalation(topic, asked, evidence or b"", trace).headers)
        return self.tools.Record(in_topic=topic.name, data=evidence, pairs=pairs, name=b"cam", at=1_000_000)

    def run(self, records: list[Any], site: str = "leaf-1") -> tuple[list[Any], Exception | None]:
        async def drive() -> tuple[list[Any], Exception | None]:
            items: list[Any] = []
            try:
                async for item in self.region.work(self.role.read("up.escalations", site), 0, records):
                    items.append(item)
            except Exception as error:  # noqa: BLE001 - what was raised is the answer
                return items, error
            return items, None

        return asyncio.run(asyncio.wait_for(drive(), self.tools.LIMIT_S))


Make = Callable[..., RegionBench]


@pytest.fixture
def bench(tools: ModuleType) -> Iterator[Make]:
    made: list[RegionBench] = []

    def make(detector: Any = None, **region: Any) -> RegionBench:
        made.append(RegionBench(tools, detector, **region))
        return made[-1]

    yield make
    for each in made:
        for gate in getattr(each.detector, "gates", {}).values():
            gate.set()
        each.region.close()


# ---- what it answers


def test_the_answer_goes_to_the_site_of_the_topic_whatever_the_payload_says(tools: ModuleType, bench: Make) -> None:
    desk = bench()
    evidence = tools.picture(1)
    seen = desk.detector.seen[evidence] = Detections([tools.person(0.8)])
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    asked = desk.question(evidence, site="leaf-2")  # a site that speaks as another
    items, error = desk.run([desk.record(evidence, asked, site="leaf-1", trace=trace)], site="leaf-1")
    assert error is None
    (output,) = tools.outputs_of(items)
    assert output.topic.name == "down.leaf-1.verdicts"
    verdict = Verdict.from_bytes(output.value)
    assert (verdict.id, verdict.source, verdict.captured_at) == ("cam/e1/3", "cam", tools.frame("cam", 3).captured_at)
    assert (verdict.status, verdict.tier, verdict.site, verdict.rank) == (Status.FINAL, Tier.REGION, "region-1", 20)
    assert (verdict.detections, verdict.evidence, verdict.model_digest) == (seen, asked.evidence, desk.detector.digest)
    assert (output.key, output.source) == ("cam/e1/3", "cam")
    assert dict(output.headers)["ce_traceparent"] == trace.encode()


def test_what_the_leaf_did_not_see_raises_an_alert_at_the_region_behind_its_verdict(tools: ModuleType, bench: Make) -> None:
    desk = bench(rules=(Rule(name="r", min_score=0.5),))
    evidence = tools.picture(1)
    desk.detector.seen[evidence] = Detections([tools.person(0.8)])
    record = desk.record(evidence, desk.question(evidence, site="leaf-2"), site="leaf-1")  # the leaf saw a person with a score of 0.4
    desk.clock.ms = record.at + 250.0
    waited = msgspec.structs.replace(record, pairs=[*(record.pairs or []), ("ce_appendedms", b"%d" % (record.at - 60_000))])
    items, error = desk.run([waited], site="leaf-1")
    assert error is None
    first, second = tools.outputs_of(items)
    assert (first.topic.name, second.topic.name) == ("down.leaf-1.verdicts", "alerts")
    alert = Alert.from_bytes(second.value)
    assert (alert.record, alert.site, alert.raised_by, alert.state) == ("cam/e1/3", "leaf-1", Tier.REGION, "raised")
    assert (alert.score, alert.model_digest, alert.late_by_s) == (0.8, desk.detector.digest, 60.25)
    assert second.partition == first.partition

    low = bench(rules=(Rule(name="r", min_score=0.3),))  # by this rule the leaf has seen it too
    low.detector.seen[evidence] = Detections([tools.person(0.8)])
    items, _ = low.run([low.record(evidence, low.question(evidence))])
    assert [output.topic.base for output in tools.outputs_of(items)] == ["down.verdicts"]


def test_a_verdict_follows_from_the_bytes_alone(tools: ModuleType, bench: Make, nanodet: Detector, street: list[bytes]) -> None:
    desk = bench(nanodet)
    evidence = encode_frame(street[0], side=416, quality=60)
    expected = nanodet.look(evidence).detections
    assert expected
    others = [encode_frame(jpeg, side=416, quality=60) for jpeg in street[1:3]]
    batch = [desk.record(each, desk.question(each)) for each in (evidence, *others, evidence)]
    values = []
    for records in (batch, batch[:1], list(reversed(batch))):
        items, error = desk.run(records)
        assert error is None
        values += [output.value for output in tools.outputs_of(items) if Verdict.from_bytes(output.value).detections == expected]
    assert len(values) == 5
    assert len(set(values)) == 1


def test_one_verdict_for_each_record_that_is_asked_about(tools: ModuleType, bench: Make) -> None:
    desk = bench()
    evidence = tools.picture(1)
    records = tuple(Asked(id=f"cam/e1/{n}", captured_at=tools.NOON + dt.timedelta(seconds=n)) for n in (3, 4, 9))
    items, _ = desk.run([desk.record(evidence, desk.question(evidence, records=records))])
    verdicts = tools.values(items, "down.verdicts", Verdict)
    assert [(v.id, v.captured_at) for v in verdicts] == [(each.id, each.captured_at) for each in records]
    assert len(items) == 1
    assert desk.detector.looks == {evidence: 1}


def test_it_answers_foreign_records(tools: ModuleType, bench: Make) -> None:
    desk = bench()
    evidence = tools.picture(1)
    asked = desk.question(evidence, source="gate%203", records=(Asked(id="kafka/c/t/0/17", captured_at=tools.NOON),))
    items, error = desk.run([desk.record(evidence, asked)])
    assert error is None
    (verdict,) = tools.values(items, "down.verdicts", Verdict)
    assert (verdict.id, verdict.source) == ("kafka/c/t/0/17", "gate%203")


# ---- what it refuses


def test_what_cannot_be_judged_is_rejected_and_the_rest_go_on(
    tools: ModuleType, bench: Make, nanodet: Detector, street: list[bytes]
) -> None:
    desk = bench(nanodet)
    good, cut = street[0], street[1][:5000]
    asked = desk.question(good)
    of_another = [(n, v.replace(b"cam/e1/3", b"dog/e1/3") if n == "escalation" else v) for n, v in desk.record(good, asked).pairs]
    records = [
        desk.record(b"", asked),
        desk.record(None, asked),
        desk.record(street[1], asked),  # not what its digest says
        desk.record(good, None),
        desk.record(cut, desk.question(cut)),
        msgspec.structs.replace(desk.record(good, asked), pairs=[p for p in desk.record(good, asked).pairs if p[0] != "escalation"]),
        msgspec.structs.replace(desk.record(good, asked), pairs=of_another),
        msgspec.structs.replace(desk.record(good, asked), pairs=[("escalation", b"x" * 70_000)]),
        msgspec.structs.replace(desk.record(good, asked), pairs=[*desk.record(good, asked).pairs, ("ce_type", b"\xff")]),
        desk.record(good, asked),
    ]
    items, error = desk.run(records)
    assert error is None
    rejected = {item.index: item.error for item in items if isinstance(item, Rejected)}
    assert {n: type(error) for n, error in rejected.items()} == {
        0: InvalidEvidence,
        1: InvalidEvidence,
        2: InvalidEvidence,
        3: InvalidRecord,
        4: UndecodableImage,
        5: InvalidRecord,
        6: InvalidRecord,
        7: InvalidEnvelope,
        8: InvalidEnvelope,
    }
    assert [item.index for item in items if not isinstance(item, Rejected)] == [9]
    assert "is empty" in str(rejected[0])
    assert asked.evidence[:16] in str(rejected[2])


def test_a_question_that_comes_again_is_not_judged_again_but_what_could_not_be_written_is(tools: ModuleType, bench: Make) -> None:
    """A link that is not certain sends its evidence twice: another record, the same question."""
    desk = bench()
    evidence = tools.picture(1)
    asked = desk.question(evidence)
    first = desk.record(evidence, asked)
    again = msgspec.structs.replace(first, offs=first.offs + 1)
    assert [len(item.outputs) for item in desk.run([first])[0]] == [1]
    (item,), error = desk.run([again])
    assert error is None
    assert (item.finished, item.outputs) == (True, ())
    assert [len(item.outputs) for item in desk.run([first])[0]] == [1]  # delivery tries it again
    other = msgspec.structs.replace(desk.record(evidence, asked, site="leaf-2"), offs=99)
    assert [len(item.outputs) for item in desk.run([other], site="leaf-2")[0]] == [1], "another site is owed an answer of its own"


def test_a_trace_that_is_none_is_ignored(tools: ModuleType, bench: Make) -> None:
    """A site that sends nonsense there must not stop the region."""
    desk = bench()
    evidence = tools.picture(1)
    record = desk.record(evidence, desk.question(evidence))
    items, error = desk.run([msgspec.structs.replace(record, pairs=[*record.pairs, ("ce_traceparent", b"nonsense")])])
    assert error is None
    (output,) = tools.outputs_of(items)
    assert "ce_traceparent" not in dict(output.headers)


def test_a_look_that_fails_leaves_only_its_own_record_over(tools: ModuleType, bench: Make) -> None:
    desk = bench()
    pictures = [tools.picture(n) for n in range(4)]
    desk.detector.faults[pictures[1]] = [RuntimeError("a broken layer")]
    records = [desk.record(each, desk.question(each)) for each in pictures]
    items, error = desk.run(records)
    assert str(error) == "a broken layer"
    assert sorted(item.index for item in items) == [0, 2, 3]
    items, error = desk.run([records[1]])
    assert (len(items), error) == (1, None)


def test_each_is_answered_as_soon_as_it_is_judged(tools: ModuleType, bench: Make) -> None:
    desk = bench()
    slow, fast = tools.picture(0), tools.picture(1)
    gate = desk.detector.hold(slow)

    async def drive() -> None:
        topic = desk.role.read("up.escalations", "leaf-1")
        items = desk.region.work(topic, 0, [desk.record(each, desk.question(each)) for each in (slow, fast)])
        assert (await anext(items)).index == 1
        gate.set()
        assert [item.index for item in await tools.collect(items)] == [0]

    asyncio.run(asyncio.wait_for(drive(), tools.LIMIT_S))


# ---- what it announces


def test_every_site_is_told_its_share(tools: ModuleType, bench: Make) -> None:
    desk = bench(inferences_per_s=4.5)
    found = desk.region.announcements(tools.NOON)
    assert [output.topic.name for output in found] == [f"down.{site}.control" for site in SITES]
    controls = [Control.from_bytes(output.value) for output in found]
    assert [control.site for control in controls] == list(SITES)
    assert sum(control.inferences_per_s for control in controls) == pytest.approx(4.5)
    assert {(control.region, control.inferences_per_s, control.input_side) for control in controls} == {("region-1", 1.5, 224)}
