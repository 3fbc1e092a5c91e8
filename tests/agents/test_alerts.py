"""Rules judged frame by frame: what fires, what does not, and that a replay or a restart changes nothing."""

from __future__ import annotations

import datetime as dt
import itertools
import random
from collections import Counter
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agents.alerts
from agents.alerts import AlertRules, OnlySeen
from schemas.detections import Detections
from schemas.identity import alert_id
from schemas.messages import LATE_S, Alert, AlertState, Tier
from schemas.rules import Rule


def make(*rules: Rule) -> AlertRules:
    return AlertRules(rules, site="leaf-1", model_digest="d" * 64, deadline_ms=5000)


def rule(**fields: Any) -> Rule:
    return Rule(**{"name": "r", "cooldown_s": 0.0, **fields})


@pytest.fixture(scope="module")
def fired(tools: ModuleType) -> Any:
    """Names of the sequences at which a rule fires, for people seen (or not) at given seconds."""

    def run(rules: AlertRules, seen: list[tuple[float, bool]], source: str = "cam") -> list[int]:
        person = Detections([tools.person()])
        found = []
        for sequence, (at_s, there) in enumerate(seen):
            if rules.judge(tools.frame(source, sequence, at_s=at_s, jpeg=tools.picture(0)), person if there else Detections()):
                found.append(sequence)
        return found

    return run


# ---- what fires


def test_class_score_and_zone_decide_by_the_foot(tools: ModuleType) -> None:
    lower_left = ((0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (0.0, 1.0))
    rules = make(rule(min_score=0.6, zone=lower_left))
    inside = tools.person(0.6, x=0.25, foot=0.7)
    cases = [
        (inside, True),
        (tools.person(0.5999, x=0.25, foot=0.7), False),
        (tools.person(0.9, x=0.25, foot=0.7, label="dog"), False),
        (tools.person(0.9, x=0.75, foot=0.7), False),
        (tools.person(0.9, x=0.25, foot=0.49), False),
        (tools.person(0.9, x=0.25, foot=0.55), True),  # the box's middle lies outside, its foot within
        (tools.person(0.9, x=0.25, foot=0.5), True),  # on the border
    ]
    for sequence, (seen, expected) in enumerate(cases):
        alerts = rules.judge(tools.frame("cam", sequence), Detections([seen]))
        assert bool(alerts) is expected, seen


def test_an_alert_tells_the_best_object_and_can_be_judged_again_anywhere(tools: ModuleType) -> None:
    rules = make(rule(name="door", min_score=0.3, zone=((0, 0), (1, 0), (1, 1))))
    frame = tools.frame("cam", 7)
    (alert,) = rules.judge(
        frame, Detections([tools.person(0.4, x=0.6, foot=0.5), tools.person(0.8, x=0.9, foot=0.5), tools.person(0.9, x=0.1)])
    )
    assert (alert.rule, alert.source, alert.record, alert.captured_at) == ("door", "cam", "cam/e1/7", frame.captured_at)
    assert (alert.state, alert.version, alert.site, alert.deadline_ms) == (AlertState.RAISED, 0, "leaf-1", 5000)
    assert (alert.score, [d.score for d in alert.seen]) == (0.8, [0.8])
    assert (alert.label, alert.min_score, alert.zone.points) == ("person", 0.3, ((0, 0), (1, 0), (1, 1)))
    assert Alert.from_bytes(alert.to_bytes()) == alert


def test_ids_follow_from_rule_and_record_alone(tools: ModuleType) -> None:
    seen = Detections([tools.person()])
    ids = {
        (name, source, sequence): make(rule(name=name)).judge(tools.frame(source, sequence), seen)[0].id
        for name in ("a", "b")
        for source in ("cam-1", "cam-2")
        for sequence in (0, 1)
    }
    assert len(set(ids.values())) == 8
    again = make(rule(name="b")).judge(tools.frame("cam-2", 1, at_s=99.0), Detections([tools.person(0.5, x=0.1)]))
    assert again[0].id == ids["b", "cam-2", 1]


def test_several_rules_fire_on_one_frame_each_in_its_own_time(tools: ModuleType) -> None:
    rules = make(rule(name="now", cooldown_s=10), rule(name="dog", label="dog"), rule(name="later", min_duration_s=0.1, cooldown_s=10))
    seen = Detections([tools.person()])
    found = [[alert.rule for alert in rules.judge(tools.frame("cam", n), seen)] for n in range(3)]
    assert found == [["now"], ["later"], []]


def test_a_rule_without_sources_is_for_all_and_one_with_them_for_those(tools: ModuleType) -> None:
    rules = make(rule(name="all"), rule(name="some", sources=("cam-2", "gate%203")))
    seen = Detections([tools.person()])
    found = {s: [alert.rule for alert in rules.judge(tools.frame(s, 0), seen)] for s in ("cam-1", "cam-2")}
    assert found == {"cam-1": ["all"], "cam-2": ["all", "some"]}


# ---- time: duration, gaps, cool-down


def test_it_must_be_seen_for_the_duration_without_a_gap_of_over_a_second(fired: Any) -> None:
    hold = {"min_duration_s": 2.0, "cooldown_s": 1000.0}
    steady = [(n / 2, True) for n in range(6)]
    assert fired(make(rule(**hold)), steady) == [4]  # at 2.0 s
    assert fired(make(rule(**hold)), [(0, True), (1, True), (2, True)]) == [2]  # gaps of just a second
    assert fired(make(rule(**hold)), [(0, True), (1.001, True), (2, True), (3.0, True), (3.001, True)]) == [4]  # it began again at 1.001
    flicker = [(0, True), (0.5, False), (0.9, True), (1.5, False), (1.8, True), (2.0, True)]
    assert fired(make(rule(**hold)), flicker) == [5]  # unseen for less than a second is not gone


def test_the_cool_down_is_by_capture_time_per_rule_and_per_source(tools: ModuleType, fired: Any) -> None:
    rules = make(rule(cooldown_s=1.0))
    assert fired(rules, [(n * 0.25, True) for n in range(10)]) == [0, 4, 8]
    assert fired(rules, [(0.1, True)], source="cam-2") == [0]
    both = make(rule(name="a", cooldown_s=1.0), rule(name="b", cooldown_s=0.0))
    seen = Detections([tools.person()])
    assert [[a.rule for a in both.judge(tools.frame("cam", n), seen)] for n in range(3)] == [["a", "b"], ["b"], ["b"]]


def test_what_does_not_fire_starts_no_cool_down(fired: Any) -> None:
    assert fired(make(rule(min_duration_s=1.0, cooldown_s=5.0)), [(0, True), (0.5, True), (1.0, True), (3.0, True), (6.5, True)]) == [2]


def test_a_clock_that_is_set_back_neither_floods_nor_mutes(fired: Any) -> None:
    rules = make(rule(cooldown_s=10.0))
    hours = [(7200 + n, True) for n in range(3)] + [(n, True) for n in range(25)]
    assert fired(rules, hours) == [0, 3, 13, 23]
    seconds = [(100, True)] + [(95 + n, True) for n in range(20)]  # back by less than the cool-down: it ends when it would have
    assert fired(make(rule(cooldown_s=10.0)), seconds) == [0, 16]


# ---- order, repetition, restarts


def test_a_frame_that_comes_late_is_not_judged_and_one_that_comes_again_is_answered_the_same(tools: ModuleType) -> None:
    rules = make(rule())
    seen = Detections([tools.person()])
    first = {n: rules.judge(tools.frame("cam", n), seen) for n in (0, 1, 5)}
    assert all(first.values())
    assert rules.judge(tools.frame("cam", 3), seen) == []
    assert {n: rules.judge(tools.frame("cam", n), seen) for n in (5, 0, 1)} == {n: first[n] for n in (5, 0, 1)}


def test_a_new_epoch_begins_at_zero_and_the_old_one_is_not_forgotten(tools: ModuleType) -> None:
    rules = make(rule(cooldown_s=0.5))
    seen = Detections([tools.person()])
    assert rules.judge(tools.frame("cam", 100, epoch="old"), seen)
    assert rules.judge(tools.frame("cam", 0, epoch="new", at_s=20.0), seen)
    assert rules.judge(tools.frame("cam", 99, epoch="old"), seen) == []
    assert rules.judge(tools.frame("cam", 1, epoch="new", at_s=20.6), seen)


scenes = st.lists(
    st.tuples(st.sampled_from(["cam-1", "cam-2"]), st.integers(0, 3), st.booleans(), st.sampled_from([0.05, 0.4, 1.0, 1.2, 3.0])),
    max_size=40,
)
rule_sets = st.lists(
    st.builds(
        lambda duration, cooldown, score: {"min_duration_s": duration, "cooldown_s": cooldown, "min_score": score},
        st.sampled_from([0.0, 0.4, 1.0, 2.5]),
        st.sampled_from([0.0, 0.5, 2.0, 10.0]),
        st.sampled_from([0.3, 0.7]),
    ),
    min_size=1,
    max_size=3,
)


def _frames(tools: ModuleType, scene: Any) -> list[tuple[Any, Detections]]:
    frames, at_s = [], 0.0
    sequences: dict[tuple[str, str], int] = {}
    for source, epoch, there, step in scene:
        at_s += step
        name = f"e{epoch // 2}"  # two epochs
        sequences[source, name] = number = sequences.get((source, name), -1) + 1
        seen = Detections([tools.person(0.5 if epoch % 2 else 0.9)] if there else [])
        frames.append((tools.frame(source, number, epoch=name, at_s=at_s, jpeg=tools.picture(0)), seen))
    return frames


def _rules(rule_set: Any) -> AlertRules:
    return make(*(rule(name=f"r{n}", **fields) for n, fields in enumerate(rule_set)))


@given(scenes, rule_sets, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=150)
def test_a_replay_gives_the_same_alerts(tools: ModuleType, scene: Any, rule_set: Any, rnd: random.Random) -> None:
    frames = _frames(tools, scene)
    once, again = _rules(rule_set), _rules(rule_set)
    alerts = [once.judge(*each) for each in frames]
    assert [again.judge(*each) for each in frames] == alerts
    repeated = list(zip(frames, alerts, strict=True))
    rnd.shuffle(repeated)
    for each, expected in repeated:  # the same object, in any order: what was judged is answered as it was
        assert once.judge(*each) == expected


@given(scenes, rule_sets)
@settings(deadline=None, max_examples=150)
def test_the_cool_down_holds_and_nothing_is_raised_before_its_time(tools: ModuleType, scene: Any, rule_set: Any) -> None:
    rules = _rules(rule_set)
    raised: dict[tuple[str, str], list[dt.datetime]] = {}
    for frame, seen in _frames(tools, scene):
        for alert in rules.judge(frame, seen):
            assert alert.held_s >= rule_set[int(alert.rule[1:])]["min_duration_s"]
            assert alert.score >= rule_set[int(alert.rule[1:])]["min_score"]
            raised.setdefault((alert.rule, alert.source), []).append(alert.captured_at)
    for (name, _), times in raised.items():
        apart = [(b - a).total_seconds() for a, b in itertools.pairwise(times)]
        assert all(gap >= rule_set[int(name[1:])]["cooldown_s"] for gap in apart)


@given(scenes, rule_sets, st.data())
@settings(deadline=None, max_examples=150)
def test_a_restart_raises_the_same_alerts_again_and_no_others_for_what_it_reads_again(
    tools: ModuleType, scene: Any, rule_set: Any, data: st.DataObject
) -> None:
    """Frames are read again from the last commit on, by a process that remembers what the topic of alerts says."""
    frames = _frames(tools, scene)
    before = _rules(rule_set)
    alerts = [before.judge(*each) for each in frames]
    written = [alert for found in alerts for alert in found]
    commit = data.draw(st.integers(0, len(frames)))
    after = _rules(rule_set)
    stored = [judged(alert) if data.draw(st.booleans()) else alert for alert in written]
    after.recall([*stored, *(judged(alert) for alert in written if data.draw(st.booleans()))])
    often = Counter((alert.rule, alert.source) for alert in written)
    for each, expected in list(zip(frames, alerts, strict=True))[commit:]:
        # What is read again is seconds; who reads so much again that one rule fired more often than is remembered may hear more.
        found = [
            a for a in after.judge(*each) if often[a.rule, a.source] <= agents.alerts.FIRED or not rule_set[int(a.rule[1:])]["cooldown_s"]
        ]
        assert found == [a for a in expected if a in found or often[a.rule, a.source] <= agents.alerts.FIRED]


def judged(alert: Alert) -> Alert:
    return msgspec.structs.replace(alert, state=AlertState.CONFIRMED, version=3, decided_by=Tier.REGION)


def test_what_was_captured_between_two_alerts_is_not_a_third_after_a_restart(tools: ModuleType) -> None:
    seen = Detections([tools.person()])
    frames = [tools.frame("cam", n, at_s=at_s) for n, at_s in enumerate((0.0, 4.0, 30.0, 31.0))]
    before, after = make(rule(cooldown_s=10.0)), make(rule(cooldown_s=10.0))
    alerts = [before.judge(frame, seen) for frame in frames]
    assert [len(found) for found in alerts] == [1, 0, 1, 0]
    after.recall([judged(alert) for found in alerts for alert in found])
    assert [after.judge(frame, seen) for frame in frames[1:]] == alerts[1:]


# ---- memory


def test_what_is_remembered_is_bounded(tools: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents.alerts, "STREAMS", 50)
    monkeypatch.setattr(agents.alerts, "RAISED", 50)
    rules = make(rule(name="a"), rule(name="b"), rule(name="once", sources=("busy",), cooldown_s=9999.0))
    seen = Detections([tools.person()])
    once = 0
    for n in range(300):
        rules.judge(tools.frame(f"cam-{n}", 0, jpeg=tools.picture(0)), seen)
        found = rules.judge(tools.frame("busy", n, epoch=f"e{n}", jpeg=tools.picture(0)), seen)
        once += any(alert.rule == "once" for alert in found)
    assert once == 1  # who is heard of is not forgotten
    kept = {name: len(value) for name, value in vars(rules).items() if isinstance(value, dict)}
    assert max(kept.values()) <= 50, kept
    assert max(len(hold.fired) for hold in rules._holds.values()) <= agents.alerts.FIRED
    # its last frame is answered the same
    assert rules.judge(tools.frame("busy", 299, epoch="e299", jpeg=tools.picture(0)), seen)


# ---- lateness


def test_an_alert_says_how_long_its_frame_waited_by_the_brokers_clock_and_before_a_replay(tools: ModuleType) -> None:
    seen = Detections([tools.person()])
    rules = AlertRules([Rule(name="r", cooldown_s=0.0)], site="leaf-1", model_digest="d" * 64, deadline_ms=1000)
    old = dt.timedelta(days=400)  # its camera's clock is wrong
    frames = [
        tools.frame("cam", 0),
        msgspec.structs.replace(tools.frame("cam", 1), captured_at=tools.NOON - old),
        msgspec.structs.replace(tools.frame("cam", 2), replays=1, waited_s=3600.0),
        msgspec.structs.replace(tools.frame("cam", 3), replays=1),  # it does not say since when
    ]
    found = [rules.judge(frame, seen, age_s=0.0121)[0] for frame in frames]
    assert [alert.late_by_s for alert in found] == [0.012, 0.012, 3600.012, LATE_S]
    assert [alert.late for alert in found] == [False, False, True, True]
    (again,) = rules.judge(frames[0], seen, age_s=2.5)  # a retry
    assert (again.late_by_s, msgspec.structs.replace(again, late_by_s=0.012)) == (2.5, found[0])


# ---- what only a higher tier sees


def only_seen(tools: ModuleType, seconds: list[float], *, leaf: bool = False, seen: bool = True, **rule: Any) -> list[tuple[int, str]]:
    """Which frames, taken at these times and judged in this order, raise alerts of which rule."""
    watch = OnlySeen([Rule(name="r", **{"cooldown_s": 10.0, **rule})], tier=Tier.REGION, model_digest="e" * 64)
    person = Detections([tools.person(0.8)])
    found = []
    for n, at_s in enumerate(seconds):
        for alert in watch.judge(
            f"cam/e/{n}",
            "cam",
            "leaf-2",
            tools.NOON + dt.timedelta(seconds=at_s),
            leaf=person if leaf else Detections(),
            seen=person if seen else Detections(),
            late_by_s=7.0,
        ):
            assert (alert.raised_by, alert.site, alert.state, alert.late_by_s) == (Tier.REGION, "leaf-2", "raised", 7.0)
            assert alert.id == alert_id("r", f"cam/e/{n}")
            found.append((n, alert.rule))
    return found


def test_what_only_the_region_sees_raises_an_alert_there(tools: ModuleType) -> None:
    assert only_seen(tools, [0.0]) == [(0, "r")]
    assert only_seen(tools, [0.0], leaf=True) == [], "the leaf's own rules have judged it"
    assert only_seen(tools, [0.0], seen=False) == []
    assert only_seen(tools, [0.0], min_score=0.9) == []
    assert only_seen(tools, [0.0], sources=("other",)) == []
    assert only_seen(tools, [0.0], min_duration_s=1.0) == [], "one frame does not tell how long"
    assert only_seen(tools, [0.0], zone=((0, 0), (0.1, 0), (0.1, 0.1))) == []


def test_there_a_cool_down_counts_both_ways_since_the_newest_comes_first(tools: ModuleType) -> None:
    assert [n for n, _ in only_seen(tools, [100.0, 95.0, 91.0, 90.0, 105.0, 80.0, 110.0])] == [0, 3, 5, 6]


def test_a_frame_that_the_region_judges_again_raises_the_same_alert_again(tools: ModuleType) -> None:
    watch = OnlySeen([Rule(name="r", cooldown_s=10.0)], tier=Tier.REGION, model_digest="e" * 64)
    person = Detections([tools.person(0.8)])
    found = [
        watch.judge("cam/e/0", "cam", "leaf-2", tools.NOON, leaf=Detections(), seen=person, late_by_s=0.0),
        watch.judge("cam/e/1", "cam", "leaf-2", tools.NOON, leaf=Detections(), seen=person, late_by_s=0.0),
        watch.judge("cam/e/0", "cam", "leaf-2", tools.NOON, leaf=Detections(), seen=person, late_by_s=0.0),
    ]
    assert found[0] == found[2]
    assert [len(alerts) for alerts in found] == [1, 0, 1]
