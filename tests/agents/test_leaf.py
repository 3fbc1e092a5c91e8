"""The leaf's work on batches of records: what it answers, in which order, and what it does with what is stale, bad or failing."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from types import ModuleType
from typing import Any

import msgspec
import pytest

from agents.inference.detector import Detector
from agents.inference.images import UndecodableImage
from schemas.config import Engine, Evidence, Ingress, Link, Policy
from schemas.detections import Detections
from schemas.envelope import Envelope
from schemas.frames import InvalidFrame
from schemas.links import Breaker, Lanes, LaneState, LinkState
from schemas.messages import Alert, Control, Drop, Escalation, Reason, Status, Tier, Verdict
from schemas.rules import Rule
from streams.delivery import Rejected

Make = Callable[..., Any]
WATCH = Rule(name="watch", min_score=0.7, cooldown_s=0.0)


def story(items: list[Any]) -> list[tuple[int, str]]:
    """What came, in order: (index of the record, topic), `rejected` for a rejection."""
    return [
        (item.index, name)
        for item in items
        for name in (["rejected"] if isinstance(item, Rejected) else [output.topic.base for output in item.outputs] or ["nothing"])
    ]


def finished(items: list[Any]) -> Counter[int]:
    return Counter(item.index for item in items if isinstance(item, Rejected) or item.finished)


# ---- one verdict a frame


def test_every_frame_gets_one_verdict_that_says_who_saw_what(tools: ModuleType, bench: Make) -> None:
    desk = bench()
    frames = [tools.frame(source, n) for n in range(4) for source in ("cam-1", "cam-2")]
    for frame in frames[:3]:
        desk.detector.seen[frame.jpeg] = Detections([tools.person(0.9), tools.person(0.8, x=0.2)])
    (items,) = desk.run([desk.record(frame, offset=n) for n, frame in enumerate(frames)])
    verdicts = tools.values(items, "verdicts", Verdict)
    assert sorted(verdict.id for verdict in verdicts) == sorted(str(frame.id) for frame in frames)
    assert finished(items) == dict.fromkeys(range(len(frames)), 1)
    for frame in frames:
        (verdict,) = (v for v in verdicts if v.id == str(frame.id))
        seen = desk.detector.seen.get(frame.jpeg, Detections())
        assert Detections(msgspec.structs.replace(each, track=None) for each in verdict.detections) == seen
        assert verdict.seen == hashlib.sha256(seen.to_json().encode()).hexdigest()[:32]
        assert (verdict.source, verdict.captured_at) == (frame.source, frame.captured_at)
        assert (verdict.tier, verdict.site, verdict.rank, verdict.model_digest) == (Tier.LEAF, "leaf-1", 10, desk.detector.digest)
        assert verdict.status is Status.FINAL
    (output,) = (o for o in tools.outputs_of(items) if o.key == str(frames[0].id))
    head = Envelope.from_headers(output.headers)
    assert head is not None
    assert (head.id, head.source, head.sequence, head.time) == (str(frames[0].id), "cam-1", 0, frames[0].captured_at)


def test_the_real_detector_answers_real_frames(tools: ModuleType, bench: Make, nanodet: Detector, street: list[bytes]) -> None:
    desk = bench(nanodet, rules=(Rule(name="person", min_score=0.5, cooldown_s=10.0),))
    frames = [tools.frame("square", n, jpeg=jpeg) for n, jpeg in enumerate(street)]
    (items,) = desk.run([desk.record(frame) for frame in frames])
    verdicts = tools.values(items, "verdicts", Verdict)
    assert [verdict.id for verdict in verdicts] == [str(frame.id) for frame in frames]
    assert all(any(d.label == "person" for d in verdict.detections) for verdict in verdicts)
    assert {verdict.model_digest for verdict in verdicts} == {nanodet.digest}
    alerts = tools.values(items, "alerts", Alert)
    assert len(alerts) == 1
    pictures = [output for output in tools.outputs_of(items) if output.topic.base == "alerts.evidence"]
    assert [(p.key, p.value) for p in pictures] == [(alerts[0].id, next(f.jpeg for f in frames if str(f.id) == alerts[0].record))]


def test_a_foreign_record_is_served_too(tools: ModuleType, bench: Make) -> None:
    desk = bench(rules=(WATCH,))
    jpeg = tools.picture(1)
    desk.detector.seen[jpeg] = Detections([tools.person()])
    (items,) = desk.run([desk.foreign(jpeg, b"gate 3", 17), desk.foreign(tools.picture(2), None, 18)])
    first, second = sorted(tools.values(items, "verdicts", Verdict), key=lambda verdict: verdict.id)  # two sources: in any order
    assert (first.id, first.source) == ("kafka/cluster-1/topic-1/0/17", "gate%203")
    assert (second.id, second.source) == ("kafka/cluster-1/topic-1/0/18", "frames.0")
    assert first.captured_at == dt.datetime.fromtimestamp(desk.clock.ms / 1000, dt.UTC)  # the broker's time is all there is
    assert [alert.record for alert in tools.values(items, "alerts", Alert)] == [first.id]


# ---- order


def test_a_frames_outputs_leave_by_urgency(tools: ModuleType, bench: Make) -> None:
    desk = bench(rules=(WATCH, Rule(name="also", min_score=0.7, cooldown_s=0.0)))
    frame = tools.frame("cam", 0)
    desk.detector.seen[frame.jpeg] = Detections([tools.person()])
    (items,) = desk.run([desk.record(frame)])
    assert [name for _, name in story(items)] == [
        "alerts", "alerts", "verdicts", "alerts.evidence", "alerts.evidence", "escalations.alerts",
    ]  # fmt: skip
    assert [item.finished for item in items] == [False, False, False, True]


def test_an_alert_has_left_before_anything_else_of_its_frame_is_begun(tools: ModuleType, bench: Make) -> None:
    desk = bench(rules=(WATCH,))
    frame = tools.frame("cam", 0)
    desk.detector.seen[frame.jpeg] = Detections([tools.person()])
    came: list[Any] = []
    at_asking: list[list[tuple[int, str]]] = []

    must = desk.cascade.must

    def asked(now_s: float, size: float) -> None:
        at_asking.append(story(came))
        must(now_s, size)

    desk.cascade.must = asked

    async def drive() -> None:
        async for item in desk.leaf.work(desk.topic, 0, [desk.record(frame)]):
            came.append(item)

    asyncio.run(asyncio.wait_for(drive(), tools.LIMIT_S))
    assert at_asking == [[(0, "alerts")]]


def test_an_alert_waits_for_no_later_frame_and_no_other_source(tools: ModuleType, bench: Make) -> None:
    desk = bench(rules=(WATCH,), engine=Engine(workers=3))  # two looks are held up
    fast, later, slow = tools.frame("fast", 0), tools.frame("fast", 1, jpeg=tools.picture(2)), tools.frame("slow", 0, jpeg=tools.picture(3))
    desk.detector.seen[fast.jpeg] = Detections([tools.person()])
    gates = [desk.detector.hold(later.jpeg), desk.detector.hold(slow.jpeg)]

    async def drive() -> list[Any]:
        items = desk.leaf.work(desk.topic, 0, [desk.record(slow), desk.record(fast), desk.record(later)])
        early = [await asyncio.wait_for(anext(items), tools.LIMIT_S) for _ in range(3)]
        assert [name for _, name in story(early)] == ["alerts", "verdicts", "alerts.evidence"]
        assert {item.index for item in early} == {1}
        for gate in gates:
            gate.set()
        return early + await tools.collect(items)

    items = asyncio.run(asyncio.wait_for(drive(), tools.LIMIT_S))
    assert finished(items) == {0: 1, 1: 1, 2: 1}


def test_evidence_holds_up_no_later_answer(tools: ModuleType, bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoding of the first frame's evidence is stuck; the second frame of the same source is answered all the same."""
    desk = bench(rules=(WATCH,))
    frames = [tools.frame("cam", n) for n in range(2)]
    for frame in frames:
        desk.detector.seen[frame.jpeg] = Detections([tools.person()])
    gate = desk.detector.hold(b"evidence")

    def stuck(jpeg: bytes, **_: Any) -> bytes:
        assert gate.wait(tools.LIMIT_S)
        return jpeg

    monkeypatch.setattr("agents.cascade.evidence.writing.encode_frame", stuck)

    async def drive() -> None:
        items = desk.leaf.work(desk.topic, 0, [desk.record(frame) for frame in frames])
        early = [await asyncio.wait_for(anext(items), tools.LIMIT_S) for _ in range(6)]
        assert story(early) == [(n, name) for n in (0, 1) for name in ("alerts", "verdicts", "alerts.evidence")]
        gate.set()
        assert sorted(story(await tools.collect(items))) == [(0, "escalations.alerts"), (1, "escalations.alerts")]

    asyncio.run(asyncio.wait_for(drive(), tools.LIMIT_S))


def test_frames_of_a_source_keep_their_order_across_batches_in_work_at_once(tools: ModuleType, bench: Make) -> None:
    desk = bench(rules=(WATCH,))
    frames = [tools.frame("cam", n) for n in range(6)]
    for frame in frames:
        desk.detector.seen[frame.jpeg] = Detections([tools.person()])
    gate = desk.detector.hold(frames[0].jpeg)
    bad = tools.Record(in_topic="frames", data=b"no picture", at=int(desk.clock.ms), offs=99)
    batches = [[bad, *map(desk.record, frames[:2])], list(map(desk.record, frames[2:4])), list(map(desk.record, frames[4:]))]
    answered: list[str] = []

    async def deliver(batch: list[Any]) -> None:
        async for item in desk.leaf.work(desk.topic, 0, batch):
            if isinstance(item, Rejected):
                for _ in range(20):  # a dead letter takes its time
                    await asyncio.sleep(0)
            answered.extend(value.record for value in tools.values([item], "alerts", Alert))

    async def drive() -> None:
        tasks = [asyncio.ensure_future(deliver(batch)) for batch in batches]
        done = asyncio.ensure_future(asyncio.wait(tasks))
        await tools.until(lambda: sum(desk.detector.looks.values()) == 6)  # all others have been looked at
        assert answered == []
        gate.set()
        await done
        await asyncio.gather(*tasks)

    asyncio.run(asyncio.wait_for(drive(), tools.LIMIT_S))
    assert answered == [str(frame.id) for frame in frames]


def test_nothing_is_kept_of_sources_that_went(tools: ModuleType, bench: Make) -> None:
    desk = bench()
    desk.run(*([desk.record(tools.frame(f"cam-{n}", 0, jpeg=tools.picture(0)))] for n in range(20)))
    assert len(desk.leaf._turns) == 0


# ---- stale


def test_stale_frames_become_one_drop_an_epoch_and_nothing_else(tools: ModuleType, bench: Make) -> None:
    desk = bench(ingress=Ingress(max_age_ms=500))
    old = [tools.frame("cam-1", n) for n in (3, 4, 5, 8)] + [tools.frame("cam-1", 0, epoch="e2"), tools.frame("cam-2", 7)]
    fresh = [tools.frame("cam-1", 1, epoch="e2"), tools.frame("cam-2", 8)]
    records = [desk.record(frame, age_ms=501, offset=n) for n, frame in enumerate(old)]
    records += [desk.record(frame, age_ms=500, offset=10 + n) for n, frame in enumerate(fresh)]
    records += [desk.foreign(tools.picture(99), b"gate", 40 + n, age_ms=9999) for n in range(3)]
    (items,) = desk.run(records)
    drops = tools.values(items, "drops", Drop)
    assert {(d.source, d.epoch): d.ranges.pairs for d in drops} == {
        ("cam-1", "e1"): ((3, 5), (8, 8)),
        ("cam-1", "e2"): ((0, 0),),
        ("cam-2", "e1"): ((7, 7),),
        ("kafka", "cluster-1/topic-1/0"): ((40, 42),),
    }
    assert len(drops) == 4
    assert {(d.site, d.stage, d.reason) for d in drops} == {("leaf-1", "leaf", "stale")}
    assert {v.id for v in tools.values(items, "verdicts", Verdict)} == {str(frame.id) for frame in fresh}
    assert len(tools.outputs_of(items)) == 4 + 2
    assert finished(items) == dict.fromkeys(range(len(records)), 1)
    assert sum(desk.detector.looks.values()) == 2  # what is stale costs no look


def test_a_frame_that_grows_stale_while_it_waits_for_the_pool_is_dropped_too(tools: ModuleType, bench: Make) -> None:
    desk = bench(ingress=Ingress(max_age_ms=500))
    frames = [tools.frame(f"cam-{n}", 0, jpeg=tools.picture(n)) for n in range(3)]
    gates = [desk.detector.hold(frame.jpeg) for frame in frames[:2]]  # two looks at a time: the third waits

    async def drive() -> list[Any]:
        work = asyncio.ensure_future(tools.collect(desk.leaf.work(desk.topic, 0, [desk.record(frame) for frame in frames])))
        await tools.until(lambda: sum(desk.detector.looks.values()) == 2)
        desk.clock.ms += 600
        for gate in gates:
            gate.set()
        return await work

    items = asyncio.run(asyncio.wait_for(drive(), tools.LIMIT_S))
    assert {v.source for v in tools.values(items, "verdicts", Verdict)} == {"cam-0", "cam-1"}
    assert [d.source for d in tools.values(items, "drops", Drop)] == ["cam-2"]


# ---- bad records


def test_what_cannot_be_a_frame_is_rejected_last_and_the_rest_go_on(
    tools: ModuleType, bench: Make, nanodet: Detector, street: list[bytes]
) -> None:
    desk = bench(nanodet, link=None, ingress=Ingress(max_frame_bytes=200_000))
    good = [tools.frame("cam", n, jpeg=street[n]) for n in range(2)]
    corrupt = tools.frame("cam", 2, jpeg=street[2][:5000])
    misnamed = [(name, b"other/e1/0" if name == "ce_id" else value) for name, value in good[0].to_headers()]
    records = [
        tools.Record(in_topic="frames", data=b"", offs=0),
        tools.Record(in_topic="frames", data=None, offs=1),
        tools.Record(in_topic="frames", data=b"\xff\xd8\xff" + bytes(200_000), at=int(desk.clock.ms), offs=2),
        tools.Record(in_topic="frames", data=b"<html>", at=int(desk.clock.ms), offs=3),
        tools.Record(in_topic="frames", data=street[0], pairs=misnamed, at=int(desk.clock.ms), offs=4),
        desk.record(corrupt, offset=5),
        *(desk.record(frame, offset=6 + n) for n, frame in enumerate(good)),
    ]
    (items,) = desk.run(records)
    assert story(items) == [(6, "verdicts"), (7, "verdicts"), *((n, "rejected") for n in range(6))]
    errors = {item.index: item for item in items if isinstance(item, Rejected)}
    assert all(isinstance(errors[n].error, InvalidFrame) for n in range(5))
    assert isinstance(errors[5].error, UndecodableImage)
    assert errors[5].record == "cam/e1/2"
    assert [str(errors[n].error).split(":")[0] for n in range(4)] == [
        "the value is empty",
        "the value is empty",
        "the value has 200003 bytes",
        "the value starts with 3c68746d",
    ]


# ---- what is asked, and what the verdict says of it


def test_a_verdict_is_provisional_exactly_when_the_region_is_asked(tools: ModuleType, bench: Make) -> None:
    # three looks, then a reserve
    desk = bench(policy=Policy(inferences_per_s=1, burst_s=4, deadline_ms=7000), evidence=Evidence(form="frame"))
    frames = [tools.frame("cam", n) for n in range(8)]
    for frame in frames[::2] + frames[5:]:
        desk.detector.seen[frame.jpeg] = Detections([tools.person(0.4)])
    (items,) = desk.run([desk.record(frame) for frame in frames])
    asked = [o for o in tools.outputs_of(items) if o.topic.base == "escalations"]
    asked.sort(key=lambda output: dict(output.headers)["escalation"])  # they are encoded beside each other
    questions = [Escalation.from_bytes(dict(o.headers)["escalation"]) for o in asked]
    assert sorted(q.records[0].id for q in questions) == [f"cam/e1/{n}" for n in (0, 2, 4)]
    for verdict in tools.values(items, "verdicts", Verdict):
        provisional = verdict.id in {q.records[0].id for q in questions}
        assert (verdict.status, verdict.deadline_ms) == ((Status.PROVISIONAL, 7000) if provisional else (Status.FINAL, None))
    for question, output in zip(questions, asked, strict=True):
        assert (question.source, question.site, question.reason, question.deadline_ms) == ("cam", "leaf-1", Reason.UNCERTAIN, 7000)
        assert json.loads(question.records[0].detections)[0][:2] == ["person", 0.4]
        assert output.value is not None
        assert output.value.startswith(b"\xff\xd8\xff")


def test_an_alert_is_provisional_even_where_the_budget_is_spent(tools: ModuleType, bench: Make) -> None:
    desk = bench(rules=(WATCH,), policy=Policy(inferences_per_s=0.1, burst_s=1))
    frames = [tools.frame("cam", n) for n in range(3)]
    for frame in frames:
        desk.detector.seen[frame.jpeg] = Detections([tools.person()])
    (items,) = desk.run([desk.record(frame) for frame in frames])
    assert [name for _, name in story(items)].count("escalations.alerts") == 1
    verdicts = tools.values(items, "verdicts", Verdict)
    assert [verdict.status for verdict in verdicts] == [Status.PROVISIONAL] * 3  # its deadline makes the alerts `unreviewed`
    assert [alert.deadline_ms for alert in tools.values(items, "alerts", Alert)] == [10_000] * 3


@pytest.mark.parametrize("site", [{"link": None}, {"policy": Policy(mode="off")}], ids=["no region", "mode off"])
def test_who_asks_nobody_answers_finally_and_raises_alerts_all_the_same(tools: ModuleType, bench: Make, site: dict[str, Any]) -> None:
    desk = bench(rules=(WATCH,), **site)
    frames = [tools.frame("cam", n) for n in range(2)]
    desk.detector.seen = {frames[0].jpeg: Detections([tools.person()]), frames[1].jpeg: Detections([tools.person(0.4)])}
    (items,) = desk.run([desk.record(frame) for frame in frames])
    assert sorted(story(items)) == [(0, "alerts"), (0, "alerts.evidence"), (0, "verdicts"), (1, "verdicts")]
    assert {verdict.status for verdict in tools.values(items, "verdicts", Verdict)} == {Status.FINAL}


def test_bytes_are_charged_before_they_are_spent_and_corrected_after(tools: ModuleType, bench: Make) -> None:
    """A whole batch is asked about before the first evidence is encoded: all of it together must fit."""
    desk = bench(policy=Policy(budget_bytes_per_s=10_000, burst_s=5, inferences_per_s=1000))
    frames = [tools.frame(f"cam-{n}", 0, jpeg=tools.picture(n)) for n in range(8)]
    for frame in frames:
        desk.detector.seen[frame.jpeg] = Detections([tools.person(0.4)])
    expected = desk.questions.evidence_bytes
    (items,) = desk.run([desk.record(frame, offset=n) for n, frame in enumerate(frames)])
    sent = [len(o.value) for o in tools.outputs_of(items) if o.topic.base == "escalations"]
    assert len(sent) == int(0.75 * 50_000 // expected)
    assert desk.budgets.bytes.level() == pytest.approx(50_000 - sum(sent))
    assert desk.questions.evidence_bytes < expected  # these are small: more of them are affordable from now on


def test_the_region_decides_how_many_looks_it_affords(tools: ModuleType, bench: Make) -> None:
    desk = bench(policy=Policy(inferences_per_s=2, burst_s=10))
    assert desk.budgets.inferences.capacity == 20
    desk.leaf.heed(Control(site="leaf-1", region="region-1", inferences_per_s=0.5, input_side=512))
    assert desk.budgets.inferences.level() == 5
    desk.leaf.heed(Control(site="leaf-1", region="region-1", inferences_per_s=0, input_side=512))
    frame = tools.frame("cam", 0)
    desk.detector.seen[frame.jpeg] = Detections([tools.person(0.4)])
    (items,) = desk.run([desk.record(frame)])
    assert [verdict.status for verdict in tools.values(items, "verdicts", Verdict)] == [Status.FINAL]


def test_evidence_may_cost_what_the_links_budget_leaves(tools: ModuleType, bench: Make) -> None:
    """All lanes count: verdicts and alerts go first, and what is left is divided among the site's workers."""
    desk = bench(link=Link(region_name="region-1", budget_bytes_per_s=50_000), policy=Policy(budget_bytes_per_s=64_000))
    assert desk.budgets.bytes.rate == 25_000
    lanes = Lanes((LaneState(topic="escalations", direction="up", drain_s=1.0),))
    state = LinkState(
        site="leaf-1",
        region="region-1",
        breaker=Breaker.CLOSED,
        since=tools.NOON,
        writer="w",
        generation=1,
        lanes=lanes,
        budget_bytes_per_s=50_000,
        wire_bytes_per_s=50_000,
        evidence_bytes_per_s=20_000,
    )
    desk.questions.hear_link(state)
    assert desk.budgets.bytes.rate == pytest.approx(20_000)
    assert desk.reach.away_s() is None
    desk.questions.share(0.5)
    assert desk.budgets.bytes.rate == pytest.approx(10_000)
    desk.questions.hear_link(msgspec.structs.replace(state, budget_bytes_per_s=0))
    assert desk.budgets.bytes.rate == 32_000, "without a budget of the link the policy's holds"


# ---- failures


async def attempt(tools: ModuleType, desk: Any, records: list[Any]) -> tuple[list[Any], Exception | None]:
    """One pass as delivery makes it: what came, and what was raised at the end."""
    items: list[Any] = []
    try:
        async for item in desk.leaf.work(desk.topic, 0, records):
            items.append(item)
    except Exception as error:  # noqa: BLE001 - what was raised is the answer
        return items, error
    return items, None


def test_a_record_that_fails_is_the_only_one_left_over(tools: ModuleType, bench: Make) -> None:
    desk = bench(rules=(WATCH,))
    frames = [tools.frame("cam", n) for n in range(5)] + [tools.frame("other", 0, jpeg=tools.picture(77))]
    for frame in frames:
        desk.detector.seen[frame.jpeg] = Detections([tools.person()])
    desk.detector.faults[frames[2].jpeg] = [RuntimeError("a broken layer")]
    records = [desk.record(frame, offset=n) for n, frame in enumerate(frames)]
    items, error = asyncio.run(attempt(tools, desk, records))
    assert str(error) == "a broken layer"
    assert finished(items) == {n: 1 for n in range(6) if n != 2}
    assert [a.record for a in tools.values(items, "alerts", Alert) if a.source == "cam"] == [f"cam/e1/{n}" for n in (0, 1, 3, 4)]
    again, error = asyncio.run(attempt(tools, desk, [records[2]]))
    assert error is None
    assert finished(again) == {0: 1}


def test_what_fails_after_its_alert_raises_the_same_alert_again(tools: ModuleType, bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = bench(rules=(Rule(name="watch", min_score=0.7, cooldown_s=60.0),))
    frames = [tools.frame("cam", n) for n in range(2)]
    for frame in frames:
        desk.detector.seen[frame.jpeg] = Detections([tools.person()])

    def broken(*_: Any, **__: Any) -> bytes:
        raise OSError("no memory")

    before = desk.budgets.bytes.level(), desk.budgets.inferences.level()
    with monkeypatch.context() as patch:
        patch.setattr("agents.cascade.evidence.writing.encode_frame", broken)
        items, error = asyncio.run(attempt(tools, desk, [desk.record(frame) for frame in frames]))
    assert isinstance(error, OSError)
    assert finished(items) == {1: 1}
    assert (desk.budgets.bytes.level(), desk.budgets.inferences.level()) == before  # nothing was sent
    again, error = asyncio.run(attempt(tools, desk, [desk.record(frames[0])]))
    assert error is None
    assert tools.values(again, "alerts", Alert) == tools.values(items, "alerts", Alert)
    assert [name for _, name in story(again)] == ["alerts", "verdicts", "alerts.evidence", "escalations.alerts"]


def test_a_batch_that_is_cancelled_leaves_nothing_behind(tools: ModuleType, bench: Make) -> None:
    desk = bench()
    frames = [tools.frame(f"cam-{n % 2}", n) for n in range(6)]
    gates = [desk.detector.hold(frame.jpeg) for frame in frames[:2]]  # both workers are busy, the others wait in the pool

    async def drive() -> None:
        others = asyncio.all_tasks()
        work = asyncio.ensure_future(tools.collect(desk.leaf.work(desk.topic, 0, [desk.record(frame) for frame in frames])))
        await tools.until(lambda: sum(desk.detector.looks.values()) == 2)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert asyncio.all_tasks() == others
        assert len(desk.leaf._turns) == 0
        for gate in gates:
            gate.set()

    asyncio.run(asyncio.wait_for(drive(), tools.LIMIT_S))
    desk.leaf.close()
    assert sum(desk.detector.looks.values()) == 2  # what waited was never begun


def test_a_batch_that_nobody_reads_to_its_end_leaves_nothing_behind(
    tools: ModuleType, bench: Make, caplog: pytest.LogCaptureFixture
) -> None:
    desk = bench()
    frames = [tools.frame("held", 0), tools.frame("held", 1), tools.frame("free", 0, jpeg=tools.picture(9))]
    gate = desk.detector.hold(frames[0].jpeg)
    desk.detector.faults[frames[1].jpeg] = [RuntimeError("nobody waits for this any more")]

    async def drive() -> None:
        others = asyncio.all_tasks()
        async with aclosing(desk.leaf.work(desk.topic, 0, [desk.record(frame) for frame in frames])) as items:
            assert (await anext(items)).index == 2
            await asyncio.wrap_future(desk.sight._pool.submit(lambda _: None))  # the free worker has come past the look that fails
        assert asyncio.all_tasks() == others
        assert len(desk.leaf._turns) == 0
        gate.set()
        gc.collect()

    with caplog.at_level(logging.ERROR):
        asyncio.run(asyncio.wait_for(drive(), tools.LIMIT_S))
        gc.collect()
    assert caplog.messages == []


def test_after_a_restart_the_same_event_raises_no_second_alert(tools: ModuleType, bench: Make) -> None:
    rules = (Rule(name="watch", min_score=0.7, cooldown_s=60.0),)
    frames = [tools.frame("cam", n) for n in range(6)]

    def leaf() -> Any:
        desk = bench(rules=rules)
        desk.detector.seen = {frame.jpeg: Detections([tools.person()]) for frame in frames}
        return desk

    first = leaf()
    (items,) = first.run([first.record(frame) for frame in frames[:4]])
    (alert,) = tools.values(items, "alerts", Alert)
    assert alert.record == "cam/e1/0"
    for begin, expected in ((2, []), (0, [alert])):  # read again after the alert, or with its own frame
        second = leaf()
        second.leaf.recall([alert])
        (items,) = second.run([second.record(frame) for frame in frames[begin:]])
        assert tools.values(items, "alerts", Alert) == expected
