"""The cascade over a video under a virtual clock: the product's own policies, budgets, tracks and teaching, on looks that real models took.

A frame comes every 1 / fps seconds; the region's answer to it comes a stated number of frames later. What is simulated is time alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from agents.cascade.budgets import Budgets
from agents.cascade.cascade import Cascade, Mode
from agents.cascade.eyes import Sizes
from agents.cascade.values import VALUES
from infra.bench.cascade import lanes
from infra.bench.cascade.lanes import SOURCE
from infra.bench.cascade.runs import LEAF, ORACLE, RANDOM, REGION, UNIFORM, Run
from schemas.detections import Detections
from schemas.messages import Reason, Tier

BURST_S = 5.0
UNBOUND = 1e12
PLAIN, TAUGHT, SIZES = "", "taught", "taught, sizes learned"


class Material(msgspec.Struct, frozen=True, kw_only=True):
    """What the models saw.

    Attributes
    ----------
    leaf
        The leaf's answers by set of input sides, boxes down to a low score; the first set is the configured one.
    costs
        What a look at each set costs, in the unit of `Plan.compute`.
    region
        The region's answer to the evidence of each frame.
    evidence_bytes
        Of each frame, encoded alone.
    publish_from
        Score below which the leaf's boxes are not part of an answer.
    models
        Names of the leaf's and of the region's, as verdicts carry them.
    """

    fps: float
    leaf: Mapping[Sizes, Sequence[Detections]]
    costs: Mapping[Sizes, float]
    region: Sequence[Detections]
    evidence_bytes: Sequence[int]
    publish_from: float
    models: tuple[str, str]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One run: which policy, with what share of the frames, and how late the region answers.

    Attributes
    ----------
    compute
        What a look of the leaf may cost; 0: the configured one is taken always.
    delay
        Frames between a frame and its answer.
    """

    policy: str
    budget_share: float | None = None
    mode: Mode = "budgeted"
    taught: bool = True
    compute: float = 0.0
    delay: int = 1
    seed: int | None = None


def simulate(material: Material, plan: Plan, chosen: Sequence[bool] | None = None) -> Run:
    """Run one policy over the video.

    Parameters
    ----------
    chosen
        For a policy that is not asked but told which frames it takes (`ORACLE`).

    Raises
    ------
    ValueError
        If there is no policy of that name.
    """
    if plan.policy in (LEAF, REGION) or not plan.taught:
        return _without_memory(material, plan, chosen)
    return _with_memory(material, plan)


def _with_memory(material: Material, plan: Plan) -> Run:
    frames, share = len(material.region), plan.budget_share if plan.budget_share is not None else 1.0
    now = [0.0]
    rate = UNBOUND if plan.mode == "everything" else share * material.fps
    budgets = Budgets(bytes_per_s=UNBOUND, inferences_per_s=rate, burst_s=BURST_S, clock=lambda: now[0])
    if plan.mode != "everything":  # no run begins with more than it may spend in the long run
        budgets.inferences.spend((1 - Budgets.RESERVE) * budgets.inferences.level())
    chosen_by_chance = _at_random(frames, share, plan.seed) if plan.policy == RANDOM else None
    value = VALUES.get(plan.policy if chosen_by_chance is None else UNIFORM)
    if value is None:
        raise ValueError(f"there is no policy {plan.policy!r}: expected one of {', '.join((RANDOM, *VALUES))}")
    cascade = Cascade(mode=plan.mode, value=value(), budgets=budgets, choices=tuple(material.leaf), publish_from=material.publish_from)
    cascade.allow(material.costs, plan.compute)
    instant: list[Detections] = []
    inferred = [False] * frames
    waiting: list[int] = []
    for frame in range(frames):
        now[0] = frame / material.fps
        while waiting and waiting[0] + plan.delay <= frame:
            cascade.hear(SOURCE, str(waiting[0]), material.region[waiting.pop(0)])
        view = cascade.see(SOURCE, now[0], material.leaf[cascade.sizes(SOURCE)][frame])
        instant.append(cascade.answer(SOURCE, view))
        if chosen_by_chance is not None:
            asks = bool(chosen_by_chance[frame])
        else:
            size = material.evidence_bytes[frame]
            asks = cascade.wants(SOURCE, view, now[0], size) and budgets.take(Reason.UNCERTAIN, size) is None
        if asks:
            inferred[frame] = True
            trial = {sizes: seen[frame] for sizes, seen in material.leaf.items()} if cascade.wants_trial(SOURCE) else None
            cascade.ask(SOURCE, str(frame), view, now[0], trial)
            waiting.append(frame)
    return _run(material, plan, instant, inferred, SIZES if plan.compute else TAUGHT)


def _without_memory(material: Material, plan: Plan, chosen: Sequence[bool] | None) -> Run:
    """Frames chosen beforehand; the leaf's answers are the configured model's own."""
    frames, share = len(material.region), plan.budget_share if plan.budget_share is not None else 1.0
    seen = next(iter(material.leaf.values()))
    instant = [Detections(each for each in found if each.score >= material.publish_from) for found in seen]
    if chosen is not None:
        inferred = [bool(each) for each in chosen]
    elif plan.policy == RANDOM:
        inferred = _at_random(frames, share, plan.seed).tolist()
    elif plan.policy == UNIFORM:
        inferred = [int((frame + 1) * share) > int(frame * share) for frame in range(frames)]
    elif plan.policy in (LEAF, REGION):
        inferred = [plan.policy == REGION] * frames
    else:
        raise ValueError(
            f"policy {plan.policy!r} has a memory: expected one of {', '.join((LEAF, REGION, RANDOM, UNIFORM, ORACLE))} without"
        )
    return _run(material, plan, instant, inferred, PLAIN)


def _at_random(frames: int, share: float, seed: int | None) -> np.ndarray:
    """So many frames, exactly, without regard to what is in them."""
    chosen = np.zeros(frames, bool)
    chosen[np.random.default_rng(seed or 0).permutation(frames)[: round(share * frames)]] = True
    return chosen


def _run(material: Material, plan: Plan, instant: list[Detections], inferred: list[bool], setting: str) -> Run:
    joined = [material.region[frame] if asked else instant[frame] for frame, asked in enumerate(inferred)]
    everywhere = plan.policy == REGION  # the leaf does not look at all
    up = [0] * len(instant) if everywhere else lanes.verdicts(instant, material.fps, tier=Tier.LEAF, model=material.models[0])
    down = lanes.verdicts(
        [material.region[frame] if asked else None for frame, asked in enumerate(inferred)],
        material.fps,
        tier=Tier.REGION,
        model=material.models[1],
    )
    asked_of = [
        lanes.escalation(frame, instant[frame], material.evidence_bytes[frame], material.fps) if asked else 0
        for frame, asked in enumerate(inferred)
    ]
    return Run(
        policy="everything" if plan.mode == "everything" else plan.policy,
        budget_share=plan.budget_share,
        setting=setting,
        seed=plan.seed,
        instant=instant,
        joined=joined,
        inferred=inferred,
        bytes_by_lane={"escalations": asked_of, "verdicts": up, "region.verdicts": down},
    )
