"""The cascade's comparison: figures, differences and goals from runs, and how they are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console

from infra.bench.cascade.goals import goals
from infra.bench.cascade.matching import match
from infra.bench.cascade.report import Kind, Report, Row, report
from infra.bench.cascade.runs import LEAF, RANDOM, REGION, UNIFORM, Run, Trial
from infra.bench.cascade.scoring import score
from infra.bench.cascade.tables import markdown, tables
from infra.bench.cascade.truths import Truth, Truths
from infra.bench.report import Machine
from schemas.detections import Detection, Detections

MACHINE = Machine(processor="a processor", cores=2, memory_bytes=8 << 30, system="Linux 6", python="3.11.7", load_before=0.1)
FRAMES, FPS = 200, 10.0
BOXES = [(x / 8, 0.25, x / 8 + 0.1, 0.75) for x in range(6)]
SHIFTED = [(x0, y0 + 0.3, x1, min(1.0, y1 + 0.3)) for x0, y0, x1, y1 in BOXES]
TRUTHS = Truths(frames=(tuple(Truth("person", *box) for box in BOXES),) * FRAMES, origin="made up", notes=("by hand",))


def answers(right: Sequence[int]) -> list[Detections]:
    """For each frame, how many of the six boxes are right; those that are not lie elsewhere."""
    return [Detections(Detection("person", 0.9 - at / 100, *(BOXES if at < count else SHIFTED)[at]) for at in range(6)) for count in right]


rng = np.random.default_rng(0)
LEAF_RIGHT = rng.integers(0, 6, FRAMES).tolist()
SEEN = answers(LEAF_RIGHT)
BEST = answers([6] * FRAMES)


def run(policy: str, budget: float | None, asked: Sequence[int], seed: int | None = None, **changes: Any) -> Run:
    chosen = set(asked)
    fields: dict[str, Any] = {
        "instant": SEEN,
        "joined": [BEST[at] if at in chosen else SEEN[at] for at in range(FRAMES)],
        "inferred": [at in chosen for at in range(FRAMES)],
        "bytes_by_lane": {"escalations": [1000 * (at in chosen) for at in range(FRAMES)], "verdicts": [10] * FRAMES},
    }
    return Run(policy=policy, budget_share=budget, seed=seed, **{**fields, **changes})


HARDEST = sorted(rng.permutation(FRAMES).tolist(), key=lambda at: LEAF_RIGHT[at])
RUNS = [
    run(LEAF, None, [], bytes_by_lane={}),
    run(REGION, None, range(FRAMES)),
    run(UNIFORM, 0.25, range(0, FRAMES, 4)),
    *(run(RANDOM, 0.25, rng.permutation(FRAMES)[:50].tolist(), seed=seed) for seed in range(4)),
    run("value", 0.25, HARDEST[:50]),
    run("worst", 0.25, HARDEST[-50:]),
    run("greedy", 0.25, HARDEST[:60]),
]
TRIAL = Trial(video="square.avi", fps=FPS, baseline_bytes=[10_000] * FRAMES, block_s=2, resamples=120, facts={"delay": "0 frames"})


def told(trial: Trial = TRIAL, runs: Sequence[Run] = RUNS, truths: Truths = TRUTHS) -> Report:
    return report(MACHINE, trial, truths, runs)


def row(found: Report, policy: str, kind: Kind = "joined") -> Row:
    (only,) = (row for row in found.rows if (row.policy, row.kind) == (policy, kind))
    return only


FOUND = told()


def test_a_row_is_the_score_and_the_cost_of_its_run() -> None:
    value, uniform = row(FOUND, "value"), row(FOUND, UNIFORM)
    expected = score(match(TRUTHS, RUNS[-3].joined), operating_score=TRIAL.operating_score)
    assert (value.ap50, value.ap50_95, value.f1, value.seeds) == (expected.ap50, expected.ap50_95, expected.f1, 1)
    assert uniform.cost.inferred_share == 0.25
    assert uniform.cost.bytes_by_lane == {"escalations": 50_000, "verdicts": 2_000}
    assert uniform.cost.baseline_share == pytest.approx(52_000 / 2_000_000)
    assert (row(FOUND, LEAF).cost.bytes, row(FOUND, LEAF).cost.inferred_share) == (0, 0)


def test_a_better_choice_is_above_random_and_uniform_and_a_worse_one_below() -> None:
    value, worst = row(FOUND, "value"), row(FOUND, "worst")
    for found in (value.to_random, value.to_uniform, value.f1_to_random, value.f1_to_uniform, value.to_leaf):
        assert found is not None
        assert found.above_zero
    assert worst.to_uniform is not None
    assert worst.to_uniform.below_zero
    assert row(FOUND, UNIFORM).to_uniform is None
    uniform = row(FOUND, UNIFORM).to_random
    assert uniform is not None
    assert not uniform.above_zero or not uniform.below_zero
    assert value.to_uniform is not None
    assert value.to_uniform.estimate == pytest.approx((value.ap50 or 0) - (row(FOUND, UNIFORM).ap50 or 0))


def test_the_gap_is_between_the_leafs_instant_and_the_regions_joined_answers() -> None:
    closed = row(FOUND, "value").gap_closed
    leaf, region = row(FOUND, LEAF).ap50 or 0, row(FOUND, REGION).ap50 or 0
    assert region == 1.0
    assert closed is not None
    assert closed.estimate == pytest.approx(((row(FOUND, "value").ap50 or 0) - leaf) / (region - leaf))
    assert row(FOUND, REGION).gap_closed is not None
    instant = row(FOUND, "value", "instant").gap_closed
    assert instant is not None
    assert (instant.estimate, instant.high) == (0.0, 0.0), "nothing was taught"
    corrected = told(runs=[run(LEAF, None, [], joined=BEST), *RUNS[1:2], run("value", 0.25, HARDEST[:50])])
    assert row(corrected, "value").gap_closed == closed, "what the leaf says later is not the leaf alone"


def test_no_gap_is_closed_where_the_leaf_is_the_better_one() -> None:
    swapped = [run(LEAF, None, [], instant=BEST, joined=BEST), run(REGION, None, range(FRAMES), joined=SEEN), *RUNS[2:]]
    found = told(runs=swapped)
    assert row(found, "value").gap_closed is None
    held = row(found, "value").to_leaf
    assert held is not None
    assert held.below_zero
    assert "here the region is worse than the leaf alone: AP50 -." in text(found)
    assert "the region is" not in text(FOUND)


def test_seeds_are_one_row_with_their_mean_and_range() -> None:
    random = row(FOUND, RANDOM)
    each = [score(match(TRUTHS, one.joined), operating_score=0.4).ap50 or 0 for one in RUNS if one.policy == RANDOM]
    assert random.seeds == 4
    assert random.ap50 == pytest.approx(np.mean(each))
    assert random.ap50_range == (min(each), max(each))


def test_frames_that_constants_were_chosen_on_count_for_nothing() -> None:
    trial = msgspec.structs.replace(TRIAL, scored_from=100)
    found = told(trial)
    assert (found.basis.scored_frames, found.basis.truths, found.basis.baseline_bytes) == (100, 600, 1_000_000)
    late = row(found, "value")
    assert late.ap50 == score(match(TRUTHS.only(range(100, FRAMES)), RUNS[-3].joined), operating_score=0.4).ap50
    assert late.cost.inferred_share == sum(at >= 100 for at in HARDEST[:50]) / 100
    assert late.cost.bytes_by_lane["verdicts"] == 1000


def test_runs_of_other_settings_are_compared_with_their_own_baselines() -> None:
    taught = [*RUNS[:2], run(UNIFORM, 0.25, range(100), setting="taught"), run("value", 0.25, range(100), setting="taught")]
    found = told(runs=[*taught, run(UNIFORM, 0.25, []), run(RANDOM, 0.25, [])])
    (value,) = (row for row in found.rows if (row.policy, row.setting, row.kind) == ("value", "taught", "joined"))
    assert value.to_uniform is not None
    assert (value.to_uniform.estimate, value.to_uniform.low, value.to_uniform.high) == (0, 0, 0)
    assert value.to_random is None
    assert value.gap_closed is not None, "the leaf and the region are the same in every setting"


def test_who_spends_more_is_marked() -> None:
    assert row(FOUND, "greedy").spends_more
    assert not row(FOUND, "value").spends_more


def test_the_calibration_error_is_of_each_kind_of_answer() -> None:
    region = row(FOUND, REGION)
    assert region.calibration_error == pytest.approx(1 - 0.875, abs=0.001)
    assert (row(FOUND, REGION, "instant").calibration_error or 0) > 0.2


def test_the_same_seed_gives_the_same_report_and_json_gives_it_back() -> None:
    assert told() == FOUND
    assert msgspec.json.decode(msgspec.json.encode(FOUND), type=Report) == FOUND
    other = told(msgspec.structs.replace(TRIAL, seed=1))
    assert row(other, "value").ap50_interval != row(FOUND, "value").ap50_interval


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Run.joined of value 25 %, clip has 3 entries: expected 200, one for each frame"):
        run("value", 0.25, [], joined=BEST[:3], setting="clip")
    with pytest.raises(ValueError, match=r"bytes_by_lane\['verdicts'\]"):
        run("value", 0.25, [], bytes_by_lane={"verdicts": [1]})
    with pytest.raises(ValueError, match="budget_share of value is 25"):
        run("value", 25, [])
    with pytest.raises(ValueError, match="baseline_bytes has 3 frames where the truths have 200"):
        told(msgspec.structs.replace(TRIAL, baseline_bytes=[1, 2, 3]))
    with pytest.raises(ValueError, match="no frame from 100 on can be scored: made up; by hand"):
        told(msgspec.structs.replace(TRIAL, scored_from=100), truths=TRUTHS.only(range(100)))


def test_a_video_that_is_too_short_for_its_blocks_says_so() -> None:
    found = told(msgspec.structs.replace(TRIAL, block_s=10))
    assert (found.basis.block_s, found.basis.blocks) == (4.0, 5)
    assert "too short for blocks of 10 s: intervals rest on blocks of 4 s" in found.basis.notes[-1]


def text(found: Report) -> str:
    screen = Console(width=160, record=True, force_terminal=False, file=open("/dev/null", "w"))  # noqa: SIM115
    screen.print(tables(found))
    return screen.export_text()


def test_the_tables_show_figures_with_their_intervals_and_what_they_rest_on() -> None:
    shown = text(FOUND)
    value = row(FOUND, "value")
    assert re.search(rf"value 25 % +{value.ap50:.3f}".replace("0.", r"\."), shown)
    assert re.search(r"random 25 % \(4 seeds\) +\.\d+ \(\.\d+–\.\d+\)", shown)
    assert re.search(r"value 25 %.* 2\.60 +\+\.\d+ \(\+\.\d+ to \+\.\d+\) +\+\.\d+", shown), "of B0, to random, to uniform"
    assert re.search(r"worst 25 % .*-\.\d+ \(-\.\d+ to -\.\d+\)", shown)
    assert re.search(r"greedy 25 % \*", shown)
    assert "region +1.000" not in shown
    assert "200 scored, with 1200 truths of person; truths: made up" in shown
    assert "120 resamples of 10 blocks of 2 s" in shown
    assert "delay: 0 frames" in shown
    assert "a processor, 2 cores, 8 GiB" in shown


def test_markdown_has_the_same_rows() -> None:
    lines = markdown(FOUND).splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len({line.count("|") for line in rows}) == 1
    assert len(rows) == 2 * (2 + 7)
    assert any(line.startswith("| greedy 25 % \\* |") for line in rows)
    assert "- by hand" in lines


def test_control_characters_of_names_are_shown_and_not_obeyed() -> None:
    found = told(msgspec.structs.replace(TRIAL, video="a\x1b[31mvideo", facts={"leaf": "x\x1b]0;y"}))
    assert "\x1b" not in text(found) + markdown(found)


def test_goals_say_which_promises_held() -> None:
    met = {goal.promise: goal.met for goal in goals(FOUND, beats=["value", "worst"], shipped=["value", "worst"])}
    assert met["value 25 %: above random choice at the same budget"]
    assert not met["worst 25 %: above random choice at the same budget"]
    assert met["value 25 %: not below uniform choice at the same budget"]
    assert not met["worst 25 %: not below uniform choice at the same budget"]
    assert met["value 25 %: not below the leaf alone"]
    assert not met["value 25 %, joined: closes 65% of the gap between the leaf and the region (reach)"]
    assert len(met) == 8


def test_everything_is_held_against_the_region_everywhere_and_its_bytes() -> None:
    cheap, dear = {"escalations": [200] * FRAMES}, {"escalations": [300] * FRAMES}
    for lanes, joined, kept in ((cheap, BEST, True), (dear, BEST, False), (cheap, [*BEST[20:], *SEEN[:20]], False)):
        found = told(runs=[*RUNS[:2], run("everything", None, range(FRAMES), bytes_by_lane=lanes, joined=joined)])
        (goal,) = goals(found, beats=[], shipped=[])
        assert (goal.met, "within 1% of the region" in goal.promise) == (kept, True)
