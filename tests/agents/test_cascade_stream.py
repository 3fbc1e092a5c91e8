"""One source's cascade: late verdicts, snapshots, determinism; and what a site asks with its budgets."""

from __future__ import annotations

import datetime as dt

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.cascade.budgets import Budgets
from agents.cascade.cascade import Cascade, Lesson
from agents.cascade.governor import Governor
from agents.cascade.stream import SNAPSHOTS, Stream
from agents.cascade.timeline import Timeline
from agents.cascade.values import VALUES, ExpectedGain, Uncertainty, Uniform
from schemas.detections import Detection, Detections
from schemas.messages import Reason

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)


def person(x: float, score: float = 0.6, y: float = 0.5, width: float = 0.05, label: str = "person") -> Detection:
    return Detection(label, score, x - width / 2, y - 0.1, x + width / 2, y + 0.1)


def scene(chance: np.random.Generator, frame: int) -> tuple[Detections, Detections]:
    """Four people who walk, of whom the leaf is half sure, and two posts that it takes for people; and what the region sees."""
    people = [0.1 + 0.2 * index + 0.002 * frame for index in range(4)]
    leaf = [person(x, float(np.clip(0.45 + chance.normal(0, 0.1), 0.1, 0.9))) for x in people if x < 0.95]
    posts = [person(0.15 + 0.6 * index, float(np.clip(0.5 + chance.normal(0, 0.1), 0.1, 0.9)), y=0.85) for index in range(2)]
    return Detections([*leaf, *posts]), Detections([person(x, 0.8) for x in people if x < 0.95])


def test_teaching_raises_what_is_right_and_lowers_what_is_not() -> None:
    chance, stream = np.random.default_rng(1), Stream(publish_from=0.05)
    for frame in range(300):
        seen, region = scene(chance, frame % 50)
        view = stream.see(frame / 10, seen)
        if frame % 3 == 0:
            stream.ask(str(frame), view)
            stream.hear(str(frame), region)
    answer = stream.detections(stream.see(30.0, scene(chance, 50)[0]))
    right = [each.score for each in answer if each.y1 < 0.7]
    wrong = [each.score for each in answer if each.y1 > 0.7]
    assert len(right) == 4
    assert min(right) > 0.8
    assert not wrong or max(wrong) < 0.2


def test_without_teaching_the_answer_is_the_models_own_with_tracks() -> None:
    chance, stream = np.random.default_rng(2), Stream(publish_from=0.25, teach=False)
    for frame in range(60):
        seen, region = scene(chance, frame % 50)
        view = stream.see(frame / 10, seen)
        stream.ask(str(frame), view)
        stream.hear(str(frame), region)
        answer = stream.detections(view)
        assert sorted((d.score, d.x0) for d in answer) == sorted((d.score, d.x0) for d in seen if d.score >= 0.25)
        assert all(d.track is not None for d in answer)


def test_a_late_verdict_is_held_against_its_own_frame() -> None:
    """People have walked on when the verdict comes: judged by the present frame none of them would be right."""
    stream = Stream(publish_from=0.05)
    walker = [Detections([person(0.05 + 0.04 * frame)]) for frame in range(20)]
    views = [stream.see(frame / 10, seen) for frame, seen in enumerate(walker)]
    stream.ask("3", views[3])
    for frame in range(20):
        stream.see(2 + frame / 10, Detections())
    heard = stream.hear("3", Detections([person(0.17, 0.9)]))
    assert heard is not None
    assert (heard.shared, heard.wrong, heard.missed) == (1, 0, 0)


def test_a_verdict_is_heard_once_and_only_on_what_was_asked() -> None:
    stream = Stream(publish_from=0.25)
    view = stream.see(0.0, Detections([person(0.5)]))
    stream.ask("a", view)
    assert stream.hear("b", Detections()) is None
    assert stream.hear("a", Detections()) is not None
    weights = stream.corrector.weights.copy()
    assert stream.hear("a", Detections()) is None
    assert np.array_equal(weights, stream.corrector.weights)


def test_snapshots_are_bounded() -> None:
    stream = Stream(publish_from=0.25)
    for frame in range(SNAPSHOTS + 10):
        stream.ask(str(frame), stream.see(frame / 10, Detections([person(0.5)])))
    assert len(stream.asked) == SNAPSHOTS
    assert stream.hear("9", Detections()) is None
    assert stream.hear("10", Detections()) is not None


def test_another_model_begins_anew_and_is_not_taught_by_its_predecessors_frames() -> None:
    stream = Stream(publish_from=0.25)
    view = stream.see(0.0, Detections([person(0.5)]))
    stream.ask("a", view)
    stream.look_with("other")
    weights = stream.corrector.weights.copy()
    assert stream.hear("a", Detections()) is not None
    assert np.array_equal(weights, stream.corrector.weights)


def taught(frames: int = 200) -> tuple[Cascade, Budgets]:
    """A cascade that has asked about every second frame of a scene and was answered."""
    budgets = Budgets(bytes_per_s=1e9, inferences_per_s=1e9, burst_s=1, clock=lambda: 0.0)
    cascade = Cascade(mode="everything", value=ExpectedGain(), budgets=budgets, choices=[(224,), (320,)], publish_from=0.05)
    chance = np.random.default_rng(7)
    for frame in range(frames):
        seen, region = scene(chance, frame % 50)
        view = cascade.see("gate", frame / 10, seen)
        if frame % 2:
            cascade.ask("gate", str(frame), view, frame / 10, {(224,): seen, (320,): region})
            cascade.hear("gate", str(frame), region)
    return cascade, budgets


def test_what_was_learned_outlives_the_process() -> None:
    """Written down and read back, as JSON, it answers the next frames as if nothing had happened but that tracks begin anew."""
    before, budgets = taught()
    lessons = msgspec.json.decode(msgspec.json.encode(before.lessons()), type=dict[str, Lesson])
    assert not before.lessons(), "it is told once"
    after = Cascade(mode="everything", value=ExpectedGain(), budgets=budgets, choices=[(224,), (320,)], publish_from=0.05)
    assert after.recall("gate", lessons["gate"])
    assert not after.recall("gate", lessons["gate"]), "what is known is not taken up again"
    assert after.sizes("gate") == before.sizes("gate")
    chance = np.random.default_rng(8)
    for frame in range(20):
        seen, _ = scene(chance, frame)
        one, other = (each.see("gate", 100 + frame / 10, seen) for each in (before, after))
        assert before.value.worth(one, 1.0) == after.value.worth(other, 1.0)
        assert [d.score for d in before.answer("gate", one)] == [d.score for d in after.answer("gate", other)]


def test_what_was_learned_about_other_sizes_is_refused() -> None:
    lessons = taught(20)[0].lessons()
    budgets = Budgets(bytes_per_s=1e9, inferences_per_s=1e9, burst_s=1, clock=lambda: 0.0)
    other = Cascade(mode="everything", value=ExpectedGain(), budgets=budgets, choices=[(416,)], publish_from=0.05)
    with pytest.raises(ValueError, match="sizes"):
        other.recall("gate", lessons["gate"])


def test_a_model_that_comes_back_knows_what_it_was_taught() -> None:
    """A smaller model looks for a while, since the configured one fails: its scores mean something else."""
    chance, stream = np.random.default_rng(1), Stream(publish_from=0.05)
    stream.look_with("first")
    for frame in range(100):
        seen, region = scene(chance, frame % 50)
        stream.ask(str(frame), stream.see(frame / 10, seen))
        stream.hear(str(frame), region)
    weights = stream.corrector.weights.copy()
    stream.look_with("second")
    assert not np.array_equal(weights, stream.corrector.weights)
    stream.look_with("first")
    assert np.array_equal(weights, stream.corrector.weights)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.floats(-1e5, 1e5)), max_size=60),
)
def test_a_streams_time_never_goes_back_and_no_frame_counts_twice(frames: list[tuple[int, int, float]]) -> None:
    timeline, seen, last = Timeline(), set[tuple[int, int]](), -np.inf
    for epoch, sequence, captured_s in frames:
        at_s = timeline.place(str(epoch), sequence, NOON + dt.timedelta(seconds=captured_s))
        later = any(each == epoch and known >= sequence for each, known in seen)
        assert (at_s is None) == later
        seen.add((epoch, sequence))
        if at_s is not None:
            assert at_s >= last
            last = at_s


def test_a_clock_that_is_set_back_does_not_stop_a_streams_time() -> None:
    timeline = Timeline()
    before = [timeline.place("a", n, NOON + dt.timedelta(seconds=7200 + n / 10)) for n in range(3)]
    after = [timeline.place("a", 3 + n, NOON + dt.timedelta(seconds=n / 10)) for n in range(3)]
    steps = np.diff([each for each in (*before, *after) if each is not None])
    assert steps.tolist() == pytest.approx([0.1] * 5)


def test_what_only_the_region_sees_is_followed_for_a_moment() -> None:
    stream = Stream(publish_from=0.05)
    view = stream.see(0.0, Detections())
    stream.ask("a", view)
    stream.hear("a", Detections([person(0.5, 0.9)]))
    followed = stream.see(0.1, Detections()).followed
    assert len(followed.tracks) == 1
    assert followed.seen == 0


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=10)
def test_the_same_frames_and_verdicts_give_the_same_beliefs(seed: int) -> None:
    def play() -> list[Detections]:
        chance, stream, said = np.random.default_rng(seed), Stream(publish_from=0.05), []
        for frame in range(40):
            seen, region = scene(chance, frame)
            view = stream.see(frame / 10, seen)
            said.append(stream.detections(view))
            if chance.random() < 0.4:
                stream.ask(str(frame), view)
            if frame >= 5:
                stream.hear(str(frame - 5), region)
        return said

    assert play() == play()


# ---- what is asked


def play(
    value: str, share: float, *, sources: tuple[str, ...] = ("easy",), seconds: float = 120.0, fps: float = 10.0
) -> dict[str, list[float]]:
    """The times at which a cascade asks about each source; those of one that is not easy have frames that are hard to judge."""
    now = [0.0]
    budgets = Budgets(bytes_per_s=1e9, inferences_per_s=share * fps * len(sources), burst_s=5, clock=lambda: now[0])
    cascade = Cascade(mode="budgeted", value=VALUES[value](), budgets=budgets, choices=[(224,)], publish_from=0.25, teach=False)
    chance = np.random.default_rng(3)
    asked: dict[str, list[float]] = {source: [] for source in sources}
    for frame in range(int(seconds * fps)):
        for number, source in enumerate(sources):
            now[0] = (frame + number / len(sources)) / fps
            middle = 0.95 if source == "easy" else 0.5
            view = cascade.see(
                source, now[0], Detections([person(0.2 * each, middle + chance.uniform(-0.04, 0.04)) for each in range(1, 5)])
            )
            if cascade.wants(source, view, now[0], 10_000) and budgets.take(Reason.UNCERTAIN, 10_000) is None:
                asked[source].append(now[0])
                cascade.ask(source, str(frame), view, now[0])
                truth = [person(0.2 * each, 0.9) for each in range(1, 5) if source == "easy" or chance.random() < 0.5]
                cascade.hear(source, str(frame), Detections(truth))
    return asked


@pytest.mark.parametrize("value", sorted(VALUES))
@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5])
def test_a_budget_is_used_and_not_passed(value: str, share: float) -> None:
    asked = play(value, share)["easy"]
    allowed = share * 1200
    assert len(asked) <= allowed + 5 * share * 10 + 1  # what a full bucket holds at the beginning
    assert len(asked) >= 0.9 * allowed


def test_uniform_asks_at_even_distances() -> None:
    asked = play("uniform", 0.1)["easy"]
    gaps = np.diff([each for each in asked if each > 30])
    assert gaps.max() < 2.5 * gaps.mean()


@pytest.mark.parametrize("value", ["uncertainty", "expected-gain"])
def test_a_source_that_is_hard_to_judge_gets_the_larger_share(value: str) -> None:
    asked = play(value, 0.1, sources=("easy", "hard"))
    assert len(asked["hard"]) > 1.5 * len(asked["easy"])
    assert len(asked["easy"]) > 0


def test_a_threshold_follows_the_spending() -> None:
    governor = Governor()
    start = governor.threshold
    for _ in range(200):
        governor.account(spent=0.3, passed_s=0.1)
    assert governor.threshold > start
    for _ in range(2000):
        governor.account(spent=0.0, passed_s=0.1)
    assert governor.threshold < start


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(1e-4, 1.0)), max_size=200))
@settings(deadline=None)
def test_a_threshold_stays_a_number(steps: list[tuple[float, float]]) -> None:
    governor = Governor()
    for spent, passed_s in steps:
        governor.account(spent, passed_s)
        assert 0 < governor.threshold < float("inf")


def test_off_asks_nothing_and_everything_asks_what_the_budget_allows() -> None:
    now = [0.0]

    def asked(mode: str) -> int:
        budgets = Budgets(bytes_per_s=1e9, inferences_per_s=5, burst_s=1, clock=lambda: now[0])
        cascade = Cascade(mode=mode, value=Uncertainty(), budgets=budgets, choices=[(224,)], publish_from=0.25)  # type: ignore[arg-type]
        count = 0
        for _ in range(100):
            now[0] += 0.1
            view = cascade.see("gate", now[0], Detections())
            count += cascade.wants("gate", view, now[0], 100) and budgets.take(Reason.UNCERTAIN, 100) is None
        return count

    assert asked("off") == 0
    assert 48 <= asked("everything") <= 56


def test_an_expected_gain_learns_which_frames_the_region_changes() -> None:
    """Frames with a newcomer are changed, frames without are not; uncertainty says the opposite."""
    chance, stream, gain = np.random.default_rng(4), Stream(publish_from=0.25, teach=False), ExpectedGain()
    at_s = 0.0
    worths: dict[bool, list[float]] = {True: [], False: []}
    for round_ in range(400):
        newcomer = bool(chance.random() < 0.5)
        at_s += 0.1
        steady = [person(0.3, 0.5), person(0.6, 0.5)]
        seen = [*steady, person(chance.uniform(0.1, 0.9), 0.45, y=0.15)] if newcomer else steady
        view = stream.see(at_s, Detections(seen))
        stream.ask(str(round_), view)
        truth = [person(0.3, 0.9), person(0.6, 0.9), *([person(0.9, 0.9, y=0.3)] if newcomer else [])]
        heard = stream.hear(str(round_), Detections(truth))
        assert heard is not None
        if round_ > 200:
            worths[newcomer].append(gain.worth(view, 0.1))
        gain.learn(view, 0.1, heard)
    assert np.mean(worths[True]) > 2 * np.mean(worths[False])


def test_uniform_values_time_alone() -> None:
    view = Stream(publish_from=0.25).see(0.0, Detections())
    assert Uniform().worth(view, 3.0) == 3.0
    assert Uniform().worth(view, float("inf")) < float("inf")
