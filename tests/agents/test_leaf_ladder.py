"""A leaf whose engines break for real: ONNX models that fail, are slow or hang on bright pictures, and do their work on dark ones; files
that are missing, damaged and mended; an engine that this machine does not have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import simplejpeg
from onnx import TensorProto, helper, numpy_helper

from agents.cascade.budgets import Budgets
from agents.inference.detector import load
from agents.inference.images import UndecodableImage
from agents.ladder import Limits
from agents.leaf import NO_DIGEST, NO_MODEL, Leaf
from agents.questions import Questions
from agents.reach import AWAY, LATER, SILENT_S, Reach
from agents.sight import Sight, slow_limit_s
from agents.steps import models_of, rungs_of
from schemas.config import Detector, Engine, Fallback, Policy, SiteConfig
from schemas.detections import Detections
from schemas.links import Breaker, LinkState
from schemas.messages import RANK, Control, Drop, Escalation, Reason, Status, Tier, Verdict
from schemas.resolution import resolve
from schemas.rules import Rule
from streams.delivery import Emitted, Rejected
from streams.topology import Role, Topology

SIDE = 64
QUICK = Limits(slow_s=60.0, backoff_s=(0.2, 0.5))  # what takes minutes at a site takes half a second here
WATCH = Rule(name="watch", min_score=0.7, cooldown_s=0.0)


# ---- pictures, and models that pictures break


def jpeg(brightness: int, number: int = 0) -> bytes:
    """A grey picture; the number makes it one that no other is."""
    pixels = np.full((SIDE, SIDE, 3), brightness, np.uint8)
    pixels[:2, :2] = number
    return bytes(simplejpeg.encode_jpeg(pixels, quality=95))


DARK, BRIGHT = 10, 250


def model(path: Path, score: float = 0.9, *, bright: str = "fine", rounds: int = 0, label: int = 0) -> Path:
    """A detector of the yolov8 layout that sees one object, always. On a bright picture it `fails` (an index beyond its table), gives
    `nan`, or is `busy` for many rounds of a loop."""
    table = np.zeros((1, 84, 1), np.float32)
    table[0, :4, 0], table[0, 4 + label, 0] = (32, 32, 16, 32), score
    constants = {
        "table": table,
        "zero": np.zeros(1, np.float32),
        "first": np.zeros(1, np.int64),
        "half": np.array(0.5, np.float32),
        "rounds": np.array(rounds, np.int64),
        "yes": np.array(True),
        "seed": np.full((128, 128), 1e-3, np.float32),
    }
    mean = helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0)
    is_bright = helper.make_node("Greater", ["mean", "half"], ["bright"])
    nodes = [mean, is_bright]
    if bright == "fails":
        nodes += [
            helper.make_node("Cast", ["bright"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["zero", "index"], ["nothing"]),  # the table has one entry: index 1 is an error
        ]
    elif bright == "nan":
        nodes += [
            helper.make_node("Cast", ["bright"], ["flag"], to=TensorProto.FLOAT),
            helper.make_node("Neg", ["flag"], ["below"]),
            helper.make_node("Sqrt", ["below"], ["nothing"]),  # of -1 there is no number
        ]
    elif bright == "busy":
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["go"], ["on"]),
                helper.make_node("MatMul", ["x", "x"], ["y"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [128, 128]),
            ],
            [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("y", TensorProto.FLOAT, [128, 128])],
        )
        nodes += [
            helper.make_node("Cast", ["bright"], ["times"], to=TensorProto.INT64),
            helper.make_node("Mul", ["times", "rounds"], ["count"]),
            helper.make_node("Loop", ["count", "yes", "seed"], ["spent"], body=body),
            helper.make_node("ReduceSum", ["spent"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        ]
    else:
        nodes += [helper.make_node("Identity", ["zero"], ["nothing"])]
    nodes += [helper.make_node("Add", ["table", "nothing"], ["output0"])]
    graph = helper.make_graph(
        nodes,
        "fragile",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 84, 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def detector(path: Path, *fallbacks: Path, **more: Any) -> Detector:
    return Detector(
        model=str(path), family="yolov8", sizes=(SIDE,), fallbacks=tuple(Fallback(model=str(f), sizes=(SIDE,)) for f in fallbacks), **more
    )


class Site:
    """A leaf on models of a test's own, driven by hand."""

    def __init__(self, tools: ModuleType, folder: Path, limits: Limits = QUICK, **site: Any) -> None:
        self.tools, self.clock = tools, tools.Clock()
        self.config: SiteConfig = tools.leaf_site(**site)
        self.role = Topology(self.config).role(Role.LEAF)
        self.seconds = 0.0
        self.budgets = Budgets(
            bytes_per_s=self.config.policy.budget_bytes_per_s,
            inferences_per_s=self.config.policy.inferences_per_s,
            burst_s=self.config.policy.burst_s,
            clock=lambda: self.seconds,
        )
        self.reach = Reach(lambda: self.seconds)
        limits = msgspec.structs.replace(
            limits, slow_s=min(limits.slow_s, slow_limit_s(self.config) if self.config.engine.slow_ms else 60.0)
        )
        self.sight = Sight(
            rungs_of(self.config, folder),
            slow_s=limits.slow_s,
            limits=limits,
            hang_s=self.config.engine.hang_ms / 1000,
            workers=self.config.engine.workers,
        )
        self.leaf = Leaf(
            self.config,
            self.role,
            self.sight,
            Questions(self.config, self.role, tools.cascade_of(self.config, self.budgets), self.reach, clock=lambda: self.seconds),
            cluster="cluster-1",
            frames_uuid="topic-1",
            clock=self.clock,
            now=lambda: tools.NOON,
        )
        self.sight.start()
        self._sequence = 0

    def frames(self, brightness: int, count: int) -> list[Any]:
        made = []
        for _ in range(count):
            made.append(self.tools.frame("cam", self._sequence, jpeg=jpeg(brightness, self._sequence % 200)))
            self._sequence += 1
        return made

    def answer(self, frames: list[Any]) -> list[Any]:
        records = [
            self.tools.Record(
                in_topic="frames",
                data=frame.jpeg,
                pairs=list(frame.to_headers()),
                name=frame.source.encode(),
                at=int(self.clock.ms),
                offs=frame.id.sequence,
            )
            for frame in frames
        ]

        async def drive() -> list[Any]:
            return list(await self.tools.collect(self.leaf.work(self.role.read("frames"), 0, records)))

        items = asyncio.run(asyncio.wait_for(drive(), self.tools.LIMIT_S))
        done = [item.index for item in items if isinstance(item, Rejected) or item.finished]
        assert sorted(done) == list(range(len(frames))), "each frame is finished once"
        return items

    def verdicts(self, brightness: int, count: int = 1) -> list[Verdict]:
        found: list[Verdict] = self.tools.values(self.answer(self.frames(brightness, count)), "verdicts", Verdict)
        assert len(found) == count
        return found


@pytest.fixture
def site(tools: ModuleType, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(**fields: Any) -> Site:
        made.append(Site(tools, tmp_path, **{"link": None, **fields}))
        return made[-1]

    yield make
    for each in made:
        each.leaf.close()


def digest_of(settings: Detector, folder: Path) -> str:
    """The digest of a model by itself, loaded without any ladder."""
    return load(msgspec.structs.replace(settings, fallbacks=()), Engine(), folder).digest


# ---- a model that fails


@pytest.mark.parametrize("bright", ["fails", "nan"])
def test_a_failing_model_costs_no_frame_its_answer_and_is_climbed_back_to(
    site: Callable[..., Site], tmp_path: Path, eventually: Any, caplog: pytest.LogCaptureFixture, bright: str
) -> None:
    first, second = model(tmp_path / "first.onnx", 0.9, bright=bright), model(tmp_path / "second.onnx", 0.6)
    leaf = site(detector=detector(first, second))
    above, below = digest_of(detector(first), tmp_path), digest_of(detector(second), tmp_path)
    (verdict,) = leaf.verdicts(DARK)
    assert (verdict.model, verdict.model_digest, verdict.note) == ("first 64", above, None)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="headwater.ladder"):
        for verdict in leaf.verdicts(BRIGHT, 8):
            assert (verdict.model, verdict.model_digest) == ("second 64", below)
            assert [d.score for d in verdict.detections] == [pytest.approx(0.6, abs=1e-4)]  # what that model sees, and no other
            assert verdict.note == "degraded: second 64 on cpu after first 64 on cpu failed"
        assert leaf.sight.step == 1
        assert [r.message.split(":")[0] for r in caplog.records] == [
            "step first 64 on cpu opened (failed)",
            "frames are judged by second 64 on cpu",
        ]
    eventually(lambda: leaf.verdicts(DARK)[0].note is None)
    assert leaf.sight.step == 0
    assert leaf.verdicts(DARK)[0].model_digest == above
    assert "frames are judged by first 64 on cpu" in caplog.messages


def test_one_frame_that_breaks_a_model_is_answered_and_opens_nothing(site: Callable[..., Site], tmp_path: Path) -> None:
    leaf = site(detector=detector(model(tmp_path / "first.onnx", bright="fails"), model(tmp_path / "second.onnx", 0.6)))
    (broken,) = leaf.verdicts(BRIGHT)
    assert broken.note == "degraded: second 64 on cpu after first 64 on cpu failed"
    assert leaf.sight.step == 0
    assert leaf.verdicts(DARK)[0].note is None


# ---- a model that hangs, and one that is slow


def test_a_hanging_model_is_left_to_itself(site: Callable[..., Site], tmp_path: Path, eventually: Any) -> None:
    first = model(tmp_path / "first.onnx", bright="busy", rounds=100_000)  # seconds, on a fast machine too
    leaf = site(detector=detector(first, model(tmp_path / "second.onnx", 0.6)), engine=Engine(hang_ms=300, workers=2))
    assert leaf.verdicts(DARK)[0].model == "first 64"
    for verdict in leaf.verdicts(BRIGHT, 6):
        assert verdict.model == "second 64"
        assert verdict.note == "degraded: second 64 on cpu after first 64 on cpu hung"
    assert 1 <= leaf.sight.stuck <= 2  # at most as many as were in it when it was found out
    assert leaf.verdicts(DARK, 5)[0].model == "second 64"  # in other threads
    eventually(lambda: leaf.sight.stuck == 0, timeout_s=60)
    eventually(lambda: leaf.verdicts(DARK)[0].model == "first 64")


def test_a_slow_model_makes_room_for_a_faster_one(site: Callable[..., Site], tmp_path: Path, eventually: Any) -> None:
    first = model(tmp_path / "first.onnx", bright="busy", rounds=800)  # tens of milliseconds
    leaf = site(detector=detector(first, model(tmp_path / "second.onnx", 0.6)), engine=Engine(slow_ms=10, workers=1))
    eventually(lambda: leaf.verdicts(BRIGHT)[0].model == "second 64")
    assert leaf.verdicts(BRIGHT)[0].note == "degraded: second 64 on cpu after first 64 on cpu was slow"
    eventually(lambda: leaf.verdicts(DARK)[0].model == "first 64")


def test_the_last_model_may_be_slow(site: Callable[..., Site], tmp_path: Path) -> None:
    leaf = site(detector=detector(model(tmp_path / "only.onnx", bright="busy", rounds=800)), engine=Engine(slow_ms=10, workers=1))
    assert {v.model for v in leaf.verdicts(BRIGHT, 30)} == {"only 64"}


# ---- no model at all


def test_without_any_model_frames_go_to_the_region_as_far_as_it_affords_them(
    tools: ModuleType, site: Callable[..., Site], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leaf = site(
        detector=Detector(model=str(tmp_path / "missing.onnx"), family="yolov8", sizes=(SIDE,)),
        link=tools.leaf_site().link,
        policy=Policy(inferences_per_s=1, burst_s=4),  # three looks, then a reserve
        rules=(WATCH,),
    )
    (loud,) = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert "no model works" in loud.message
    assert "missing.onnx cannot be read" in loud.message
    frames = leaf.frames(DARK, 8)
    items = leaf.answer(frames)
    questions = [Escalation.from_bytes(dict(o.headers)["escalation"]) for o in tools.outputs_of(items) if o.topic.base == "escalations"]
    verdicts = tools.values(items, "verdicts", Verdict)
    assert [q.reason for q in questions] == [Reason.UNJUDGED] * 3
    assert {q.records[0].id for q in questions} == {v.id for v in verdicts}
    assert {(v.status, v.model, v.model_digest, v.detections, v.rank) for v in verdicts} == {
        (Status.FAILED, NO_MODEL, NO_DIGEST, Detections(), 10)
    }
    (drop,) = tools.values(items, "drops", Drop)
    assert (drop.reason, drop.stage) == ("no-engine", "leaf")
    dropped = {f"cam/e1/{n}" for first, last in drop.ranges.pairs for n in range(first, last + 1)}
    assert dropped | {v.id for v in verdicts} == {str(frame.id) for frame in frames}
    assert not dropped & {v.id for v in verdicts}
    answer = msgspec.structs.replace(verdicts[0], status=Status.FINAL, tier=Tier.REGION, rank=RANK[Tier.REGION], model="large")
    other_leaf = msgspec.structs.replace(verdicts[0], status=Status.FINAL, site="leaf-2", model="small")
    for better in (answer, other_leaf):  # whoever has looked knows more
        for order in ([better, verdicts[0]], [verdicts[0], better]):
            result = resolve(order)
            assert result is not None
            assert result.model == better.model


@pytest.mark.parametrize("alone", [{"link": None}, {"policy": Policy(mode="off")}], ids=["no region", "mode off"])
def test_without_any_model_and_nobody_to_ask_every_frame_is_an_explained_drop(
    tools: ModuleType, site: Callable[..., Site], tmp_path: Path, alone: dict[str, Any]
) -> None:
    leaf = site(detector=detector(tmp_path / "missing.onnx"), **{"link": tools.leaf_site().link, **alone})
    items = leaf.answer(leaf.frames(DARK, 5))
    (drop,) = tools.values(items, "drops", Drop)
    assert (drop.reason, drop.ranges.pairs) == ("no-engine", ((0, 4),))
    assert len(tools.outputs_of(items)) == 1


def test_what_cannot_be_a_picture_is_a_dead_letter_even_if_nobody_can_look(
    tools: ModuleType, site: Callable[..., Site], tmp_path: Path
) -> None:
    leaf = site(detector=detector(tmp_path / "missing.onnx"), link=tools.leaf_site().link)
    before = leaf.budgets.inferences.level()
    (item,) = leaf.answer([tools.frame("cam", 0, jpeg=jpeg(DARK)[:200])])
    assert isinstance(item, Rejected)
    assert isinstance(item.error, UndecodableImage)
    assert leaf.budgets.inferences.level() == before


@pytest.mark.parametrize("fault", ["missing", "damaged", "unfit"])
def test_a_model_that_is_mended_on_disk_is_taken_up(site: Callable[..., Site], tmp_path: Path, eventually: Any, fault: str) -> None:
    path, good = tmp_path / "model.onnx", model(tmp_path / "good.onnx", 0.8)
    if fault == "damaged":
        path.write_bytes(good.read_bytes()[:-40])
    elif fault == "unfit":
        graph = onnx.load(good)
        graph.graph.output[0].name = graph.graph.node[-1].output[0] = "other"
        graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4  # no picture
        onnx.save(graph, path)
    leaf = site(detector=detector(path), limits=Limits(slow_s=60.0, backoff_s=(600.0, 600.0)))  # only the file's change can bring it
    items = leaf.answer(leaf.frames(DARK, 2))
    assert [o.topic.base for item in items if isinstance(item, Emitted) for o in item.outputs] == ["drops"]
    good.replace(path)
    eventually(lambda: leaf.sight.step == 0)
    (verdict,) = leaf.verdicts(DARK)
    assert (verdict.model_digest, verdict.note) == (digest_of(detector(path), tmp_path), None)


def test_a_model_that_broke_while_it_ran_is_loaded_anew(site: Callable[..., Site], tmp_path: Path, eventually: Any) -> None:
    first, second = model(tmp_path / "first.onnx", bright="fails"), model(tmp_path / "second.onnx", 0.6)
    leaf = site(detector=detector(first, second))
    leaf.verdicts(BRIGHT, 8)
    assert leaf.sight.step == 1
    model(tmp_path / "mended.onnx", 0.8).replace(first)
    eventually(lambda: leaf.verdicts(BRIGHT)[0].model == "first 64")  # which the old one fails on
    (verdict,) = leaf.verdicts(BRIGHT)
    assert (verdict.model_digest, verdict.note) == (digest_of(detector(first), tmp_path), None)


def test_an_engine_that_this_machine_does_not_have_is_no_degradation(site: Callable[..., Site], tmp_path: Path) -> None:
    leaf = site(
        detector=detector(model(tmp_path / "first.onnx", bright="fails"), model(tmp_path / "second.onnx", 0.6)),
        engine=Engine(prefer=("cuda", "cpu")),
    )
    assert leaf.sight.step == 1
    (verdict,) = leaf.verdicts(DARK)
    assert (verdict.model, verdict.note) == ("first 64", None)
    degraded = leaf.verdicts(BRIGHT, 6)  # the next model's first engine is not there either
    assert {v.note for v in degraded} == {"degraded: second 64 on cpu after first 64 on cpu failed"}


def test_its_own_detector_goes_down_by_itself() -> None:
    def chain(**fields: Any) -> list[tuple[tuple[int, ...], bool]]:
        return [(each.sizes, each.quantized) for each in models_of(Detector(**fields))]

    assert chain() == [((224,), True), ((160,), True)]
    assert chain(sizes=(320,)) == [((320,), True), ((224,), True), ((160,), True)]
    assert chain(sizes=(416,), quantized=False) == [((416,), False), ((320,), True), ((224,), True)]
    assert chain(sizes=(224,), quantized=False) == [((224,), False), ((224,), True), ((160,), True)]
    assert chain(sizes=(224, 320)) == [((224, 320), True), ((320,), True), ((224,), True)]
    assert chain(degrade=False, fallbacks=(Fallback(),)) == [((224,), True)]
    assert chain(sizes=(320,), fallbacks=(Fallback(sizes=(96,)),)) == [((320,), True), ((96,), True)]
    assert chain(model="own.onnx") == [((224,), True)]


# ---- the region away


def state(breaker: Breaker, tools: ModuleType, **more: Any) -> LinkState:
    return LinkState(site="leaf-1", region="region-1", breaker=breaker, since=tools.NOON, writer="w", generation=1, **more)


@pytest.fixture
def unsure(tools: ModuleType, bench: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a bench on which frame n is unsure; `ask(n)` answers it and gives its verdict and how many escalations there were."""

    def make(**site: Any) -> tuple[Any, Callable[[int], tuple[Verdict, int]]]:
        desk = bench(**site)

        def ask(number: int, score: float = 0.4) -> tuple[Verdict, int]:
            frame = tools.frame("cam", number)
            desk.detector.seen[frame.jpeg] = Detections([tools.person(score)])
            (items,) = desk.run([desk.record(frame)])
            (verdict,) = tools.values(items, "verdicts", Verdict)
            return verdict, sum(o.topic.base.startswith("escalations") for o in tools.outputs_of(items))

        return desk, ask

    return make


def test_before_the_link_has_said_anything_the_region_is_asked(unsure: Any) -> None:
    _, ask = unsure()
    verdict, asked = ask(0)
    assert (verdict.status, verdict.note, asked) == (Status.PROVISIONAL, None, 1)


def test_while_the_region_is_away_what_is_unsure_is_final_by_policy(tools: ModuleType, unsure: Any) -> None:
    desk, ask = unsure(rules=(WATCH,), policy=Policy(away_backlog_s=60.0, inferences_per_s=100))
    desk.reach.heed(state(Breaker.OPEN, tools))
    verdict, asked = ask(0)
    assert (verdict.status, verdict.note, verdict.deadline_ms, asked) == (Status.FINAL, AWAY, None, 1)  # it is kept for later all the same
    assert ask(1, 0.2)[0].note is None  # what would be final anyhow is an ordinary answer
    desk.seconds = 20
    desk.reach.heed(state(Breaker.HALF_OPEN, tools))
    assert ask(2)[0].note == AWAY  # tried is not well
    for desk.seconds in (40, 61):
        desk.reach.heed(state(Breaker.OPEN, tools))
    verdict, asked = ask(3)
    assert (verdict.status, verdict.note, asked) == (Status.FINAL, AWAY, 0)  # the backlog is bounded
    verdict, asked = ask(4, 0.9)  # an alert
    assert (verdict.status, verdict.note, asked) == (Status.PROVISIONAL, LATER, 1)  # it is reviewed after the outage
    desk.reach.heed(state(Breaker.CLOSED, tools))
    verdict, asked = ask(5)
    assert (verdict.status, verdict.note, asked) == (Status.PROVISIONAL, None, 1)


def test_a_link_that_falls_silent_or_is_paused_carries_nothing(tools: ModuleType, unsure: Any) -> None:
    desk, ask = unsure()
    desk.reach.heed(state(Breaker.CLOSED, tools))
    desk.seconds = SILENT_S - 1
    assert ask(0)[0].status is Status.PROVISIONAL
    desk.seconds = SILENT_S + 1
    assert ask(1)[0].note == AWAY
    desk.reach.heed(state(Breaker.CLOSED, tools, paused=True))
    assert ask(2)[0].note == AWAY
    desk.reach.heed(state(Breaker.CLOSED, tools))
    assert ask(3)[0].note is None


def test_an_absence_is_as_old_as_the_link_says_it_is(tools: ModuleType, unsure: Any) -> None:
    desk, ask = unsure(policy=Policy(away_backlog_s=60.0))
    later = tools.NOON.replace(hour=13)
    desk.reach.heed(state(Breaker.OPEN, tools), now=later)
    assert ask(0)[1] == 0


def test_who_would_rather_wait_waits(tools: ModuleType, unsure: Any) -> None:
    desk, ask = unsure(policy=Policy(region_away="wait"))
    desk.reach.heed(state(Breaker.OPEN, tools))
    verdict, asked = ask(0)
    assert (verdict.status, verdict.note, asked) == (Status.PROVISIONAL, None, 1)


def test_a_worker_spends_its_share_of_the_budgets(tools: ModuleType, bench: Callable[..., Any]) -> None:
    desk = bench(policy=Policy(inferences_per_s=4, budget_bytes_per_s=1000))
    desk.questions.share(0.25)
    assert (desk.budgets.inferences.rate, desk.budgets.bytes.rate) == (1.0, 250.0)
    desk.leaf.heed(Control(site="leaf-1", region="region-1", inferences_per_s=8, input_side=512))
    assert desk.budgets.inferences.rate == 2.0
    desk.questions.share(1.0)
    assert (desk.budgets.inferences.rate, desk.budgets.bytes.rate) == (8.0, 1000.0)
