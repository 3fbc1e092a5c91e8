"""Tracks: one number an object, through noise, gaps and crossings, whatever the frame rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.cascade import tracks
from agents.cascade.boxes import Boxes, cornered
from agents.cascade.tracks import Followed, Tracker


def boxes(*rows: tuple[float, float, float, float], scores: float = 0.8, label: str = "person") -> Boxes:
    """Boxes by centre and size."""
    table = np.asarray(rows, np.float64).reshape(-1, 4)
    return Boxes((label,) * len(rows), np.full(len(rows), scores), cornered(table))


def walk(tracker: Tracker, places: list[list[tuple[float, float]]], fps: float) -> list[Followed]:
    """Objects of one size at given centres, frame by frame."""
    return [tracker.follow(boxes(*((x, y, 0.05, 0.15) for x, y in frame)), number / fps) for number, frame in enumerate(places)]


@pytest.mark.parametrize("fps", [5.0, 10.0, 30.0])
def test_an_object_that_walks_keeps_its_number(fps: float) -> None:
    steps = int(4 * fps)
    found = walk(Tracker(), [[(0.1 + 0.1 * step / fps, 0.5)] for step in range(steps)], fps)
    assert {int(each.tracks[0]) for each in found} == {1}
    assert found[-1].hits[0] == steps


def test_two_objects_that_pass_each_other_keep_their_numbers() -> None:
    fps, steps = 10.0, 40
    found = walk(Tracker(), [[(0.1 + 0.02 * step, 0.45), (0.9 - 0.02 * step, 0.55)] for step in range(steps)], fps)
    assert [set(each.tracks.tolist()) for each in found] == [{1, 2}] * steps
    assert found[-1].tracks.tolist() == found[0].tracks.tolist()


def test_an_object_that_is_missed_for_a_moment_is_expected_where_it_walks_to() -> None:
    tracker = Tracker()
    walk(tracker, [[(0.1 + 0.02 * step, 0.5)] for step in range(10)], 10.0)
    gone = tracker.follow(boxes(), 1.0)
    assert gone.seen == 0
    assert gone.tracks.tolist() == [1]
    assert gone.missed.tolist() == [1]
    assert gone.boxes.scores.tolist() == [0.0]
    middle = (gone.boxes.corners[0, 0] + gone.boxes.corners[0, 2]) / 2
    assert middle == pytest.approx(0.3, abs=0.02)
    again = tracker.follow(boxes((0.32, 0.5, 0.05, 0.15)), 1.1)
    assert again.tracks.tolist() == [1]
    assert again.missed.tolist() == [0]


def test_what_was_seen_too_seldom_is_not_believed_unseen_unless_it_is_known() -> None:
    tracker = Tracker()
    tracker.follow(boxes((0.5, 0.5, 0.1, 0.2)), 0.0)
    assert tracker.follow(boxes(), 0.1).tracks.tolist() == []
    other = Tracker()
    other.follow(boxes((0.5, 0.5, 0.1, 0.2)), 0.0)
    assert other.follow(boxes(), 0.1, np.array([1])).tracks.tolist() == [1]


def test_a_track_is_forgotten_and_its_number_is_not_used_again() -> None:
    tracker = Tracker()
    walk(tracker, [[(0.5, 0.5)]] * 5, 10.0)
    late = tracker.follow(boxes((0.5, 0.5, 0.05, 0.15)), 0.4 + tracks.COAST_S + 0.1)
    assert late.tracks.tolist() == [2]
    assert len(tracker) == 1


def test_a_track_keeps_its_label() -> None:
    tracker = Tracker()
    tracker.follow(boxes((0.5, 0.5, 0.1, 0.2)), 0.0)
    assert tracker.follow(boxes((0.5, 0.5, 0.1, 0.2), label="dog"), 0.1).tracks.tolist() == [2]


def test_the_strong_choose_first() -> None:
    """A weak double of an object does not take its track, even where it overlaps more."""
    tracker = Tracker()
    tracker.follow(boxes((0.5, 0.5, 0.1, 0.2)), 0.0)
    both = Boxes(("person",) * 2, np.array([0.9, 0.1]), cornered(np.array([[0.51, 0.5, 0.1, 0.2], [0.5, 0.5, 0.1, 0.2]])))
    assert tracker.follow(both, 0.1).tracks[0] == 1


def test_a_clock_that_runs_backwards_does_no_harm() -> None:
    tracker = Tracker()
    walk(tracker, [[(0.5, 0.5)]] * 5, 10.0)
    found = tracker.follow(boxes((0.5, 0.5, 0.05, 0.15)), -100.0)
    assert found.tracks.tolist() == [1]
    assert np.isfinite(found.expected).all()


def test_tracks_are_bounded() -> None:
    tracker, chance = Tracker(), np.random.default_rng(1)
    for frame in range(10):
        places = np.concatenate([chance.uniform(0.1, 0.9, (300, 2)), np.full((300, 2), 0.02)], axis=1)
        tracker.follow(Boxes(("person",) * 300, np.full(300, 0.9), cornered(places)), frame / 30)
        assert len(tracker) <= tracks.MAX_TRACKS + 300


frames = st.lists(
    st.lists(
        st.tuples(*(st.floats(0, 1) for _ in range(2)), *(st.floats(0, 0.5) for _ in range(2)), st.floats(0, 1), st.sampled_from("ab")),
        max_size=6,
    ),
    max_size=12,
)


@given(frames=frames, gaps=st.lists(st.floats(-1, 5), min_size=12, max_size=12))
@settings(deadline=None)
def test_every_detection_has_one_track_and_no_two_share_one(frames: list[list[tuple]], gaps: list[float]) -> None:
    tracker, at_s = Tracker(), 0.0
    for rows, gap in zip(frames, gaps, strict=False):
        at_s += gap
        table = np.asarray([row[:4] for row in rows], np.float64).reshape(-1, 4)
        given_boxes = Boxes(tuple(row[5] for row in rows), np.array([row[4] for row in rows]).reshape(-1), cornered(table))
        found = tracker.follow(given_boxes, at_s)
        assert found.seen == len(rows)
        assert len(set(found.tracks.tolist())) == len(found.tracks) == len(found.boxes.labels)
        assert np.array_equal(found.boxes.corners[: found.seen], given_boxes.corners)
        assert np.isfinite(found.boxes.corners).all()
        assert (found.hits >= 1).all()
        assert (found.missed >= 0).all()
        assert len(tracker) >= found.seen
