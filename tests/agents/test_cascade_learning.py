"""What verdicts teach: the corrector against a known truth, the gate against chance, and the choice of input sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.cascade.boxes import Boxes, Floats, cornered, greedy, ious, logit, sigmoid
from agents.cascade.corrector import Corrector
from agents.cascade.eyes import Eyes
from agents.cascade.features import BOX_FEATURES, SCORE_FEATURES, Features, Told
from agents.cascade.gate import EVERY, Gate, Mark, average_precision, average_precisions, mark


def known(chance: np.random.Generator, count: int) -> Features:
    score = chance.normal(0, 1, (count, SCORE_FEATURES))
    return Features(score, chance.normal(0, 0.3, (count, BOX_FEATURES)), np.full(count, np.inf))


def test_a_corrector_that_has_learned_nothing_changes_nothing() -> None:
    chance = np.random.default_rng(0)
    facts = known(chance, 20)
    facts.score[:, 0] = logit(np.linspace(0.01, 0.99, 20))
    corners = np.sort(chance.uniform(0, 1, (20, 4)).reshape(20, 2, 2), axis=1).reshape(20, 4)
    assert Corrector().scores(facts) == pytest.approx(np.linspace(0.01, 0.99, 20))
    assert Corrector().moved(Boxes(("a",) * 20, np.ones(20), corners), facts) == pytest.approx(corners)


def test_it_finds_the_probability_behind_the_verdicts() -> None:
    """Scores that say .9 where the truth is .5, and one feature that tells: both are learned."""
    chance, corrector = np.random.default_rng(1), Corrector()
    truth = np.zeros(SCORE_FEATURES)
    truth[0], truth[1], truth[6] = 0.6, -1.0, 0.8
    for _ in range(400):
        facts = known(chance, 12)
        corrector.learn(facts, (chance.random(12) < sigmoid(facts.score @ truth)).astype(float))
    facts = known(chance, 2000)
    assert np.abs(corrector.scores(facts) - sigmoid(facts.score @ truth)).mean() < 0.05


def test_it_follows_a_stream_that_changes() -> None:
    chance, corrector = np.random.default_rng(2), Corrector()
    for sign in (1.0, -1.0):
        for _ in range(400):
            facts = known(chance, 12)
            corrector.learn(facts, (chance.random(12) < sigmoid(sign * 2 * facts.score[:, 6])).astype(float))
    assert corrector.weights[6] < -1.0


def test_it_learns_where_boxes_really_lie() -> None:
    chance, corrector = np.random.default_rng(3), Corrector()
    for _ in range(60):
        facts = chance.normal(0, 0.3, (8, BOX_FEATURES))
        facts[:, 0] = 1.0
        offset = np.tile([0.1, -0.05, 0.2, 0.0], (8, 1)) + 0.3 * facts[:, 5:9] + chance.normal(0, 0.02, (8, 4))
        corrector.learn_boxes(facts, offset)
    place = np.array([[0.5, 0.5, 0.2, 0.4]])
    plain = np.zeros((1, BOX_FEATURES))
    plain[0, 0] = 1.0
    moved = corrector.moved(Boxes(("a",), np.ones(1), cornered(place)), Features(np.zeros((1, SCORE_FEATURES)), plain, np.ones(1)))
    expected = cornered(np.array([[0.5 + 0.1 * 0.2, 0.5 - 0.05 * 0.4, 0.2 * 1.2, 0.4]]))
    assert moved == pytest.approx(expected, abs=0.004)


def test_what_it_learned_is_written_down_and_taken_up_exactly() -> None:
    chance, corrector = np.random.default_rng(4), Corrector()
    for _ in range(5):
        facts = known(chance, 7)
        corrector.learn(facts, (chance.random(7) < 0.5).astype(float))
        corrector.learn_boxes(facts.box, chance.normal(0, 0.1, (7, 4)))
    other = Corrector.load(corrector.dump())
    facts = known(chance, 7)
    right = (chance.random(7) < 0.5).astype(float)
    corrector.learn(facts, right), other.learn(facts, right)
    assert np.array_equal(corrector.scores(facts), other.scores(facts))
    assert other.boxes == corrector.boxes


@given(st.integers(0, 2**32), st.integers(0, 40))
@settings(deadline=None, max_examples=40)
def test_it_stays_finite_whatever_it_is_told(seed: int, count: int) -> None:
    chance, corrector = np.random.default_rng(seed), Corrector()
    for _ in range(20):
        facts = Features(chance.normal(0, 30, (count, SCORE_FEATURES)), chance.normal(0, 3, (count, BOX_FEATURES)), np.ones(count))
        corrector.learn(facts, np.full(count, float(chance.random() < 0.5)))
        corrector.learn_boxes(facts.box, np.clip(chance.normal(0, 3, (count, 4)), -0.5, 0.5))
        assert np.isfinite(corrector.weights).all()
        assert np.isfinite(corrector.box_weights).all()


# ---- marks


def answer(scores: list[float], hits: list[bool]) -> Boxes:
    """Boxes of which some lie on one of the truths of `truths`, each on its own."""
    corners = np.array(
        [[0.05 * n, 0.1, 0.05 * n + 0.04, 0.2] if hit else [0.05 * n, 0.8, 0.05 * n + 0.04, 0.9] for n, hit in enumerate(hits)]
    )
    return Boxes(("person",) * len(scores), np.asarray(scores, np.float64), corners.reshape(-1, 4))


def truths(count: int) -> Boxes:
    return answer([0.9] * count, [True] * count)


def slow_average_precision(scores: list[float], right: list[bool], total: int) -> float:
    """The area under the interpolated curve, point by point, as its definition says."""
    order = sorted(range(len(scores)), key=lambda n: -scores[n])
    points = []
    found = 0
    for rank, index in enumerate(order, 1):
        found += right[index]
        points.append((found / total, found / rank))
    area, before = 0.0, 0.0
    for place, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[place:])
        before = recall
    return area


@given(st.lists(st.tuples(st.floats(0.001, 0.999), st.booleans()), min_size=1, max_size=12, unique_by=lambda each: round(each[0], 4)))
@settings(deadline=None)
def test_average_precision_is_the_area_under_its_curve(rows: list[tuple[float, bool]]) -> None:
    scores, right = [round(score, 4) for score, _ in rows], [hit for _, hit in rows]
    marked = mark(answer(scores, right), truths(len(rows)), np.ones(len(rows), bool))
    assert average_precision([marked]) == pytest.approx(slow_average_precision(scores, right, len(rows)))


@given(st.integers(0, 1 << 16))
@settings(deadline=None)
def test_average_precisions_of_parts_are_those_of_their_frames_alone(seed: int) -> None:
    chance = np.random.default_rng(seed)
    marks = []
    for _ in range(12):
        scores, right = chance.random(5).round(1).tolist(), (chance.random(5) < 0.5).tolist()  # many are the same
        marks.append(mark(answer(scores, right), truths(5), np.ones(5, bool)))
    parts = chance.random((6, 12)) < 0.5
    found = average_precisions(marks, parts)
    for row, part in enumerate(parts):
        alone = [each for each, taken in zip(marks, part, strict=True) if taken]
        assert found[row].tolist() == pytest.approx([average_precision(alone, overlap) for overlap in range(2)])


@given(st.lists(st.tuples(st.lists(st.integers(1, 12), unique=True), st.integers(0, 9)), max_size=12), st.sets(st.integers(1, 12)))
@settings(deadline=None)
def test_what_was_said_of_tracks_is_what_the_latest_frame_s_verdict_said(verdicts: list[tuple[list[int], int]], gone: set[int]) -> None:
    told, said = Told(), dict[int, tuple[int, float]]()
    alive = np.arange(1, 13)
    for number, (tracks, at_s) in enumerate(verdicts):
        logits = np.array([(number + track) % 5 - 2.0 for track in tracks])
        told.note(np.array(tracks, np.int64), logits, at_s, np.tile(logits[:, None] / 10, 4), alive)
        said |= {
            track: (at_s, logit) for track, logit in zip(tracks, logits.tolist(), strict=True) if said.get(track, (at_s, 0.0))[0] <= at_s
        }
    left = np.array(sorted(set(range(1, 13)) - gone), np.int64)
    told.note(np.empty(0, np.int64), np.empty(0), 99.0, np.empty((0, 4)), left)
    said = {track: each for track, each in said.items() if track not in gone}
    assert told.tracks.tolist() == sorted(said)
    assert told.seen.tolist() == sorted(track for track, (_, logit) in said.items() if logit > 0)
    logits, age_s, offsets = told.of(np.arange(12, 0, -1), 10.0)
    assert logits.tolist() == [said[track][1] if track in said else 0.0 for track in range(12, 0, -1)]
    assert age_s.tolist() == [10.0 - said[track][0] if track in said else np.inf for track in range(12, 0, -1)]
    assert offsets.tolist() == pytest.approx(np.tile(logits[:, None] / 10, 4))


def test_what_matches_an_unsure_truth_counts_neither_way() -> None:
    sure = np.array([True, False, True])
    marked = mark(answer([0.9, 0.8, 0.7], [True, True, False]), truths(3), sure)
    assert marked == Mark([0.9, 0.7], [[True, False], [True, False]], 2)


def test_another_label_is_no_match() -> None:
    other = truths(2)._replace(labels=("dog", "dog"))
    assert mark(truths(2), other, np.ones(2, bool)).right == [[False, False], [False, False]]


def feed(gate: Gate, chance: np.random.Generator, rates: list[float], frames: int) -> list[int]:
    """Frames of six objects; each way finds each of them with its own probability, and is otherwise wrong with a low score."""
    chosen = []
    for _ in range(frames):
        draw = chance.random(6)
        answers = [answer(chance.uniform(0.3, 0.9, 6).round(3).tolist(), (draw < rate).tolist()) for rate in rates]
        chosen.append(gate.examine(answers, truths(6), np.ones(6, bool)))
    return chosen


def test_a_better_way_is_taken_and_left_when_it_is_worse() -> None:
    chance, gate = np.random.default_rng(5), Gate(2)
    assert feed(gate, chance, [0.6, 0.85], 96)[-1] == 1
    assert feed(gate, chance, [0.85, 0.5], 120)[-1] == 0


def test_a_way_that_is_no_better_is_seldom_taken() -> None:
    """Equal ways: by a margin of one standard error about one choice in six would be wrong; of worse ways hardly any."""
    equal = [feed(Gate(2), np.random.default_rng(seed), [0.7, 0.7], 64)[-1] for seed in range(40)]
    worse = [feed(Gate(2), np.random.default_rng(seed), [0.7, 0.62], 64)[-1] for seed in range(40)]
    assert sum(equal) <= 14
    assert sum(worse) <= 2


def test_few_frames_decide_nothing() -> None:
    assert set(feed(Gate(2), np.random.default_rng(6), [0.1, 0.9], 2 * EVERY - 1)) == {0}


# ---- input sizes


def trial(chance: np.random.Generator, rates: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], Boxes]:
    draw = chance.random(6)
    return {sizes: answer(chance.uniform(0.3, 0.9, 6).round(3).tolist(), (draw < rate).tolist()) for sizes, rate in rates.items()}


RATES = {(224,): 0.5, (320,): 0.7, (224, 320): 0.9}


def test_the_best_input_size_that_can_be_afforded_is_chosen() -> None:
    for at_most_s, best in ((1.0, (224, 320)), (0.015, (320,)), (0.001, (224,))):
        chance, eyes = np.random.default_rng(7), Eyes(tuple(RATES))
        eyes.allow({(224,): 0.008, (320,): 0.012, (224, 320): 0.02}, at_most_s)
        for _ in range(64):
            eyes.hear(trial(chance, RATES), truths(6), np.ones(6, bool))
        assert eyes.chosen == best


def test_a_size_that_is_no_longer_affordable_is_left_at_once() -> None:
    chance, eyes = np.random.default_rng(8), Eyes(tuple(RATES))
    for _ in range(64):
        eyes.hear(trial(chance, RATES), truths(6), np.ones(6, bool))
    assert eyes.chosen == (224, 320)
    eyes.allow({(224,): 0.008, (320,): 0.5, (224, 320): 0.5}, 0.1)
    assert eyes.chosen == (224,)


def test_trials_become_rare_and_none_are_wanted_without_a_choice() -> None:
    chance, eyes = np.random.default_rng(9), Eyes(tuple(RATES))
    wanted = []
    for _ in range(100):
        wanted.append(eyes.wants_trial())
        eyes.hear(trial(chance, RATES), truths(6), np.ones(6, bool))
    assert all(wanted[:48])
    assert sum(wanted[48:]) == 13
    alone = Eyes([(224,)])
    assert not alone.wants_trial()


def test_greedy_matching_serves_the_first_rows_first() -> None:
    overlap: Floats = ious(cornered(np.array([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]])), cornered(np.array([[0.5, 0.5, 0.2, 0.2]])))
    assert greedy(overlap, 0.5).tolist() == [0, -1]
