"""Rules judged object by object: how long one stays, who comes in and who goes out, and which way they go."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agents.paths
from agents.alerts import AlertRules, OnlySeen
from agents.cascade.boxes import boxes_of
from agents.cascade.tracks import Tracker
from agents.paths import CLEAR, GAP_S, HEADING_S, MOVED, SETTLED_S
from schemas.alerts import state_of
from schemas.detections import Detection, Detections
from schemas.messages import Alert, AlertState, Result, Status, Tier, Verdict
from schemas.resolution import result_of
from schemas.rules import Rule, Zone

RIGHT = ((0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0))  # the zone of most tests: the picture's right half
WIDTH, HEIGHT = 0.1, 0.3  # of a person's box, in shares
ASIDE = CLEAR[0] * WIDTH  # this far from the zone's border one is clear of it
FRAME_S = 0.1

Scene = list[tuple[float, list[Detection]]]


def who(track: int | None, x: float, *, foot: float = 0.8, score: float = 0.9, label: str = "person") -> Detection:
    return Detection(label, score, x - WIDTH / 2, foot - HEIGHT, x + WIDTH / 2, foot, track)


def walk(track: int | None, *places: float, begin_s: float = 0.0, **fields: Any) -> Scene:
    """One object at some places from left to right, frame by frame."""
    return [(begin_s + n * FRAME_S, [who(track, x, **fields)]) for n, x in enumerate(places)]


def make(**fields: Any) -> AlertRules:
    rule = Rule(**{"name": "r", "cooldown_s": 0.0, "zone": RIGHT, **fields})
    assert not [*rule.wrong("$")]
    return AlertRules([rule], site="leaf-1", model_digest="d" * 64, deadline_ms=5000)


@pytest.fixture(scope="module")
def judge(tools: ModuleType) -> Any:
    """What rules raise on a scene, frame by frame."""
    small = tools.picture(0)

    def run(rules: AlertRules, scene: Scene, *, first: int = 0, jpeg: bytes = small) -> list[list[Alert]]:
        return [rules.judge(tools.frame("cam", first + n, at_s=at_s, jpeg=jpeg), Detections(seen)) for n, (at_s, seen) in enumerate(scene)]

    return run


def fired(alerts: Iterable[Sequence[Alert]]) -> list[int]:
    return [n for n, found in enumerate(alerts) if found]


OUT, IN = [0.3] * 7, [0.7] * 7  # for more than half a second each


# ---- how long


def test_two_who_pass_one_after_the_other_do_not_add_up_to_one_who_stays(judge: Any) -> None:
    scene = walk(1, *[0.7] * 10) + walk(2, *[0.7] * 10, begin_s=1.0)
    assert fired(judge(make(min_duration_s=1.5), scene)) == []
    assert fired(judge(make(min_duration_s=1.5, zone=()), scene)) == [], "anywhere, too"
    assert fired(judge(make(min_duration_s=0.9, cooldown_s=0.5), scene)) == [9, 19]
    assert fired(judge(make(min_duration_s=1.5), walk(1, *[0.7] * 20))) == [*range(15, 20)]


def test_those_without_a_track_count_as_one(judge: Any) -> None:
    scene = walk(None, *[0.6] * 10) + walk(None, *[0.9] * 10, begin_s=1.0)
    assert fired(judge(make(min_duration_s=1.5), scene)) == [*range(15, 20)]
    two = [(n * FRAME_S, [who(None, 0.6 if n % 2 else 0.9), who(None, 0.2, score=1.0)]) for n in range(20)]
    assert fired(judge(make(min_duration_s=1.5), two)) == [*range(15, 20)]


def test_it_is_told_of_who_stays_not_of_the_better_seen_who_passes(judge: Any) -> None:
    scene = [(n * FRAME_S, [who(n + 10, 0.9, score=0.99), who(1, 0.6, score=0.6), who(2, 0.6, foot=0.5, score=0.7)]) for n in range(12)]
    alerts = judge(make(min_duration_s=1.0), scene)
    assert fired(alerts) == [10, 11]
    assert [(found.score, found.held_s, found.seen[0].track) for found in alerts[11]] == [(0.7, 1.1, 2)]


def test_of_two_boxes_of_one_track_the_better_tells_where_it_is(judge: Any) -> None:
    for first, second in ((0.9, 0.6), (0.6, 0.9)):
        scene = [(n * FRAME_S, [who(1, 0.2, score=first), who(1, 0.7, score=second)]) for n in range(12)]
        assert fired(judge(make(min_duration_s=1.0), scene)) == ([10, 11] if second > first else [])


def test_of_several_who_stay_it_is_told_of_the_best_seen(judge: Any) -> None:
    for n, scores in enumerate(((0.9, 0.6), (0.6, 0.9))):
        scene = [(n * FRAME_S, [who(track, 0.6 + track / 10, score=score) for track, score in enumerate(scores)]) for n in range(11)]
        alerts = judge(make(min_duration_s=1.0), scene)
        assert [(found.score, found.seen[0].track) for found in alerts[10]] == [(0.9, n)]


def test_a_gap_of_over_a_second_begins_anew_for_the_one_even_while_another_is_there(judge: Any) -> None:
    hold = {"min_duration_s": 2.0, "cooldown_s": 1000.0}

    def both(*times: float) -> Scene:
        return [(at_s, [who(1, 0.7), who(2, 0.2)]) for at_s in times]

    assert fired(judge(make(**hold), both(0, 1, 2))) == [2]
    there, elsewhere = both(0, 1, 2.001, 3, 4), [(1.5, [who(2, 0.7)])]
    assert fired(judge(make(**hold), sorted(there + elsewhere, key=lambda each: each[0]))) == []
    step_out = [(0, [who(1, 0.7)]), (0.5, [who(1, 0.2)]), (1.0, [who(1, 0.7)]), (2.0, [who(1, 0.7)])]
    assert fired(judge(make(**hold), step_out)) == [3], "out of the zone for no longer than that"
    away = [(0, [who(1, 0.7)]), *((at_s, [who(1, 0.2)]) for at_s in (0.5, 1.0)), *((at_s, [who(1, 0.7)]) for at_s in (1.1, 2.0, 3.0))]
    assert fired(judge(make(**hold), away)) == [], "seen all the time, but not there"


def test_a_clock_that_is_set_back_begins_anew(judge: Any) -> None:
    scene = walk(1, *[0.7] * 10, begin_s=100.0) + walk(1, *[0.7] * 10, begin_s=99.0)
    assert fired(judge(make(min_duration_s=0.9, cooldown_s=0.0), scene)) == [9, 19]


# ---- coming and going


def test_an_entry_is_told_at_the_first_frame_inside_and_once(judge: Any) -> None:
    alerts = judge(make(on="entry"), walk(1, *OUT, *IN, *OUT, *IN))
    assert fired(alerts) == [7, 21]
    assert [(alert.held_s, alert.zone, alert.seen[0].track) for alert in alerts[7]] == [(0.0, Zone(RIGHT), 1)]


def test_an_exit_is_told_at_the_first_frame_outside_and_once(judge: Any) -> None:
    assert fired(judge(make(on="exit"), walk(1, *OUT, *IN, *OUT, *IN, *OUT))) == [14, 28]


def test_who_is_first_seen_on_the_other_side_has_not_crossed(judge: Any) -> None:
    assert fired(judge(make(on="entry"), walk(1, *IN, *IN))) == []
    assert fired(judge(make(on="exit"), walk(1, *OUT, *OUT))) == []
    assert fired(judge(make(on="entry"), walk(1, *OUT) + walk(2, *IN, begin_s=0.7))) == [], "that is another one"
    assert fired(judge(make(on="entry"), walk(1, *OUT) + walk(1, *IN, begin_s=0.6 + GAP_S + 0.01))) == [], "it was lost between"
    assert fired(judge(make(on="entry"), walk(1, *OUT) + walk(1, *IN, begin_s=0.6 + GAP_S))) == [7]


@pytest.mark.parametrize(("on", "before", "after"), [("entry", 0.3, 0.7), ("exit", 0.7, 0.3)])
def test_it_must_have_been_seen_on_its_side_for_half_a_second(judge: Any, on: str, before: float, after: float) -> None:
    frames = round(SETTLED_S / FRAME_S)
    assert fired(judge(make(on=on), walk(1, *[before] * frames, after))) == []
    assert fired(judge(make(on=on), walk(1, *[before] * (frames + 1), after))) == [frames + 1]
    # A step across the border and back does not take from the time before it.
    assert fired(judge(make(on=on), walk(1, *[before] * 6, after, before, after))) == [6]
    seconds = [(0.0, [who(1, before)]), (1.0, [who(1, before)]), (2.0, [who(1, after)])]
    assert fired(judge(make(on=on), seconds)) == [2], "however few frames a second"
    assert fired(judge(make(on=on), seconds[1:])) == [], "one look tells no stay"


def test_the_border_is_neither_inside_nor_outside(judge: Any) -> None:
    beside = [0.5 - ASIDE / 2] * 7
    assert fired(judge(make(on="entry"), walk(1, *beside, *IN))) == []
    assert fired(judge(make(on="exit"), walk(1, *IN, *beside))) == []
    assert fired(judge(make(on="entry"), walk(1, *OUT, *beside, *IN))) == [14], "it came from outside all the same"
    assert fired(judge(make(on="exit"), walk(1, *IN, *beside, *OUT))) == [14]
    above = CLEAR[1] * HEIGHT
    lower = {"zone": ((0, 0.5), (1, 0.5), (1, 1), (0, 1)), "on": "entry"}
    for foot, expected in ((0.5 - above * 0.9, []), (0.5 - above * 1.1, [7])):
        scene = walk(1, *IN, foot=foot) + walk(1, *IN, foot=0.6, begin_s=0.7)
        assert fired(judge(make(**lower), scene)) == expected
    corner = make(zone=((0.5, 0.5), (1, 0.5), (0.5, 1)), on="entry")  # within the corners of the triangle, and far outside
    assert fired(judge(corner, walk(1, *[0.9] * 7, *[0.6] * 7, foot=0.85))) == [7]


@given(st.lists(st.floats(-0.95, 0.95), min_size=20, max_size=120), st.sampled_from(["entry", "exit"]), st.booleans())
@settings(deadline=None, max_examples=100)
def test_who_stands_on_the_border_crosses_it_at_most_once(judge: Any, jitter: list[float], on: str, comes: bool) -> None:
    start = (OUT if on == "entry" else IN) if comes else []
    found = fired(judge(make(on=on), walk(1, *start, *(0.5 + share * ASIDE for share in jitter))))
    assert len(found) <= (on == "entry" and comes)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5)), min_size=5, max_size=30), st.sampled_from(["entry", "exit"]))
@settings(deadline=None, max_examples=100)
def test_nor_does_it_matter_how_far_a_box_jumps_while_it_does_not_stay(judge: Any, runs: list[tuple[bool, int]], on: str) -> None:
    """The sides alternate, none for half a second."""
    start, sides = (OUT, [0.9, 0.1]) if on == "entry" else (IN, [0.1, 0.9])
    places = [sides[n % 2] for n, (_, frames) in enumerate(runs) for _ in range(frames)]
    assert fired(judge(make(on=on), walk(1, *start, *places))) == [len(start)]


def test_a_crossing_within_the_cool_down_is_not_told_later(judge: Any) -> None:
    scene = walk(1, *OUT, *IN, *OUT, *IN, *IN, *IN)
    assert fired(judge(make(on="entry", cooldown_s=1.5), scene)) == [7]
    assert fired(judge(make(on="entry", cooldown_s=1.4), scene)) == [7, 21]


def test_two_who_cross_on_one_frame_are_one_alert_about_the_better_seen(judge: Any) -> None:
    scene = [
        (at_s, [who(1, x, score=0.6), who(2, x, foot=0.6, score=0.7)]) for (at_s, _), x in zip(walk(1, *OUT, *IN), OUT + IN, strict=True)
    ]
    alerts = judge(make(on="entry"), scene)
    assert fired(alerts) == [7]
    assert [found.seen[0].track for found in alerts[7]] == [2]


def test_with_a_duration_who_crosses_must_stay(judge: Any) -> None:
    entry, leaving = {"on": "entry", "min_duration_s": 1.0}, {"on": "exit", "min_duration_s": 1.0}
    alerts = judge(make(**entry), walk(1, *OUT, *IN, *IN))
    assert fired(alerts) == [17]
    assert alerts[17][0].held_s == 1.0
    assert fired(judge(make(**entry), walk(1, *OUT, *IN, *OUT, *IN, *IN))) == [31], "it left, and came again"
    assert fired(judge(make(**entry), walk(1, *OUT, *[0.7] * 5, 0.3, *[0.7] * 10))) == [17], "one look aside"
    assert fired(judge(make(**leaving), walk(1, *IN, *OUT, *OUT))) == [17]
    assert fired(judge(make(**entry), walk(1, *IN, *IN, *IN))) == []


def test_where_it_was_is_told_by_faint_looks_too_and_where_it_is_by_clear_ones_only(judge: Any) -> None:
    faint, clear = {"score": 0.2}, {"begin_s": 0.7}
    assert fired(judge(make(on="entry"), walk(1, *OUT, **faint) + walk(1, *IN, **clear))) == [7]
    assert fired(judge(make(on="entry"), walk(1, *OUT) + walk(1, *IN, score=0.2, begin_s=0.7))) == []
    scene = walk(1, *OUT) + walk(1, 0.7, 0.7, score=0.2, begin_s=0.7) + walk(1, 0.7, begin_s=0.9)
    assert fired(judge(make(on="entry"), scene)) == [9]
    assert fired(judge(make(on="entry"), walk(1, *IN, **faint) + walk(1, *IN, **clear))) == []


def test_who_has_no_track_crosses_nothing_and_goes_no_way(judge: Any) -> None:
    assert fired(judge(make(on="entry"), walk(None, *OUT, *IN))) == []
    assert fired(judge(make(on="exit"), walk(None, *IN, *OUT))) == []
    assert fired(judge(make(heading=(1, 0)), walk(None, *(0.5 + n / 50 for n in range(20))))) == []


def test_class_and_sources_hold_for_crossings(judge: Any) -> None:
    assert fired(judge(make(on="entry", label="dog"), walk(1, *OUT, *IN))) == []
    assert fired(judge(make(on="entry", sources=("other",)), walk(1, *OUT, *IN))) == []


# ---- which way


def steps(degrees: float, *, aspect: float, step: float = 0.05, count: int = 8) -> Scene:
    """Somebody who walks so on the picture: 0 to the right, 90 down; steps in shares of the picture's height."""
    dx, dy = math.cos(math.radians(degrees)) * step / aspect, math.sin(math.radians(degrees)) * step
    return [(n * FRAME_S, [who(1, 0.5 + dx * (n - count / 2), foot=0.65 + dy * (n - count / 2))]) for n in range(count)]


@pytest.mark.parametrize("size", [(64, 48), (192, 48), (48, 96)], ids=str)
def test_only_who_goes_that_way_as_it_looks_in_the_picture(tools: ModuleType, judge: Any, size: tuple[int, int]) -> None:
    jpeg, aspect = tools.picture(3, *size), size[0] / size[1]
    for heading, middle in (((1, 0), 0), ((0, 1), 90), ((-3, 0), 180), ((0, -0.2), 270), ((2, 2), 45)):
        for off, there in ((0, True), (40, True), (-40, True), (50, False), (-50, False), (180, False)):
            scene = steps(middle + off, aspect=aspect)
            assert bool(fired(judge(make(heading=heading, zone=()), scene, jpeg=jpeg))) is there, (heading, off)
    for tolerance, off, there in ((10, 8, True), (10, 12, False), (120, 115, True), (120, 125, False), (180, 180, True)):
        narrow = make(heading=(1, 0), heading_tolerance_deg=tolerance, zone=())
        assert bool(fired(judge(narrow, steps(off, aspect=aspect), jpeg=jpeg))) is there


def test_who_stands_goes_no_way_and_who_creeps_neither(judge: Any) -> None:
    any_way = {"heading": (1, 0), "heading_tolerance_deg": 180, "zone": ()}
    least = MOVED * HEIGHT / (64 / 48)  # across the picture
    rnd = random.Random(1)
    standing = walk(1, *(0.5 + rnd.uniform(-0.45, 0.45) * least for _ in range(60)))
    assert fired(judge(make(**any_way), standing)) == []
    frames = round(HEADING_S / FRAME_S)
    for share, expected in ((0.95, False), (1.05, True)):
        creeping = walk(1, *(0.4 + n * share * least / frames for n in range(frames + 5)))
        assert bool(fired(judge(make(**any_way), creeping))) is expected
    assert fired(judge(make(**any_way), walk(1, 0.4, 0.4 + 1.01 * least))) == [1], "who is fast has a way at once"


def test_the_way_is_that_of_the_last_stretch(judge: Any) -> None:
    there = [0.5 + n * 0.03 for n in range(8)]
    found = fired(judge(make(heading=(-1, 0), zone=()), walk(1, *there, *reversed(there))))
    assert found
    assert min(found) in range(9, 13), "soon after it has turned"
    assert found == [*range(min(found), 16)]


def test_ways_go_with_presence_entry_exit_and_duration(judge: Any) -> None:
    to_the_right = [0.1 + n * 0.03 for n in range(28)]
    inside = [n for n, x in enumerate(to_the_right) if x >= 0.5]
    assert fired(judge(make(heading=(1, 0)), walk(1, *to_the_right))) == inside
    assert fired(judge(make(heading=(-1, 0)), walk(1, *to_the_right))) == []
    for on, places in (("entry", to_the_right), ("exit", to_the_right[::-1])):
        right = on == "entry"
        assert len(fired(judge(make(on=on, heading=(1, 0)), walk(1, *places)))) == right
        assert len(fired(judge(make(on=on, heading=(-1, 0)), walk(1, *places)))) == (not right)
    # the way at the crossing counts, whatever way it goes inside, and the time is counted from there
    back = walk(1, *to_the_right, *to_the_right[:13:-1])
    assert fired(judge(make(on="entry", heading=(1, 0), min_duration_s=2.0), back)) == [inside[0] + 20]
    assert fired(judge(make(on="entry", heading=(-1, 0), min_duration_s=2.0), back)) == []
    # who passed through without staying, and comes back the other way to stay, has come that way
    through = [0.1 + n * 0.03 for n in range(21)]
    returns = walk(1, *through, *[0.7] * 7, *through[:13:-1], *[through[14]] * 20)
    strip = {"zone": ((0.4, 0), (0.6, 0), (0.6, 1), (0.4, 1)), "on": "entry", "min_duration_s": 1.0}
    assert fired(judge(make(heading=(1, 0), **strip), returns)) == []
    assert len(fired(judge(make(heading=(-1, 0), **strip), returns))) == 1


# ---- order, repetition, restarts

PLACES = (0.2, 0.3, 0.5 - 0.9 * ASIDE, 0.5, 0.5 + 0.9 * ASIDE, 0.7, 0.8)


def stroll(rnd: random.Random, frames: int) -> list[float | None]:
    """Where one object is seen, frame by frame: it stands, walks on, and is sometimes not seen."""
    places: list[float | None] = []
    x = rnd.choice(PLACES)
    while len(places) < frames:
        goal, count = rnd.choice(PLACES), rnd.randint(1, 8)
        places += [x + (goal - x) * n / count for n in range(1, count + 1)] + [goal] * rnd.choice([0, 3, 9])
        places += [None] * rnd.choice([0, 0, 0, 0, 2, 12])
        x = goal
    return places[:frames]


def staged(seed: int) -> Scene:
    """Three objects of one source, some seconds long; time stands still, leaps and runs backwards now and then."""
    rnd = random.Random(seed)
    ways, at_s, frames = [stroll(rnd, 100) for _ in range(3)], 100.0, []
    for places in zip(*ways, strict=True):
        at_s += rnd.choice([0.1] * 30 + [0.0, 0.4, 1.1, -0.1])
        seen = [who(n, x, foot=0.5 + n / 10, score=rnd.choice([0.9] * 5 + [0.3])) for n, x in enumerate(places) if x is not None]
        frames.append((at_s, seen))
    return frames


scenes = st.integers(0, 1 << 32).map(staged)
rule_sets = st.fixed_dictionaries(
    {
        "on": st.sampled_from(["presence", "entry", "exit"]),
        "heading": st.sampled_from([(), (), (1, 0), (-1, 0)]),
        "min_duration_s": st.sampled_from([0.0, 0.4, 1.0]),
        "cooldown_s": st.sampled_from([0.0, 0.5, 2.0]),
    }
).filter(lambda fields: fields != {**fields, "on": "presence", "heading": (), "min_duration_s": 0.0})


@given(scenes, rule_sets, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=80)
def test_the_order_of_a_frames_detections_changes_nothing_and_a_replay_gives_the_same(
    judge: Any, frames: Scene, fields: Any, rnd: random.Random
) -> None:
    rules = make(**fields)
    alerts = judge(rules, frames)
    shuffled = [(at_s, rnd.sample(seen, len(seen))) for at_s, seen in frames]
    assert judge(make(**fields), shuffled) == alerts
    assert judge(rules, frames) == alerts


@given(scenes, rule_sets, st.data())
@settings(deadline=None, max_examples=200)
def test_a_restart_raises_nothing_that_had_not_been_raised_but_within_the_cool_down(
    judge: Any, frames: Scene, fields: Any, data: st.DataObject
) -> None:
    """Tracks are numbered anew, and what went before is not known."""
    before = judge(make(**fields), frames)
    commit = data.draw(st.integers(0, len(frames)))
    numbers = data.draw(st.permutations([0, 1, 2]))
    anew = [(at_s, [who_again(each, numbers) for each in seen]) for at_s, seen in frames[commit:]]
    raised = [alert for found in before for alert in found]
    for alert in (alert for found in judge(make(**fields), anew, first=commit) for alert in found):
        assert any(
            alert.id == other.id or abs((alert.captured_at - other.captured_at).total_seconds()) < fields["cooldown_s"] for other in raised
        )
    after = make(**fields)
    after.recall(raised)
    assert judge(after, anew, first=commit) == before[commit:], "with what the topic of alerts says, the same and no others"


def who_again(detection: Detection, numbers: Sequence[int]) -> Detection:
    assert detection.track is not None
    return msgspec.structs.replace(detection, track=numbers[detection.track])


def test_a_frame_that_comes_late_or_again_moves_nobody(tools: ModuleType, judge: Any) -> None:
    rules = make(on="entry")
    judge(rules, walk(1, *OUT))
    for sequence in (0, 6):  # seen inside, as a model that learned something else might
        assert rules.judge(tools.frame("cam", sequence), Detections([who(1, 0.7)])) == []
    (alert,) = rules.judge(tools.frame("cam", 7), Detections([who(1, 0.7)]))
    assert rules.judge(tools.frame("cam", 7), Detections()) == [alert]


def test_sources_and_rules_know_nothing_of_each_others_tracks(tools: ModuleType) -> None:
    rules = AlertRules(
        [
            Rule(name="in", zone=RIGHT, on="entry"),
            Rule(name="out", zone=tuple((1 - x, y) for x, y in RIGHT), on="exit"),
            Rule(name="there", zone=RIGHT, cooldown_s=0.0),
        ],
        site="leaf-1",
        model_digest="d" * 64,
        deadline_ms=5000,
    )
    found: dict[str, list[tuple[int, str]]] = {"a": [], "b": []}
    for n, x in enumerate(OUT + IN[:2]):
        for source, place in (("a", x), ("b", 1 - x)):
            for alert in rules.judge(tools.frame(source, n), Detections([who(1, place)])):
                found[source].append((n, alert.rule))
    assert found == {"a": [(7, "in"), (7, "out"), (7, "there"), (8, "there")], "b": [(n, "there") for n in range(7)]}


def test_with_a_leafs_own_tracks_who_walks_in_has_entered_once_and_nobody_enters_by_a_restart(judge: Any) -> None:
    """Two walk in, one after the other, and one was there before."""
    rnd = random.Random(3)

    def jittered(x: float, foot: float) -> Detection:
        return who(None, x + rnd.uniform(-0.004, 0.004), foot=foot + rnd.uniform(-0.01, 0.01))

    plain = [
        [jittered(min(0.1 + n * 0.01, 0.65), 0.5), jittered(min(max(0.06, n * 0.01 - 0.2), 0.75), 0.9), jittered(0.85, 0.7)]
        for n in range(120)
    ]
    entered = fired(judge(make(on="entry"), tracked(plain)))
    assert len(entered) == 2
    assert entered[0] in range(39, 43)
    assert entered[1] in range(69, 73)
    for begin in (20, 38, 45, 75, 90):
        again = fired(judge(make(on="entry"), tracked(plain[begin:])))
        assert {begin + n for n in again} <= set(entered)
    assert fired(judge(make(on="entry", heading=(1, 0)), tracked(plain))) == entered
    assert fired(judge(make(on="entry", heading=(-1, 0)), tracked(plain))) == []


def tracked(frames: Sequence[Sequence[Detection]]) -> Scene:
    tracker, scene = Tracker(), []
    for n, seen in enumerate(frames):
        numbers = tracker.follow(boxes_of(Detections(seen)), n * FRAME_S).tracks[: len(seen)].tolist()
        scene.append((n * FRAME_S, [msgspec.structs.replace(each, track=number) for each, number in zip(seen, numbers, strict=True)]))
    return scene


# ---- what becomes of such alerts


def told(alert: Alert, *seen: Detection) -> AlertState:
    """What a region's answer makes of an alert."""
    verdict = Verdict(
        id=alert.record,
        source=alert.source,
        captured_at=alert.captured_at,
        tier=Tier.REGION,
        site="region-1",
        status=Status.FINAL,
        rank=20,
        model="large",
        model_digest="e" * 64,
        generation=1,
        confidence=0.9,
        detections=Detections(seen),
    )
    result: Result = result_of(verdict)
    return state_of(alert, result)


def test_who_has_left_is_confirmed_outside_the_zone_and_who_entered_inside(judge: Any) -> None:
    ((gone,),) = [found for found in judge(make(on="exit"), walk(1, *IN, *OUT)) if found]
    assert Alert.from_bytes(gone.to_bytes()) == gone
    assert told(gone, who(None, 0.3)) is AlertState.CONFIRMED
    assert told(gone) is told(gone, who(None, 0.3, label="dog")) is AlertState.RETRACTED
    ((come,),) = [found for found in judge(make(on="entry"), walk(1, *OUT, *IN)) if found]
    assert told(come, who(None, 0.7)) is AlertState.CONFIRMED
    assert told(come, who(None, 0.3)) is AlertState.RETRACTED


@pytest.mark.parametrize(
    ("fields", "judged"),
    [({}, True), ({"on": "entry"}, False), ({"on": "exit"}, False), ({"heading": (1, 0)}, False), ({"min_duration_s": 0.1}, False)],
    ids=str,
)
def test_a_region_does_not_judge_by_one_frame_what_takes_several(tools: ModuleType, fields: Any, judged: bool) -> None:
    watch = OnlySeen([Rule(name="r", zone=RIGHT, **fields)], tier=Tier.REGION, model_digest="e" * 64)
    alerts = watch.judge("cam/e/0", "cam", "leaf-2", tools.NOON, leaf=Detections(), seen=Detections([who(None, 0.7)]), late_by_s=0.0)
    assert bool(alerts) is judged


# ---- memory


def test_the_objects_of_a_source_are_bounded_and_those_that_are_gone_are_forgotten(
    tools: ModuleType, judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents.paths, "OBJECTS", 50)
    rules = make(on="entry", heading=(1, 0))
    judge(rules, [(n / 100, [who(3 * n, 0.2), who(3 * n + 1, 0.3), who(1_000_000, 0.2)]) for n in range(90)])
    (hold,) = rules._holds.values()
    paths = hold.paths
    assert paths is not None
    assert len(paths) == 50
    assert 1_000_000 in paths._objects, "who is seen is not forgotten"
    judge(rules, [(0.9 + n / 100, [who(1_000_000, 0.2)]) for n in range(120)], first=100)
    assert [*paths._objects] == [1_000_000]
    trail = paths._objects[1_000_000].trail
    assert trail is not None
    assert len(trail) == agents.paths.TRAIL
