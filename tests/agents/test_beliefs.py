"""What a leaf believes of frames, in the middle of its work: tracks, what comes again, and the same decisions as offline."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest

from agents.cascade.budgets import Budgets
from agents.cascade.values import VALUES
from infra.bench.cascade.simulation import Material, Plan, simulate
from schemas.config import Detector, Evidence, Ingress, Link, Policy
from schemas.detections import Detection, Detections
from schemas.messages import RANK, Escalation, Status, Tier, Verdict
from schemas.replays import REPLAYS
from streams.outputs import escalation_of

Make = Callable[..., Any]
FPS = 10.0
SETTINGS = Detector()


def scene(frames: int) -> tuple[list[Detections], list[Detections]]:
    """People who walk, of whom the leaf is half sure, posts that it takes for people, and what the region sees; nothing at times."""
    chance = np.random.default_rng(5)
    leaf, region = [], []
    for frame in range(frames):
        there = [] if frame % 90 < 15 else [0.1 + 0.2 * index + 0.003 * (frame % 60) for index in range(4)]
        people = [box(x, float(np.clip(0.45 + chance.normal(0, 0.15), 0.06, 0.9))) for x in there]
        posts = [box(0.15 + 0.6 * index, float(np.clip(0.4 + chance.normal(0, 0.1), 0.06, 0.9)), y=0.85) for index in range(2)]
        leaf.append(Detections(sorted([*people, *posts], key=lambda each: -each.score)))
        region.append(Detections([box(x + 0.004, 0.8) for x in there]))
    return leaf, region


def box(x: float, score: float, y: float = 0.5) -> Detection:
    return Detection("person", score, x - 0.025, y - 0.1, x + 0.025, y + 0.1)


def answer(frame: Any, detections: Detections) -> Verdict:
    """The region's answer to a question about a frame."""
    return Verdict(
        id=str(frame.id),
        source=frame.source,
        captured_at=frame.captured_at,
        status=Status.FINAL,
        detections=detections,
        confidence=0.9,
        tier=Tier.REGION,
        site="region-1",
        rank=RANK[Tier.REGION],
        generation=0,
        model="large",
        model_digest="a" * 64,
        evidence="b" * 64,
    )


@pytest.mark.parametrize("value", sorted(VALUES))
def test_a_leaf_decides_as_the_benchmark_does(tools: ModuleType, bench: Make, value: str) -> None:
    """The same frames, answers and budgets, once through the benchmark's loop and once through a whole leaf: every answer and every
    question is the same."""
    frames, share = 240, 0.2
    seen, region = scene(frames)
    material = Material(
        fps=FPS,
        leaf={SETTINGS.sizes: seen},
        costs={SETTINGS.sizes: 1.0},
        region=region,
        evidence_bytes=[1000] * frames,
        publish_from=SETTINGS.min_score,
        models=("small", "large"),
    )
    offline = simulate(material, Plan(policy=value, budget_share=share, delay=1))
    desk = bench(
        value=VALUES[value](),
        teach=True,
        policy=Policy(inferences_per_s=share * FPS, budget_bytes_per_s=1 << 50, burst_s=5.0),
        evidence=Evidence(form="frame"),
        ingress=Ingress(max_age_ms=86_400_000),
    )
    desk.budgets.inferences.spend((1 - Budgets.RESERVE) * desk.budgets.inferences.level())
    asked: list[int] = []
    answers: list[Detections] = []
    taken: list[Any] = []
    for number in range(frames):
        desk.seconds = number / FPS
        if asked and asked[-1] == number - 1:
            desk.leaf.hear(answer(taken[number - 1], region[number - 1]))
        frame = tools.frame("cam", number, at_s=number / FPS)
        taken.append(frame)
        desk.detector.seen[frame.jpeg] = seen[number]
        (items,) = desk.run([desk.record(frame)])
        (verdict,) = tools.values(items, "verdicts", Verdict)
        answers.append(verdict.detections)
        for output in tools.outputs_of(items):
            if output.topic.base == "escalations":
                question: Escalation = escalation_of(list(output.headers))
                asked += [int(each.id.rpartition("/")[2]) for each in question.records]
    assert asked == [number for number, inferred in enumerate(offline.inferred) if inferred]
    assert answers == offline.instant
    assert 0.1 * frames < len(asked) < 0.3 * frames, "there was something to decide"


def test_a_frame_that_comes_again_is_answered_as_before(tools: ModuleType, bench: Make) -> None:
    desk = bench(policy=Policy(inferences_per_s=100.0))
    frames = [tools.frame("cam", number) for number in range(3)]
    for number, frame in enumerate(frames):
        desk.detector.seen[frame.jpeg] = Detections([tools.person(0.5, x=0.3 + number / 100), tools.person(0.9, x=0.7)])
    first, again = desk.run([desk.record(frame) for frame in frames], [desk.record(frame) for frame in frames])
    assert tools.values(first, "verdicts", Verdict) == tools.values(again, "verdicts", Verdict)
    names = [[output.topic.base for output in tools.outputs_of(items)] for items in (first, again)]
    assert names[0].count("escalations") == names[1].count("escalations") == 3, "what was asked is asked again"


def test_what_is_older_than_a_streams_last_frame_disturbs_no_track(tools: ModuleType, bench: Make) -> None:
    """A replayed dead letter, and a frame that was passed by later ones: answered with what is seen in them."""
    desk = bench(link=None)
    frames = [tools.frame("cam", number) for number in (10, 11, 3, 12)]
    replayed = tools.frame("cam", 40, epoch="e0")
    for frame in (*frames, replayed):
        desk.detector.seen[frame.jpeg] = Detections([tools.person(0.9)])
    letter = desk.record(replayed)
    letter.pairs.append((REPLAYS, b"1"))
    items = [
        item for batch in desk.run(*([desk.record(frame)] for frame in frames[:3]), [letter], [desk.record(frames[3])]) for item in batch
    ]
    tracks = [[each.track for each in verdict.detections] for verdict in tools.values(items, "verdicts", Verdict)]
    assert tracks == [[1], [1], [None], [None], [1]]


def test_without_a_region_a_leaf_answers_with_what_its_model_sees(tools: ModuleType, bench: Make) -> None:
    seen, _ = scene(40)
    desk = bench(link=None)
    frames = [tools.frame("cam", number) for number in range(len(seen))]
    for frame, each in zip(frames, seen, strict=True):
        desk.detector.seen[frame.jpeg] = each
    (items,) = desk.run([desk.record(frame) for frame in frames])
    for verdict, each in zip(tools.values(items, "verdicts", Verdict), seen, strict=True):
        plain = Detections(msgspec.structs.replace(d, track=None) for d in verdict.detections)
        assert plain == Detections(d for d in each if d.score >= SETTINGS.min_score)
        assert (verdict.status, verdict.captured_at.tzinfo) == (Status.FINAL, dt.UTC)


def test_a_failed_answer_teaches_nothing(tools: ModuleType, bench: Make) -> None:
    desk = bench(teach=True, link=Link(region_name="region-1"))
    frame = tools.frame("cam", 0)
    desk.detector.seen[frame.jpeg] = Detections([tools.person(0.5)])
    desk.run([desk.record(frame)])
    good = answer(frame, Detections([tools.person(0.9)]))
    desk.leaf.hear(msgspec.structs.replace(good, status=Status.FAILED))
    assert not desk.cascade.lessons()
    desk.leaf.hear(good)
    assert set(desk.cascade.lessons()) == {"cam"}
    desk.leaf.hear(good)
    assert not desk.cascade.lessons(), "an answer that comes twice teaches once"
