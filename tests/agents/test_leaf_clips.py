"""Clips from end to end: a leaf's frames go into them, the region answers each, and no offset counts before its clip is written."""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest

from agents.cascade.evidence.clip import NoPyAV
from agents.inference.detector import Detector, Look, Stages
from agents.inference.images import UndecodableImage, decode
from agents.region import Region
from schemas.config import Evidence, Policy, SiteConfig
from schemas.config import Region as RegionConfig
from schemas.detections import Detection, Detections
from schemas.identity import content_digest
from schemas.messages import CLIP, Alert, Asked, Control, Escalation, Status, Verdict
from schemas.rules import Rule
from streams import outputs
from streams.delivery import Emitted, Rejected
from streams.topology import Role, Topology

Make = Callable[..., Any]
CHEAP = Policy(inferences_per_s=1000, burst_s=10, budget_bytes_per_s=1 << 20)


class Reader:
    """A detector that reads the number of `picture` off the pixels: one detection for each bit that is set."""

    name, digest, sizes = "reader", "e" * 64, (64,)

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.fails: list[int] = []

    def look(self, jpeg: bytes) -> Look:
        return self.look_at(decode(jpeg, 16).pixels)

    def look_at(self, pixels: Any) -> Look:
        width = pixels.shape[1]
        columns = pixels[:, :, 1].mean(axis=0)
        bits = [bit for bit in range(16) if columns[int((bit + 0.5) * width / 16)] > 128]
        self.numbers.append(sum(1 << bit for bit in bits))
        if self.numbers[-1] in self.fails:
            self.fails.remove(self.numbers[-1])
            raise RuntimeError("a broken layer")
        found = Detections([Detection(f"bit {bit}", 0.9, bit / 16, 0.0, (bit + 1) / 16, 1.0) for bit in bits])
        return Look(found, pixels.shape[1], pixels.shape[0], Stages(0.0, 0.0, 0.0, 0.0))


class There:
    """A region that gets what a leaf has written."""

    def __init__(self, tools: ModuleType, detector: Any = None, **fields: Any) -> None:
        self.tools, self.detector = tools, detector or Reader()
        config = SiteConfig(name="region-1", tier="region", region=RegionConfig(sites=("leaf-1",)), **fields)
        self.role = Topology(config).role(Role.REGION)
        self.region = Region(config, self.role, self.detector)
        self._offset = 0

    def run(self, escalations: list[Any]) -> tuple[list[Any], Exception | None]:
        """What comes of some outputs of a leaf."""
        topic = self.role.read("up.escalations", "leaf-1")
        records = []
        for each in escalations:
            self._offset += 1
            records.append(self.tools.Record(in_topic=topic.name, data=each.value, pairs=list(each.headers), at=1, offs=self._offset))

        async def drive() -> tuple[list[Any], Exception | None]:
            items: list[Any] = []
            try:
                async for item in self.region.work(topic, 0, records):
                    items.append(item)
            except Exception as error:  # noqa: BLE001 - what was raised is the answer
                return items, error
            return items, None

        return asyncio.run(asyncio.wait_for(drive(), self.tools.LIMIT_S))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not be taken for a silent source."""
    monkeypatch.setattr("agents.cascade.evidence.clips.SILENT_S", 60.0)


@pytest.fixture
def there(tools: ModuleType) -> Iterator[Make]:
    made: list[There] = []

    def make(detector: Any = None, **fields: Any) -> There:
        made.append(There(tools, detector, **fields))
        return made[-1]

    yield make
    for each in made:
        each.region.close()


def site(bench: Make, **more: Any) -> Any:
    evidence = more.pop("evidence", Evidence(form="clip", clip_frames=4, clip_s=10.0))
    return bench(evidence=evidence, **{"policy": CHEAP, **more})


def unsure(tools: ModuleType, desk: Any, frames: list[Any], score: float = 0.4) -> list[Any]:
    for frame in frames:
        desk.detector.seen[frame.jpeg] = Detections([tools.person(score)])
    return frames


def escalations(items: list[Any], tools: ModuleType) -> list[Any]:
    return [output for output in tools.outputs_of(items) if output.topic.base.startswith("escalations")]


def asked(output: Any) -> Escalation:
    return Escalation.from_bytes(dict(output.headers)["escalation"])


async def worked(desk: Any, batches: list[list[Any]], done: list[int], items: list[Any]) -> None:
    """Batches in work beside each other, as delivery has them; `done` tells which have ended, in their order."""

    async def one(number: int, batch: list[Any]) -> None:
        async for item in desk.leaf.work(desk.topic, 0, batch):
            items.append(item)
        done.append(number)

    await asyncio.gather(*(one(number, batch) for number, batch in enumerate(batches)))


# ---- the whole way


def test_each_frame_of_a_clip_gets_the_answer_to_it(tools: ModuleType, bench: Make, there: Make) -> None:
    desk = site(bench)
    frames = unsure(tools, desk, [tools.frame("cam", n, jpeg=tools.picture(100 + 7 * n)) for n in range(8)])
    (items,) = desk.run([desk.record(frame) for frame in frames])
    written = escalations(items, tools)
    assert len(written) == 2
    for output, part in zip(written, (frames[:4], frames[4:]), strict=True):
        question = asked(output)
        assert (question.content_type, question.evidence) == (CLIP, content_digest(output.value))
        assert dict(output.headers)["content-type"] == CLIP.encode()
        assert [each.id for each in question.records] == [str(frame.id) for frame in part]
        assert [each.captured_at for each in question.records] == [frame.captured_at for frame in part]
        assert all('"person",0.4' in each.detections for each in question.records), "what the leaf thought of each"
    assert {v.status for v in tools.values(items, "verdicts", Verdict)} == {Status.PROVISIONAL}
    region = there()
    answers, error = region.run(written)
    assert error is None
    verdicts = tools.values(answers, "down.verdicts", Verdict)
    read = {v.id: sum(1 << int(each.label.split()[1]) for each in v.detections) for v in verdicts}
    assert read == {str(frame.id): 100 + 7 * n for n, frame in enumerate(frames)}
    assert len(verdicts) == 8
    assert {v.evidence for v in verdicts} == {content_digest(output.value) for output in written}
    assert [item.finished for item in answers if item.index == 0] == [False, False, False, True], "each as soon as it is judged"
    again, _ = there().run(written[:1])
    assert [o.value for o in tools.outputs_of(again)] == [o.value for item in answers if item.index == 0 for o in item.outputs]


def test_the_real_region_says_the_same_of_a_frame_in_a_clip_however_often(
    tools: ModuleType, bench: Make, there: Make, nanodet: Detector, street: list[bytes]
) -> None:
    desk = site(bench, evidence=Evidence(form="clip", clip_frames=3, crf=24))
    frames = unsure(tools, desk, [tools.frame("square", n, jpeg=jpeg) for n, jpeg in enumerate(street[:3])])
    (items,) = desk.run([desk.record(frame) for frame in frames])
    found = [tools.values(there(nanodet).run(escalations(items, tools))[0], "down.verdicts", Verdict) for _ in range(2)]
    assert found[0] == found[1]
    for verdict, jpeg in zip(found[0], street, strict=False):
        plain = [each for each in nanodet.look(jpeg).detections if each.score > 0.6 and each.label == "person"]
        assert plain
        assert all(max((each.iou(other) for other in verdict.detections), default=0) > 0.6 for each in plain)


# ---- delivery


def test_only_the_record_of_a_clips_first_frame_stays_open(tools: ModuleType, bench: Make) -> None:
    desk = site(bench)
    frames = unsure(tools, desk, [tools.frame("cam", n) for n in range(4)])
    batches = [[desk.record(frame)] for frame in frames]

    async def drive() -> None:
        done: list[int] = []
        items: list[Any] = []
        work = asyncio.ensure_future(worked(desk, batches[:3], done, items))
        await tools.until(lambda: done == [1, 2])
        assert escalations(items, tools) == []
        assert len(tools.values(items, "verdicts", Verdict)) == 3, "no answer waits for a clip"
        await worked(desk, batches[3:], [], [])
        await work
        assert done == [1, 2, 0], "so nothing of the clip can be committed before it is written"
        assert len(escalations(items, tools)) == 1
        assert len(asked(escalations(items, tools)[0]).records) == 4

    asyncio.run(asyncio.wait_for(drive(), tools.LIMIT_S))


def test_a_silent_source_ends_its_clip_by_time(tools: ModuleType, bench: Make) -> None:
    desk = site(bench, evidence=Evidence(form="clip", clip_frames=60, clip_s=0.1))
    frames = unsure(tools, desk, [tools.frame("cam", n) for n in range(3)])
    (items,) = desk.run([desk.record(frame) for frame in frames])
    (output,) = escalations(items, tools)
    assert [each.id for each in asked(output).records] == [str(frame.id) for frame in frames]
    assert sorted(item.index for item in items if item.finished) == [0, 1, 2]


def test_who_dies_with_an_open_clip_does_its_frames_again(tools: ModuleType, bench: Make) -> None:
    """What is committed is a prefix of batches that are done; the rest is read again, by whoever comes."""
    first = site(bench)
    frames = unsure(tools, first, [tools.frame("cam", n) for n in range(8)])
    batches = [[first.record(frame)] for frame in frames]
    written: list[str] = []
    committed = 0

    async def until_it_dies() -> None:
        nonlocal committed
        done: list[int] = []
        items: list[Any] = []
        work = asyncio.ensure_future(worked(first, batches[:7], done, items))
        await tools.until(lambda: len(done) == 6)
        written.extend(each.id for output in escalations(items, tools) for each in asked(output).records)
        while committed in done:
            committed += 1
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    asyncio.run(asyncio.wait_for(until_it_dies(), tools.LIMIT_S))
    assert written == [str(frame.id) for frame in frames[:4]]
    assert committed == 4
    second = site(bench)
    unsure(tools, second, frames)
    (items,) = second.run([second.record(frame) for frame in frames[committed:]])
    written += [each.id for output in escalations(items, tools) for each in asked(output).records]
    assert written == [str(frame.id) for frame in frames]


@pytest.mark.parametrize("form", ["clip", "auto"])
def test_a_batch_that_fails_and_is_tried_again_takes_its_clip_up_again(tools: ModuleType, bench: Make, form: Any) -> None:
    desk = site(bench)
    frames = unsure(tools, desk, [tools.frame("cam", n) for n in range(4)])
    other = tools.frame("other", 0, jpeg=tools.picture(99))
    desk.detector.faults[other.jpeg] = [RuntimeError("a broken layer")]
    held = [desk.record(frames[0]), desk.record(other, offset=50)]
    before = desk.budgets.inferences.level()

    async def drive() -> None:
        task: asyncio.Task[None] | None = None
        items: list[Any] = []

        async def attempt() -> None:
            async for item in desk.leaf.work(desk.topic, 0, held):
                items.append(item)

        task = asyncio.ensure_future(attempt())
        await tools.until(lambda: any(clip.items for clip in desk.questions.evidence.clips._open.values()))
        task.cancel()  # as delivery closes the work of a pass that failed
        await asyncio.gather(task, return_exceptions=True)
        assert escalations(items, tools) == []
        desk.detector.faults.clear()
        desk.questions.evidence.forms.settings = Evidence(form=form, clip_frames=4, clip_s=10.0)  # auto would send the first one by itself
        done: list[int] = []
        await worked(desk, [held, *([desk.record(frame)] for frame in frames[1:])], done, items)
        assert sorted(done) == [0, 1, 2, 3]
        questions = [asked(output) for output in escalations(items, tools)]
        assert sorted(each.id for question in questions for each in question.records) == [str(frame.id) for frame in frames]
        (clip,) = (question for question in questions if question.content_type == CLIP)
        assert clip.records[0].id == str(frames[0].id)

    asyncio.run(asyncio.wait_for(drive(), tools.LIMIT_S))
    assert before - desk.budgets.inferences.level() == 4, "the first was asked about twice, and paid for once"


def test_a_frame_that_is_no_picture_is_rejected_and_the_clip_goes_on(tools: ModuleType, bench: Make) -> None:
    desk = site(bench)
    frames = [tools.frame("cam", n) for n in range(4)]
    frames[1] = tools.frame("cam", 1, jpeg=frames[0].jpeg[:200])
    unsure(tools, desk, frames)
    before = desk.budgets.bytes.level(), desk.budgets.inferences.level()
    (items,) = desk.run([desk.record(frame) for frame in frames])
    (rejected,) = (item for item in items if isinstance(item, Rejected))
    assert (rejected.index, type(rejected.error)) == (1, UndecodableImage)
    (output,) = escalations(items, tools)
    assert [each.id for each in asked(output).records] == ["cam/e1/0", "cam/e1/2", "cam/e1/3"]
    assert before[0] - desk.budgets.bytes.level() == pytest.approx(len(output.value))
    assert before[1] - desk.budgets.inferences.level() == 3


# ---- what is sent how


def test_what_is_charged_is_what_is_sent(tools: ModuleType, bench: Make) -> None:
    desk = site(bench)
    frames = unsure(tools, desk, [tools.frame("cam", n, jpeg=tools.picture(n * 37)) for n in range(12)])
    before = desk.budgets.bytes.level()
    (items,) = desk.run([desk.record(frame) for frame in frames])
    assert before - desk.budgets.bytes.level() == pytest.approx(sum(len(output.value) for output in escalations(items, tools)))


def test_an_alerts_frame_waits_for_no_clip(tools: ModuleType, bench: Make) -> None:
    desk = site(bench, rules=(Rule(name="watch", min_score=0.7, cooldown_s=0.0),), evidence=Evidence(form="clip", clip_frames=2))
    frames = [tools.frame("cam", n) for n in range(3)]
    unsure(tools, desk, frames)
    unsure(tools, desk, frames[1:2], 0.9)
    (items,) = desk.run([desk.record(frame) for frame in frames])
    (alert,) = tools.values(items, "alerts", Alert)
    assert alert.record == str(frames[1].id)
    by_topic = {output.topic.base: asked(output) for output in escalations(items, tools)}
    assert [each.id for each in by_topic["escalations.alerts"].records] == [str(frames[1].id)]
    assert by_topic["escalations.alerts"].content_type == "image/jpeg"
    assert [each.id for each in by_topic["escalations"].records] == [str(frames[0].id), str(frames[2].id)]


def test_clips_are_of_one_source_and_epoch(tools: ModuleType, bench: Make) -> None:
    desk = site(bench, evidence=Evidence(form="clip", clip_frames=2))
    frames = [tools.frame(source, n, epoch=epoch) for n in range(2) for source in ("a", "b") for epoch in ("e1", "e2")]
    unsure(tools, desk, frames)
    (items,) = desk.run([desk.record(frame, offset=n) for n, frame in enumerate(frames)])
    found = sorted([each.id for each in asked(output).records] for output in escalations(items, tools))
    assert found == [[f"{source}/{epoch}/{n}" for n in range(2)] for source in ("a", "b") for epoch in ("e1", "e2")]


def test_the_regions_input_size_is_used_unless_the_file_sets_one(tools: ModuleType, bench: Make) -> None:
    control = Control(site="leaf-1", region="region-1", inferences_per_s=1000, input_side=96)
    for configured, expected in ((0, 96), (48, 48)):
        desk = bench(evidence=Evidence(form="frame", side=configured), policy=CHEAP)
        frames = unsure(tools, desk, [tools.frame("cam", n, jpeg=tools.picture(n, 400, 300)) for n in range(2)])
        sides = []
        for frame in frames:
            (items,) = desk.run([desk.record(frame)])
            (output,) = escalations(items, tools)
            sides.append(cv2.imdecode(np.frombuffer(output.value, np.uint8), cv2.IMREAD_COLOR).shape[:2])
            desk.leaf.heed(control)
        assert sides == [(300, 400) if not configured else (48, 48), (expected, expected)]


def test_few_looks_go_at_once_and_many_in_clips_by_themselves(tools: ModuleType, bench: Make) -> None:
    desk = bench(policy=CHEAP, evidence=Evidence(clip_frames=8, clip_s=0.1))
    frames = unsure(tools, desk, [tools.frame("cam", n) for n in range(30)])
    seconds = 0.0
    desk.questions.evidence._clock = lambda: seconds
    for frame in frames[:4]:
        (items,) = desk.run([desk.record(frame)])
        assert asked(escalations(items, tools)[0]).content_type == "image/jpeg"
        seconds += 1.0
    (items,) = desk.run([desk.record(frame) for frame in frames[4:]])
    kinds = [asked(output).content_type for output in escalations(items, tools)]
    assert kinds.count("image/jpeg") < 8
    assert kinds.count(CLIP) >= 3


def test_more_sources_than_clips_send_pictures_rather_than_ending_each_others_clips(tools: ModuleType, bench: Make) -> None:
    desk = bench(policy=CHEAP, evidence=Evidence(clip_frames=8, clip_s=0.3, open_clips=2))
    names = [f"cam-{n}" for n in range(6)]
    frames = unsure(tools, desk, [tools.frame(name, n) for n in range(24) for name in names])
    (items,) = desk.run([desk.record(frame, offset=n) for n, frame in enumerate(frames)])
    questions = [asked(output) for output in escalations(items, tools)]
    assert sorted(each.id for question in questions for each in question.records) == sorted(str(frame.id) for frame in frames)
    clips = [question for question in questions if question.content_type == CLIP]
    assert clips
    assert sum(len(question.records) for question in clips) / len(clips) > 5, "none was ended early"


def test_clips_that_cannot_be_made_are_an_error_at_start_and_auto_does_without(
    tools: ModuleType, bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(NoPyAV, match=r"pip install 'headwater\[camera\]'"):
        site(bench)
    assert site(bench, link=None).questions.held_batches == 0, "who asks nobody needs none"
    desk = bench(policy=CHEAP)
    assert desk.questions.held_batches == 0
    frames = unsure(tools, desk, [tools.frame("cam", n) for n in range(12)])
    (items,) = desk.run([desk.record(frame) for frame in frames])
    assert {asked(output).content_type for output in escalations(items, tools)} == {"image/jpeg"}


def test_each_open_clip_may_hold_a_batch(bench: Make) -> None:
    assert site(bench, evidence=Evidence(form="clip", open_clips=5)).questions.held_batches == 5
    assert site(bench, evidence=Evidence(form="frame", open_clips=5)).questions.held_batches == 0


# ---- what the region refuses


def clip_of(tools: ModuleType, bench: Make, count: int = 3) -> Any:
    desk = site(bench, evidence=Evidence(form="clip", clip_frames=count))
    frames = unsure(tools, desk, [tools.frame("cam", n, jpeg=tools.picture(n)) for n in range(count)])
    (items,) = desk.run([desk.record(frame) for frame in frames])
    return escalations(items, tools)[0]


def sent(question: Escalation, evidence: bytes, topic: Any, **changes: Any) -> Any:
    """An escalation whose digest is right, whatever else is not."""
    return outputs.escalation(topic, msgspec.structs.replace(question, evidence=content_digest(evidence), **changes), evidence)


def test_clips_that_cannot_be_judged_are_rejected_with_their_cause_and_the_stream_goes_on(
    tools: ModuleType, bench: Make, there: Make
) -> None:
    good = clip_of(tools, bench)
    question, data, topic = asked(good), good.value, good.topic
    noon = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
    more = (*question.records, Asked(id="cam/e1/77", captured_at=noon))
    batch = [
        sent(question, data[:-40], topic),
        sent(question, data, topic, records=more),
        sent(question, data, topic, records=question.records[:2]),
        sent(question, tools.picture(1), topic),
        sent(question, data, topic, content_type="video/h265"),
        sent(question, data, topic, content_type="image/jpeg"),
        msgspec.structs.replace(good, value=data[:-1] + b"\0"),
        good,
    ]
    desk = there()
    items, error = desk.run(batch)
    assert error is None
    said = {item.index: (type(item.error).__name__, str(item.error)) for item in items if isinstance(item, Rejected)}
    kinds = ["InvalidClip"] * 4 + ["InvalidEvidence", "UndecodableImage", "InvalidEvidence"]
    assert [said[n][0] for n in range(7)] == kinds
    assert {item.index: item.record for item in items if isinstance(item, Rejected)}[0] == question.id, "the dead letter says which"
    assert "2 frames for 3 records" in said[0][1]
    assert "3 frames for 4 records" in said[1][1]
    assert "3 frames for 2 records" in said[2][1]
    assert "video/h265" in said[4][1]
    assert len(tools.values(items, "down.verdicts", Verdict)) == 3
    assert all(isinstance(item, Emitted) for item in items if item.index == 7)


def test_a_look_that_fails_within_a_clip_leaves_the_whole_question_over(tools: ModuleType, bench: Make, there: Make) -> None:
    good = clip_of(tools, bench)
    desk = there()
    desk.detector.fails = [1]
    items, error = desk.run([good])
    assert str(error) == "a broken layer"
    assert [item.finished for item in items] == [False]
    desk._offset -= 1  # delivery tries the same record again
    items, error = desk.run([good])
    assert error is None
    assert [verdict.id for verdict in tools.values(items, "down.verdicts", Verdict)] == [each.id for each in asked(good).records]
    again, error = desk.run([good])
    assert (len(again), tools.outputs_of(again), error) == (1, [], None), "another record, the same question"


def test_a_region_without_pyav_rejects_clips_and_says_what_to_install(
    tools: ModuleType, bench: Make, there: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = clip_of(tools, bench)
    monkeypatch.setitem(sys.modules, "av", None)
    items, error = there().run([good])
    assert error is None
    assert isinstance(items[0], Rejected)
    assert "pip install 'headwater[camera]'" in str(items[0].error)


def test_what_only_the_region_sees_on_a_frame_of_a_clip_raises_an_alert_there(tools: ModuleType, bench: Make, there: Make) -> None:
    desk = there(rules=(Rule(name="r", label="bit 1", min_score=0.5, cooldown_s=0.0),))
    items, _ = desk.run([clip_of(tools, bench, 4)])
    assert [alert.record for alert in tools.values(items, "alerts", Alert)] == ["cam/e1/2", "cam/e1/3"]
