"""Other input sizes on a leaf: which there are, how they are loaded and left out, and that a stream is looked at in what serves it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agents.beliefs import Beliefs
from agents.cascade.budgets import Budgets
from agents.cascade.cascade import Cascade
from agents.cascade.stream import FAINT_FROM
from agents.cascade.values import Uniform
from agents.inference.detector import Detector, Look, load
from agents.inference.engines import EngineFailed
from agents.pace import Pace
from agents.sight import Seen, Sight
from agents.sizes import BUSY, OtherSizes, choices
from agents.steps import rungs_of
from infra.assets.models import ready_models
from schemas.config import Detector as Settings
from schemas.config import Engine, SiteConfig
from schemas.messages import RANK, Status, Tier, Verdict

LIMIT_S = 60.0


def test_choices_are_bounded_by_what_a_look_may_cost() -> None:
    assert [each.sizes for each in choices(Settings())] == [(224,), (320,), (416,), (224, 320)]
    assert [each.sizes for each in choices(Settings(compute=1.0))] == [(224,)]
    assert [each.sizes for each in choices(Settings(sizes=(320,), compute=1.0))] == [(320,), (224,)], "less is always allowed"
    assert choices(Settings(model="model.onnx", sizes=(640,))) == [Settings(model="model.onnx", sizes=(640,))]
    assert [each.name for each in choices(Settings(name="street"))][1:] == ["street 320", "street 416", "street 224+320"]


def test_a_pace_is_the_rate_of_what_happened_lately() -> None:
    pace = Pace(over_s=5.0)
    for number in range(600):
        pace.add(number / 20)
    assert pace.rate(30.0) == pytest.approx(20, rel=0.05)
    assert pace.rate(60.0) < 0.1
    assert pace.rate(1e9) > 0


@pytest.fixture(scope="module")
def models() -> Path:
    return ready_models(choices(Settings()))


@pytest.fixture
def sight(models: Path, tools: ModuleType) -> Iterator[Callable[..., Sight]]:
    made: list[Sight] = []

    def make(**more: Any) -> Sight:
        config: SiteConfig = tools.leaf_site(detector=Settings(degrade=False))
        others = OtherSizes(config, models, faint_from=FAINT_FROM)
        made.append(Sight(rungs_of(config, models, FAINT_FROM), others=others, slow_s=60.0, **more))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.close()


def all_loaded(eyes: Sight) -> None:
    assert eyes.others is not None
    end = time.monotonic() + LIMIT_S
    while not all(eyes.others.find(sizes) for sizes in eyes.others.sets[1:]):
        assert time.monotonic() < end, "the other sizes are loaded beside the stream"
        time.sleep(0.01)


def look(eyes: Sight, jpeg: bytes, sizes: tuple[int, ...] | None) -> Seen:
    seen = eyes.see(jpeg, sizes=sizes).result(LIMIT_S)
    assert seen is not None
    return seen


def test_a_frame_is_seen_in_the_sizes_that_are_asked_for(sight: Callable[..., Sight], models: Path, street: list[bytes]) -> None:
    eyes = sight()
    assert look(eyes, street[0], (416,)).sizes in {(224,), (416,)}, "while they are not loaded the configured ones serve"
    all_loaded(eyes)
    for sizes in ((224,), (320,), (224, 320)):
        alone: Detector = load(Settings(sizes=sizes), Engine(), models)
        seen = look(eyes, street[0], sizes)
        assert (seen.sizes, seen.digest, seen.look.detections) == (sizes, alone.digest, alone.look(street[0]).detections)
    assert look(eyes, street[0], (640,)).sizes == (224,), "what is not to be had is looked at as configured"
    assert eyes.others is not None
    assert set(eyes.others.seconds()) == {(224,), (320,), (416,), (224, 320)}


def test_a_trial_is_one_frame_in_every_size(sight: Callable[..., Sight], street: list[bytes]) -> None:
    eyes = sight()
    all_loaded(eyes)
    seen = look(eyes, street[1], (320,))
    looks = eyes.try_sizes(street[1], seen).result(LIMIT_S)
    assert looks is not None
    assert set(looks) == {(224,), (320,), (416,), (224, 320)}
    assert looks[320,] is seen.look, "it is not looked at again in what it was seen in"


def test_sizes_that_fail_are_left_out_and_no_frame_is_lost(
    sight: Callable[..., Sight], street: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    eyes = sight()
    all_loaded(eyes)
    assert eyes.others is not None
    broken = eyes.others.find((320,))
    assert broken is not None

    def fail(jpeg: bytes) -> Look:
        raise EngineFailed("the device is gone")

    monkeypatch.setattr(broken, "look", fail)
    assert look(eyes, street[0], (320,)).sizes == (224,)
    assert eyes.others.find((320,)) is None
    assert (320,) not in eyes.others.seconds()
    assert eyes.try_sizes(street[0], look(eyes, street[0], None)).result(LIMIT_S) is None


def test_sizes_that_hang_are_left_out_and_no_frame_is_lost(
    sight: Callable[..., Sight], street: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    eyes, gate = sight(hang_s=0.5), threading.Event()
    all_loaded(eyes)
    assert eyes.others is not None
    hanging = eyes.others.find((416,))
    assert hanging is not None

    def hang(jpeg: bytes) -> Look:
        gate.wait(LIMIT_S)
        raise EngineFailed("too late")

    monkeypatch.setattr(hanging, "look", hang)
    try:
        assert look(eyes, street[0], (416,)).sizes == (224,)
        assert eyes.others.find((416,)) is None
        assert eyes.stuck == 1
    finally:
        gate.set()


def test_a_leaf_that_is_busy_allows_no_larger_look(sight: Callable[..., Sight], street: list[bytes]) -> None:
    eyes = sight(workers=1, clock=(now := Now()))
    all_loaded(eyes)
    for number in range(50):  # ten a second
        now.at_s = number / 10
        look(eyes, street[0], None)
    calm = eyes.at_most_s()
    for number in range(2000):  # two hundred a second
        now.at_s = 5 + number / 200
        eyes._pace.add(now.at_s)
    assert calm == pytest.approx(BUSY / 10, rel=0.6), "it has seen five seconds of them"
    assert eyes.at_most_s() == pytest.approx(BUSY / 200, rel=0.2)


def test_where_frames_wait_in_line_they_are_looked_at_as_configured(sight: Callable[..., Sight], street: list[bytes]) -> None:
    eyes = sight(workers=1)
    all_loaded(eyes)
    looks = [eyes.see(street[0], sizes=(416,)) for _ in range(20)]
    found = [seen.sizes for look in looks if (seen := look.result(LIMIT_S)) is not None]
    assert found[5:15] == [(224,)] * 10
    assert found[-1] == (416,), "the last has nobody behind it"


class Now:
    at_s = 0.0

    def __call__(self) -> float:
        return self.at_s


def test_a_stream_is_looked_at_in_the_sizes_that_the_regions_answers_favour(
    sight: Callable[..., Sight], tools: ModuleType, street: list[bytes]
) -> None:
    """The region looks in 224 and 320 together: a leaf that does so too agrees with it, and learns that it does."""
    eyes = sight()
    all_loaded(eyes)
    assert eyes.others is not None
    region = eyes.others.find((224, 320))
    assert region is not None
    budgets = Budgets(bytes_per_s=1e9, inferences_per_s=1e9, burst_s=1, clock=lambda: 0.0)
    cascade = Cascade(mode="everything", value=Uniform(), budgets=budgets, choices=eyes.others.sets, publish_from=0.25)
    beliefs = Beliefs(cascade, eyes, clock=(now := Now()))

    async def play() -> list[tuple[int, ...] | None]:
        looked: list[tuple[int, ...] | None] = []
        for number in range(80):
            now.at_s = float(number * 3)
            frame = tools.frame("cam", number, jpeg=street[number % len(street)])
            seen = await asyncio.wrap_future(eyes.see(frame.jpeg, sizes=beliefs.sizes("cam")))
            assert seen is not None
            looked.append(seen.sizes)
            beliefs.ask(frame, seen, beliefs.about(frame, seen), now.at_s)
            beliefs.hear(answer(frame, region.look(frame.jpeg)))  # at once, so before the frame was tried in other sizes
            async with asyncio.timeout(LIMIT_S):
                while beliefs._trying:  # noqa: ASYNC110 - it happens in other threads
                    await asyncio.sleep(0.001)
        return looked

    looked = asyncio.run(play())
    assert looked[0] == (224,)
    assert set(looked[-16:]) == {(224, 320)}
    lesson = cascade.lessons()["cam"]
    assert lesson.verdicts == 80, "every answer was learned from, once the frame was tried"
    assert len(lesson.stream.models) == 2, "what a score means was learned for each model by itself"


def answer(frame: Any, seen: Look) -> Verdict:
    return Verdict(
        id=str(frame.id),
        source=frame.source,
        captured_at=frame.captured_at,
        status=Status.FINAL,
        detections=seen.detections,
        confidence=0.9,
        tier=Tier.REGION,
        site="region-1",
        rank=RANK[Tier.REGION],
        generation=0,
        model="large",
        model_digest="a" * 64,
        evidence="b" * 64,
    )


def test_trials_take_a_tenth_of_the_time(tools: ModuleType, sight: Callable[..., Sight], street: list[bytes]) -> None:
    """Each takes a second here; a frame is asked about every second."""
    eyes = sight()
    all_loaded(eyes)
    assert eyes.others is not None
    budgets = Budgets(bytes_per_s=1e9, inferences_per_s=1e9, burst_s=1, clock=lambda: 0.0)
    cascade = Cascade(mode="everything", value=Uniform(), budgets=budgets, choices=eyes.others.sets, publish_from=0.25)
    beliefs = Beliefs(cascade, eyes, clock=(now := Now()))

    async def play() -> list[int]:
        tried = []
        for number in range(35):
            now.at_s = float(number)
            frame = tools.frame("cam", number, jpeg=street[0])
            seen = await asyncio.wrap_future(eyes.see(frame.jpeg))
            assert seen is not None
            beliefs.ask(frame, seen, beliefs.about(frame, seen), now.at_s)
            if (trial := beliefs._trying.get(str(frame.id))) is not None:
                tried.append(number)
                now.at_s += 1.0
                await asyncio.wait_for(trial, LIMIT_S)
                await asyncio.sleep(0)  # its callback
        return tried

    assert asyncio.run(play()) == [0, 10, 20, 30]
