"""The proof of live accuracy: simulated scenes have the accuracy that they state, and intervals that do not hold it are found out."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from agents.cascade import spread
from infra.bench.coverage import Cell, Report, coverage
from infra.bench.decisions import SCORES, STREAMS, errors, kept_risk, preference
from infra.bench.scenes import SCENES, Scene, Truth
from infra.cli import bench_coverage

RUNS, FRAMES = 40, 30_000


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_a_scene_has_the_accuracy_that_it_states(scene: Scene) -> None:
    """Within four standard errors, as they are between runs."""
    sums = np.array([[each.sum() for each in scene.play(FRAMES, np.random.default_rng([7, run]))] for run in range(RUNS)], float)
    for index in range(3):
        alone = [Truth.of(*np.delete(sums, run, axis=0).sum(0))[index] for run in range(RUNS)]
        error = np.sqrt((RUNS - 1) ** 2 / RUNS * np.var(alone, ddof=1))  # of the ratio of sums, by the jackknife
        assert abs(Truth.of(*sums.sum(0))[index] - scene.truth()[index]) < 4 * error


def test_a_second_model_sees_less_well_by_as_much_as_is_stated() -> None:
    scene = SCENES[0]
    first, second = scene.play_pair(200_000, np.random.default_rng(1), 0.5)
    for frames, harder in ((first, 0.0), (second, 0.5)):
        recall = frames.tp.sum() / (frames.tp + frames.fn).sum()
        assert recall == pytest.approx(scene.truth(harder).recall, abs=0.003)
    assert np.array_equal(first.tp + first.fn, second.tp + second.fn), "they look at the same objects"


def test_our_intervals_hold_where_the_plain_ones_do_not() -> None:
    cells = coverage(SCENES[3], 150, seed=4, frames=(50_000,))
    assert [(cell.of, cell.measure) for cell in cells[::2]] == [("stream", "precision"), ("stream", "recall"), ("stream", "f1")]
    for cell in cells:
        assert cell.promised
        assert cell.holds, cell
    for cell in cells[::2]:
        assert cell.blocks is not None
        assert cell.singles is not None
        assert cell.singles < cell.blocks < cell.covered


def test_intervals_that_are_too_narrow_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if frames were independent."""

    def narrow(values: Any, at: Any, *, once: Any = False) -> spread.Spread:
        return spread.Spread((np.asarray(values) ** 2).sum(-1), np.full(np.shape(values)[:-1], 1e6))

    monkeypatch.setattr(spread, "spread", narrow)
    assert not any(cell.holds for cell in coverage(SCENES[3], 60, seed=3, frames=(50_000,)) if cell.of == "stream")


def test_a_risk_that_is_passed_too_often_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    (kept,) = kept_risk(STREAMS[3], 60, seed=1, records=(1000,), memories=(5.0,))
    assert kept.holds
    assert kept.naive > 0.8
    (_,) = kept_risk(STREAMS[0], 20, seed=1, records=(1000,), memories=(5.0,))
    monkeypatch.setattr("infra.bench.decisions.risk.choose", lambda sure, wrong, alpha, delta: _Always())
    (passed,) = kept_risk(STREAMS[3], 60, seed=1, records=(1000,), memories=(5.0,))
    assert (passed.passed, passed.holds) == (1.0, False)


class _Always:
    threshold = 0.0


def small_report() -> Report:
    return Report(
        seed=1,
        replays=20,
        accuracy=coverage(SCENES[2], 20, seed=1, frames=(12_000, 30_000)),
        risk=list(kept_risk(STREAMS[2], 20, seed=1, records=(300,), memories=(0.0,))),
        preference=[preference(SCENES[2], 0.5, 2, seed=1, frames=60_000, looks=3)],
        calibration=[errors(*SCORES[0], 200, 20, seed=1)],
    )


def test_the_command_prints_it_all_and_says_whether_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = small_report()
    asked = []
    monkeypatch.setattr("infra.bench.coverage.prove", lambda replays, *, seed, say: asked.append((replays, seed)) or found)
    ran = CliRunner().invoke(bench_coverage.coverage, ["--replays", "20", "--seed", "4"], standalone_mode=False)
    assert (ran.return_value, asked) == (0, [(20, 4)])
    for text in ("ten seconds", "30,000", "seldom wrong", "leaf better by", "calibrated", "everything promised holds; 20 replays"):
        assert text in ran.output
    ran = CliRunner().invoke(bench_coverage.coverage, ["--json"], standalone_mode=False)
    printed = json.loads(ran.output)
    assert printed["holds"] is True
    assert msgspec.convert(printed, Report) == found


def test_it_fails_if_something_promised_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    found = small_report()
    cells = [msgspec.structs.replace(cell, covered=0.8) if cell.of == "stream" else cell for cell in found.accuracy]
    for broken in (
        msgspec.structs.replace(found, accuracy=cells),
        msgspec.structs.replace(found, risk=[msgspec.structs.replace(each, passed=0.3) for each in found.risk]),
    ):
        monkeypatch.setattr("infra.bench.coverage.prove", lambda replays, *, seed, say, broken=broken: broken)
        ran = CliRunner().invoke(bench_coverage.coverage, [], standalone_mode=False)
        assert ran.return_value == 1
        assert "not everything promised holds" in ran.output


def test_short_windows_are_shown_and_not_promised() -> None:
    def cell(episodes: float, of: str = "stream") -> Cell:
        return Cell(
            scene="x",
            rates="even",
            of=of,
            measure="f1",
            frames=1,
            audited=1,
            episodes=episodes,
            replays=1000,
            unknown=0,
            covered=0.9,
            width=1,
        )

    assert (cell(10).promised, cell(9.9).promised, cell(9.9, "window").promised) == (True, False, True)
    for covered, within, holds in ((0.9, False, False), (0.92, False, True), (0.93, True, True), (0.97, True, True), (0.99, False, False)):
        found = msgspec.structs.replace(cell(10), covered=covered)
        assert (found.within, found.holds) == (within, holds)
