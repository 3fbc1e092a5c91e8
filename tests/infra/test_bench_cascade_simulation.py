"""The cascade over a made-up scene under a virtual clock: what runs cost, what they say, and what the oracle chooses."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from infra.bench.cascade.matching import match
from infra.bench.cascade.models import UnknownModel, detector_of
from infra.bench.cascade.oracle import greedy
from infra.bench.cascade.reference import truths
from infra.bench.cascade.runs import LEAF, ORACLE, RANDOM, REGION, UNIFORM
from infra.bench.cascade.scoring import score
from infra.bench.cascade.simulation import Material, Plan, simulate
from schemas.detections import Detection, Detections

FRAMES, FPS = 240, 10.0


def person(x: float, score: float, y: float = 0.5) -> Detection:
    return Detection("person", score, x - 0.03, y - 0.1, x + 0.03, y + 0.1)


@pytest.fixture(scope="module")
def scene() -> Material:
    """Five people, each time elsewhere. The leaf misses each in half of the frames, its larger input in a tenth, the region never."""
    chance = np.random.default_rng(1)
    places = [[0.1 + 0.2 * index + float(chance.uniform(-0.06, 0.06)) for index in range(5)] for _ in range(FRAMES)]

    def seen(rate: float, doubt: float) -> list[Detections]:
        return [
            Detections(
                [
                    *(person(x, float(np.clip(chance.normal(0.6, doubt), 0.1, 0.95))) for x in places[frame] if chance.random() < rate),
                    *(
                        [person(float(chance.uniform(0.1, 0.9)), float(chance.uniform(0.1, 0.5)), 0.85)]
                        if chance.random() < 1 - rate
                        else []
                    ),
                ]
            )
            for frame in range(FRAMES)
        ]

    return Material(
        fps=FPS,
        leaf={(224,): seen(0.5, 0.15), (320,): seen(0.9, 0.1)},
        costs={(224,): 1.0, (320,): 2.0},
        region=seen(1.0, 0.05),
        evidence_bytes=[10_000] * FRAMES,
        publish_from=0.05,
        models=("small", "large"),
    )


def ap50(scene: Material, answers: list[Detections], first: int = 0) -> float:
    known = truths(scene.region, reference="the region").only(range(first, FRAMES))
    found = score(match(known, answers), operating_score=0.4).ap50
    assert found is not None
    return found


def test_the_leaf_asks_nothing_and_the_region_infers_everything(scene: Material) -> None:
    leaf, region = simulate(scene, Plan(policy=LEAF)), simulate(scene, Plan(policy=REGION))
    assert not any(leaf.inferred)
    assert not any(leaf.bytes_by_lane["escalations"])
    assert all(leaf.bytes_by_lane["verdicts"])
    assert all(region.inferred)
    assert ap50(scene, list(region.joined)) == pytest.approx(1.0)
    assert min(region.bytes_by_lane["escalations"]) > 10_000


@pytest.mark.parametrize("policy", [RANDOM, UNIFORM, "uncertainty", "expected-gain"])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_no_policy_infers_more_than_its_share(scene: Material, policy: str, share: float) -> None:
    found = simulate(scene, Plan(policy=policy, budget_share=share, seed=1))
    assert sum(found.inferred) <= share * FRAMES + 1
    assert sum(found.inferred) >= 0.8 * share * FRAMES
    asked = [bool(size) for size in found.bytes_by_lane["escalations"]]
    assert asked == list(found.inferred)
    assert [bool(size) for size in found.bytes_by_lane["region.verdicts"]] == asked


def test_frames_that_were_asked_about_have_the_regions_answer_and_others_the_leafs(scene: Material) -> None:
    found = simulate(scene, Plan(policy="uncertainty", budget_share=0.25))
    for frame, asked in enumerate(found.inferred):
        assert found.joined[frame] == (scene.region[frame] if asked else found.instant[frame])


def test_a_run_is_the_same_each_time_and_random_choice_depends_on_its_seed(scene: Material) -> None:
    plan = Plan(policy="expected-gain", budget_share=0.25, compute=2.0)
    assert simulate(scene, plan) == simulate(scene, plan)
    first, second = (simulate(scene, Plan(policy=RANDOM, budget_share=0.25, taught=False, seed=seed)) for seed in (1, 2))
    assert first.inferred != second.inferred


def test_a_larger_input_is_chosen_where_it_pays_and_may_be_paid(scene: Material) -> None:
    bound = [simulate(scene, Plan(policy=UNIFORM, budget_share=0.25, compute=compute)) for compute in (1.0, 2.0)]
    late = [ap50(scene, list(run.instant), 120) for run in bound]
    assert late[1] > late[0] + 0.1


def test_nothing_is_known_before_an_answer_is_back(scene: Material) -> None:
    """With answers later than the video is long, frames are answered as without any."""
    never = simulate(scene, Plan(policy=UNIFORM, budget_share=0.5, delay=FRAMES + 1, compute=2.0))
    leaf = simulate(scene, Plan(policy=LEAF))
    assert [[(d.score, d.x0) for d in each] for each in never.instant] == [
        [(d.score, d.x0) for d in sorted(each, key=lambda d: -d.score)] for each in leaf.instant
    ]


def test_the_oracle_beats_every_choice_of_the_same_size(scene: Material) -> None:
    leaf = simulate(scene, Plan(policy=LEAF)).instant
    known = truths(scene.region, reference="the region")
    chosen = greedy(known, leaf, scene.region, [0.1, 0.3])
    assert {share: int(mask.sum()) for share, mask in chosen.items()} == {0.1: 24, 0.3: 72}
    assert not (chosen[0.1] & ~chosen[0.3]).any()
    best = simulate(scene, Plan(policy=ORACLE, budget_share=0.1, taught=False), chosen[0.1].tolist())
    for policy in (UNIFORM, RANDOM):
        other = simulate(scene, Plan(policy=policy, budget_share=0.1, taught=False))
        assert ap50(scene, list(best.joined)) > ap50(scene, list(other.joined))


def test_everything_asks_about_every_frame(scene: Material) -> None:
    assert all(simulate(scene, Plan(policy=UNIFORM, mode="everything", delay=10)).inferred)


def test_an_unknown_policy_is_named(scene: Material) -> None:
    with pytest.raises(ValueError, match="'guess'"):
        simulate(scene, Plan(policy="guess", budget_share=0.1))


def test_models_are_named_by_file_sizes_and_precision() -> None:
    assert (detector_of("nanodet-g@224+320:fp32").sizes, detector_of("nanodet-g@224+320:fp32").quantized) == ((224, 320), False)
    assert detector_of("some/model.onnx@640").model == "some/model.onnx"
    with pytest.raises(UnknownModel, match="sizes"):
        detector_of("nanodet-g@7")
    with pytest.raises(UnknownModel, match="nowhere"):
        detector_of("nowhere.toml")


def test_a_run_travels_as_json(scene: Material) -> None:
    assert msgspec.json.encode(simulate(scene, Plan(policy=LEAF)).bytes_by_lane)
