"""Runs added up: how right each is, what it costs, and how it stands against random and uniform choice, the leaf and the region."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import msgspec
import numpy as np

from infra.bench.cascade.calibration import calibration
from infra.bench.cascade.intervals import Interval, Resamples, Sampled, gap_closed, interval, mean_of_seeds
from infra.bench.cascade.matching import Matches, match
from infra.bench.cascade.runs import LEAF, RANDOM, REGION, UNIFORM, Run, Trial
from infra.bench.cascade.scoring import Scores, average_precision, f1_scores, score
from infra.bench.cascade.truths import Truths
from infra.bench.report import Machine

Kind = Literal["instant", "joined"]
KINDS: tuple[Kind, ...] = ("joined", "instant")
PACKAGES = ("headwater", "numpy", "opencv-python-headless", "simplejpeg", "av", "onnxruntime", "onnxruntime-gpu", "openvino", "river")


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What a run costs, over all frames from the first that is scored."""

    inferred_share: float
    bytes_by_lane: dict[str, float]
    bytes: float
    baseline_share: float | None  # of B0; None if that is nothing


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of answer of one policy with one budget and setting; figures are means over its seeds.

    Attributes
    ----------
    ap50_range
        The least and the greatest of its seeds, where there are several.
    ap50_interval
        Of AP50 itself.
    to_random, to_uniform, f1_to_random, f1_to_uniform
        The difference in AP50 (F1) to that policy with the same budget and setting.
    to_plain
        The difference in AP50 to random choice with the same budget and without memory (the empty setting).
    to_leaf, to_region
        The difference in AP50 to the leaf alone, and to the region everywhere.
    gap_closed
        The share of the gap in AP50 between the two that it closes; None where the gap may be nothing or the leaf is the better one.
    spends_more
        It infers more than 2 % more frames than random or uniform choice did, so a difference to them is not of the choice alone.
    """

    policy: str
    budget_share: float | None
    setting: str
    kind: Kind
    seeds: int
    ap50: float | None
    ap50_range: tuple[float, float] | None
    ap50_interval: Interval | None
    ap50_95: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    calibration_error: float | None
    cost: Cost
    to_random: Interval | None = None
    to_uniform: Interval | None = None
    f1_to_random: Interval | None = None
    f1_to_uniform: Interval | None = None
    to_plain: Interval | None = None
    to_leaf: Interval | None = None
    to_region: Interval | None = None
    gap_closed: Interval | None = None
    spends_more: bool = False
    by_label: dict[str, float | None] = {}

    @property
    def name(self) -> str:
        budget = "" if self.budget_share is None else f" {self.budget_share * 100:g} %"
        return f"{self.policy}{budget}" + (f", {self.setting}" if self.setting else "")


class Basis(msgspec.Struct, frozen=True, kw_only=True):
    """What the figures rest on."""

    video: str
    fps: float
    frames: int
    scored_from: int
    scored_frames: int
    truths: int
    labels: list[str]
    origin: str
    notes: list[str]
    operating_score: float
    baseline_bytes: int
    block_s: float
    blocks: int
    resamples: int
    level: float
    seed: int
    facts: dict[str, str]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole comparison."""

    machine: Machine
    versions: dict[str, str]
    basis: Basis
    rows: list[Row]


class _Judged(msgspec.Struct, frozen=True):
    """One kind of answer of the runs that differ by their seed alone."""

    runs: list[Run]
    scores: list[Scores]
    calibration: list[float | None]
    ap50: Sampled
    f1: Sampled


_Group = tuple[str, float | None, str]


def report(
    machine: Machine, trial: Trial, truths: Truths, runs: Sequence[Run], *, say: Callable[[int, int], None] = lambda done, total: None
) -> Report:
    """Judge all runs.

    Parameters
    ----------
    machine
        `infra.bench.report.machine()`, asked before the runs.
    truths
        Of all frames; those before `trial.scored_from` are left out here.
    say
        Is told how many of how many answers have been judged.

    Raises
    ------
    ValueError
        If a run is not of the same video, or no frame can be scored.
    """
    total = len(truths.frames)
    for name, frames in (*((run.name, len(run.instant)) for run in runs), ("baseline_bytes", len(trial.baseline_bytes))):
        if frames != total:
            raise ValueError(f"{name} has {frames} frames where the truths have {total}: expected the same video")
    scored = truths.only(range(trial.scored_from, total))
    known = scored.known
    if not known:
        raise ValueError(f"no frame from {trial.scored_from} on can be scored: {'; '.join((truths.origin, *truths.notes))}")
    rng = np.random.default_rng(trial.seed)
    block = max(1, round(trial.block_s * trial.fps))
    resamples = Resamples(total, start=known[0], stop=known[-1] + 1, block=block, count=trial.resamples, rng=rng)
    groups: dict[_Group, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.policy, run.budget_share, run.setting), []).append(run)
    judged: dict[tuple[_Group, Kind], _Judged] = {}
    for group, members in groups.items():
        for kind in KINDS:
            judged[group, kind] = _judge(trial, scored, members, kind, resamples, rng)
            say(len(judged), len(groups) * len(KINDS))
    labels = sorted(set(trial.labels)) if trial.labels is not None else scored.labels
    return Report(
        machine=machine,
        versions=versions(),
        basis=_basis(trial, truths, scored, labels, resamples),
        rows=[_row(trial, group, kind, judged, resamples.blocks) for kind in KINDS for group in groups],
    )


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The versions of what the figures depend on, of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _basis(trial: Trial, truths: Truths, scored: Truths, labels: list[str], resamples: Resamples) -> Basis:
    notes = list(truths.notes)
    block_s = resamples.block / trial.fps
    if resamples.block < round(trial.block_s * trial.fps):
        notes.append(f"too short for blocks of {trial.block_s:g} s: intervals rest on blocks of {block_s:.2g} s, and may be too narrow")
    counted = set(labels)
    return Basis(
        video=trial.video,
        fps=trial.fps,
        frames=len(truths.frames),
        scored_from=trial.scored_from,
        scored_frames=len(scored.known),
        truths=sum(not box.ignored and box.label in counted for boxes in scored.frames for box in boxes or ()),
        labels=labels,
        origin=truths.origin,
        notes=notes,
        operating_score=trial.operating_score,
        baseline_bytes=sum(trial.baseline_bytes[trial.scored_from :]),
        block_s=block_s,
        blocks=resamples.blocks,
        resamples=resamples.count,
        level=trial.level,
        seed=trial.seed,
        facts=dict(trial.facts),
    )


def _judge(trial: Trial, truths: Truths, runs: list[Run], kind: Kind, resamples: Resamples, rng: np.random.Generator) -> _Judged:
    scores, errors, ap50, f1 = [], [], [], []
    for run in runs:
        matches = match(truths, run.instant if kind == "instant" else run.joined)
        scores.append(score(matches, operating_score=trial.operating_score, labels=trial.labels))
        errors.append(calibration(matches, labels=trial.labels).error)
        ap50.append(_sampled(matches, resamples, lambda each, rows: average_precision(each, rows, labels=trial.labels)))
        f1.append(
            _sampled(
                matches, resamples, lambda each, rows: f1_scores(each, rows, operating_score=trial.operating_score, labels=trial.labels)
            )
        )
    return _Judged(runs, scores, errors, mean_of_seeds(ap50, rng), mean_of_seeds(f1, rng))


def _sampled(matches: Matches, resamples: Resamples, figure: Callable[[Matches, np.ndarray | None], np.ndarray]) -> Sampled:
    estimate = float(figure(matches, None)[0])
    return Sampled(estimate, np.concatenate([figure(matches, rows) for rows in resamples.weights()]))


def _row(trial: Trial, group: _Group, kind: Kind, judged: Mapping[tuple[_Group, Kind], _Judged], blocks: int) -> Row:
    policy, budget_share, setting = group
    own = judged[group, kind]
    random, uniform = (judged.get(((name, budget_share, setting), kind)) for name in (RANDOM, UNIFORM))
    plain = judged.get(((RANDOM, budget_share, ""), kind))
    leaf = _reference(judged, LEAF, setting, "instant")
    region = _reference(judged, REGION, setting, "joined")

    def against(other: _Judged | None, figure: Literal["ap50", "f1"] = "ap50") -> Interval | None:
        if other is None or other is own:
            return None
        difference = getattr(own, figure) - getattr(other, figure)
        return interval(difference.estimate, difference.samples, blocks=blocks, level=trial.level)

    cost = _cost(trial, own.runs)
    theirs = [_cost(trial, other.runs).inferred_share for other in (random, uniform) if other is not None and other is not own]
    values = [each.ap50 for each in own.scores if each.ap50 is not None]
    return Row(
        policy=policy,
        budget_share=budget_share,
        setting=setting,
        kind=kind,
        seeds=len(own.runs),
        ap50=_mean(each.ap50 for each in own.scores),
        ap50_range=(min(values), max(values)) if len(values) > 1 else None,
        ap50_interval=interval(own.ap50.estimate, own.ap50.samples, blocks=blocks, level=trial.level),
        ap50_95=_mean(each.ap50_95 for each in own.scores),
        precision=_mean(each.precision for each in own.scores),
        recall=_mean(each.recall for each in own.scores),
        f1=_mean(each.f1 for each in own.scores),
        calibration_error=_mean(own.calibration),
        cost=cost,
        to_random=against(random),
        to_uniform=against(uniform),
        f1_to_random=against(random, "f1"),
        f1_to_uniform=against(uniform, "f1"),
        to_plain=against(plain),
        to_leaf=against(leaf),
        to_region=against(region),
        gap_closed=gap_closed(own.ap50, leaf.ap50, region.ap50, blocks=blocks, level=trial.level) if leaf and region else None,
        spends_more=any(cost.inferred_share > 1.02 * share for share in theirs),
        by_label={label: _mean(each.by_label[label].ap50 for each in own.scores) for label in own.scores[0].by_label},
    )


def _reference(judged: Mapping[tuple[_Group, Kind], _Judged], policy: str, setting: str, kind: Kind) -> _Judged | None:
    """The leaf's or the region's own answers: of the setting, else of the empty one."""
    found = {group[2]: each for (group, of), each in judged.items() if group[0] == policy and of == kind}
    return found.get(setting) or found.get("")


def _cost(trial: Trial, runs: Sequence[Run]) -> Cost:
    start = trial.scored_from
    lanes: dict[str, float] = {}
    for run in runs:
        for lane, sizes in run.bytes_by_lane.items():
            lanes[lane] = lanes.get(lane, 0.0) + sum(sizes[start:]) / len(runs)
    total, baseline = sum(lanes.values()), sum(trial.baseline_bytes[start:])
    shares = [sum(run.inferred[start:]) / (len(run.inferred) - start) for run in runs]
    return Cost(
        inferred_share=sum(shares) / len(shares),
        bytes_by_lane=lanes,
        bytes=total,
        baseline_share=total / baseline if baseline else None,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
