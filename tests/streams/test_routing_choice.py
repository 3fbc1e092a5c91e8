"""Which site is used, without Kafka: laws of the choice over any course of events, and of what is held for healthy."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import InvalidConfig, SiteConfig
from schemas.routing import Routing, named_site, parse_sites
from streams.routing.choice import SPREAD, Broken, Choice, Chooser, Reason
from streams.routing.health import DISTRUST_S, Health, Sight

SITES = ("a", "b", "c")
ROUTING = Routing(hold_s=10.0, hold_max_s=40.0, nearer_share=0.2, nearer_ms=2.0)
STEP_S = 0.25


def sight(name: str, now_s: float, cost_ms: float, *, ok: bool = True) -> Sight:
    if ok:
        return Sight(name=name, ok=True, cost_s=cost_ms / 1e3, asked_s=now_s - 0.1)
    return Sight(
        name=name, ok=False, cost_s=cost_ms / 1e3, asked_s=now_s - 5, failed_s=now_s - 1, reason=Reason.UNREACHABLE, why="no answer"
    )


# A course of events: for some steps each, who is well, how far each is, and whether the site in use stops taking records.
stretch = st.tuples(
    st.integers(1, 120),
    st.tuples(*[st.booleans()] * 3),
    st.tuples(*[st.floats(0.2, 200)] * 3),
    st.booleans(),
)
courses = st.lists(stretch, min_size=1, max_size=12)


def played(
    course: list[tuple[int, tuple[bool, ...], tuple[float, ...], bool]], chance: float
) -> list[tuple[float, list[Sight], Choice | None, str | None]]:
    """What the chooser does: time, what it saw, its choice, and the site in use after it."""
    chooser, now_s, told = Chooser(ROUTING, lambda: chance), 1000.0, []
    for steps, well, costs, stops in course:
        for step in range(steps):
            seen = [sight(name, now_s, cost, ok=ok) for name, ok, cost in zip(SITES, well, costs, strict=True)]
            broken = None
            if stops and step == 0 and chooser.current is not None:
                broken = Broken(since_s=now_s - 1.0, reason=Reason.SILENT, why="silent")
            told.append((now_s, seen, chooser.decide(now_s, seen, broken), chooser.current))
            now_s += STEP_S
    return told


@given(courses, st.floats(0, 1))
def test_a_site_known_to_be_broken_is_never_used_while_another_is_well(course: list, chance: float) -> None:
    for _, seen, choice, current in played(course, chance):
        well = {each.name for each in seen if each.ok}
        if well:
            assert current in well
        if choice is not None:
            assert choice.site == current
            assert choice.site in well


@given(courses, st.floats(0, 1))
def test_a_move_to_a_nearer_site_has_been_earned(course: list, chance: float) -> None:
    told = played(course, chance)
    moves = [index for index, (_, _, choice, _) in enumerate(told) if choice is not None]
    for index in moves:
        now_s, _, choice, _ = told[index]
        assert choice is not None
        if choice.reason is not Reason.NEARER:
            continue
        since = [told[at] for at in range(index) if told[at][0] >= now_s - ROUTING.hold_s + STEP_S]
        assert told[0][0] <= now_s - ROUTING.hold_s
        before = since[0][3]
        for at_s, seen, other, current in since:
            by_name = {each.name: each for each in seen}
            assert other is None, f"moved {now_s - at_s} s before"
            assert current == before
            assert by_name[choice.site].ok
            assert by_name[choice.site].cost_s <= by_name[before].cost_s * 0.8
            assert by_name[choice.site].cost_s <= by_name[before].cost_s - 0.002


@given(courses, st.floats(0, 1))
def test_moves_without_need_are_rare(course: list, chance: float) -> None:
    times = [now_s for now_s, _, choice, _ in played(course, chance) if choice is not None and choice.reason is Reason.NEARER]
    assert all(later - earlier >= ROUTING.hold_s for earlier, later in itertools.pairwise(times))


@given(st.tuples(*[st.floats(0.2, 500)] * 3), st.lists(st.tuples(*[st.floats(0.85, 1.15)] * 3), min_size=20, max_size=400), st.floats(0, 1))
def test_jitter_moves_nobody(costs: tuple[float, ...], jitter: list[tuple[float, ...]], chance: float) -> None:
    """The nearest is taken at the start; round trips that sway by 15 % give no second thoughts."""
    chooser, now_s = Chooser(ROUTING, lambda: chance), 0.0
    chooser.decide(now_s, [sight(name, now_s, cost) for name, cost in zip(SITES, costs, strict=True)])
    for sways in jitter:
        now_s += 1.0
        seen = [sight(name, now_s, cost * sway) for name, cost, sway in zip(SITES, costs, sways, strict=True)]
        choice = chooser.decide(now_s, seen)
        if choice is not None:  # it takes a whole hold-down in which the other one was clearly nearer each time
            nearest = min(zip(SITES, costs, strict=True), key=lambda item: item[1])[1]
            assert dict(zip(SITES, costs, strict=True))[choice.site] < nearest * 1.15 / 0.85


def test_a_site_that_fails_again_and_again_is_trusted_later_each_time_and_a_good_one_soon_again() -> None:
    chooser, now_s = Chooser(ROUTING, lambda: 1.0), 0.0
    chooser.decide(now_s, [sight("a", now_s, 1), sight("b", now_s, 50)])
    waits = []
    for round_ in range(6):
        if round_ == 5:
            now_s += 1000.0  # it has served well for long
            assert chooser.decide(now_s, [sight("a", now_s, 1), sight("b", now_s, 50)]) is None
        left = chooser.decide(now_s, [sight("a", now_s, 1, ok=False), sight("b", now_s, 50)])
        assert left is not None
        assert (left.site, left.reason) == ("b", Reason.UNREACHABLE)
        left_s = now_s
        while chooser.current == "b":
            now_s += STEP_S
            chooser.decide(now_s, [sight("a", now_s, 1), sight("b", now_s, 50)])
        waits.append(now_s - left_s)
    expected = [hold * (1 + SPREAD) for hold in (10, 20, 40, 40, 40, 10)]
    assert waits == pytest.approx(expected, abs=2 * STEP_S)


def test_a_fleet_does_not_come_back_at_once() -> None:
    def back_after(chance: float) -> float:
        chooser, now_s = Chooser(ROUTING, lambda: chance), 0.0
        chooser.decide(now_s, [sight("a", now_s, 1, ok=False), sight("b", now_s, 50)])
        while chooser.current == "b":
            now_s += STEP_S
            chooser.decide(now_s, [sight("a", now_s, 1), sight("b", now_s, 50)])
        return now_s

    times = [back_after(number / 20) for number in range(21)]
    assert times == sorted(times)
    assert times[-1] - times[0] == pytest.approx(SPREAD * ROUTING.hold_s, abs=2 * STEP_S)


def test_a_wait_begins_anew_after_a_time_in_which_nothing_was_well() -> None:
    chooser, now_s = Chooser(ROUTING, lambda: 0.0), 0.0
    chooser.decide(now_s, [sight("a", now_s, 1, ok=False), sight("b", now_s, 50)])
    for second in range(9):
        assert chooser.decide(now_s + second, [sight("a", now_s + second, 1), sight("b", now_s + second, 50)]) is None
    assert chooser.decide(9.0, [sight("a", 9.0, 1, ok=False), sight("b", 9.0, 50, ok=False)]) is None
    came = [at for at in range(10, 30) if chooser.decide(at, [sight("a", at, 1), sight("b", at, 50)]) is not None]
    assert came == [20]


@pytest.mark.parametrize(("near_ms", "far_ms"), [(1.0, 2.9), (85.0, 100.0)])  # not by 2 ms; not by a fifth
def test_a_little_nearer_is_not_nearer(near_ms: float, far_ms: float) -> None:
    chooser = Chooser(ROUTING, lambda: 0.0)
    chooser.decide(0.0, [sight("a", 0.0, near_ms, ok=False), sight("b", 0.0, far_ms)])
    for at in range(1, 100):
        assert chooser.decide(at, [sight("a", at, near_ms), sight("b", at, far_ms)]) is None


def test_if_everything_went_silent_it_stays() -> None:
    """The others answered last before the trouble began: the trouble is on our side."""
    chooser, now_s = Chooser(ROUTING, lambda: 0.0), 100.0
    assert chooser.decide(now_s, [sight("a", now_s, 1), sight("b", now_s, 2)]) is not None
    broken = Broken(since_s=now_s + 1.0, reason=Reason.SILENT, why="silent")
    stale = Sight(name="b", ok=True, cost_s=0.002, asked_s=now_s + 0.9)
    assert chooser.decide(now_s + 2.1, [sight("a", now_s, 1), stale], broken) is None
    fresh = Sight(name="b", ok=True, cost_s=0.002, asked_s=now_s + 1.1)
    choice = chooser.decide(now_s + 2.1, [sight("a", now_s, 1), fresh], broken)
    assert choice == Choice(site="b", reason=Reason.SILENT, why="silent")


# ---- health


def test_a_site_is_well_when_it_has_answered_and_still_does() -> None:
    health = Health("gate", bias_s=0.5, stale_s=5.0)
    seen = health.sight(0.0)
    assert (seen.ok, seen.cost_s) == (False, math.inf)
    for number, rtt in enumerate([0.010, 0.010, 3.0]):
        health.answered(asked_s=10.0 + number, now_s=10.0 + number + rtt)
    assert health.sight(15.0).cost_s == pytest.approx(0.51)  # the median: one slow answer changes nothing
    assert health.sight(15.0).ok
    assert not health.sight(25.0).ok  # nothing heard since
    health.failed(asked_s=16.0, now_s=17.0, reason="unreachable", why="no answer")
    health.failed(asked_s=17.0, now_s=18.0, reason="unreachable", why="no answer")
    assert (health.sight(18.0).ok, health.sight(18.0).failed_s) == (False, 16.0)  # since the first question without an answer
    health.answered(asked_s=19.0, now_s=19.01)
    assert health.sight(19.1).ok


def test_acknowledged_records_speak_for_a_site_whose_probes_get_lost_but_not_against_missing_topics() -> None:
    health = Health("gate", stale_s=5.0)
    health.answered(asked_s=1.0, now_s=1.01)
    health.heard(asked_s=2.0, now_s=2.5)
    health.failed(asked_s=2.2, now_s=3.2, reason="unreachable", why="no answer")
    assert health.sight(3.2).ok
    health.failed(asked_s=2.2, now_s=3.2, reason="topics", why="no topic", certain=True)
    assert not health.sight(3.2).ok


@pytest.mark.parametrize("proved", [True, False])
def test_a_site_that_took_no_records_must_prove_that_it_does(*, proved: bool) -> None:
    health = Health("gate", stale_s=1000.0)
    health.answered(asked_s=1.0, now_s=1.01)
    health.broke(since_s=2.0, now_s=3.0, reason="silent", why="silent")
    assert not health.reachable
    health.answered(asked_s=4.0, now_s=4.01)
    assert health.reachable  # it may be asked to take a record
    assert (health.sight(5.0).ok, health.sight(5.0).reason) == (False, "silent")
    if proved:
        health.proved()
        assert health.sight(5.0).ok
    assert not health.sight(2.0 + DISTRUST_S).ok or proved
    assert health.sight(3.1 + DISTRUST_S).ok  # in the end it gets a chance without one


# ---- the list of sites


def test_sites_are_read_with_every_fault_told() -> None:
    sites = parse_sites(
        """
        [[sites]]
        name = "gate"
        kafka.bootstrap_servers = "10.0.0.5:9092"
        kafka.properties = { "sasl.password" = "${SECRET}" }
        [[sites]]
        name = "hall"
        bias_ms = 5
        topics.partitions = 2
        [routing]
        silent_s = 0.8
        """,
        {"SECRET": "x"},
    )
    gate, hall = sites.configs()
    assert (gate.name, gate.tier, gate.kafka.properties) == ("gate", "leaf", {"sasl.password": "x"})
    assert (hall.name, hall.topics.partitions, sites.sites[1].bias_ms, sites.routing.silent_s) == ("hall", 2, 5.0, 0.8)
    for text, said in [
        ("sites = 3", r"\$\.sites is 3"),
        ('[[sites]]\nname = "A"\n[[sites]]\nname = "b"\nx = 1', r"2 faults:(.|\n)*\$\.sites\[0\]\.name(.|\n)*\$\.sites\[1\]\.x is unknown"),
        ('[[sites]]\nname = "a"\n[[sites]]\nname = "a"', r"sites\[1\]\.name is 'a' again"),
        ('[[sites]]\nname = "a"\n[routing]\nmax_age_s = 0.5', r"max_age_s is 0\.5: expected more than silent_s"),
        ('[[sites]]\nname = "a"\n[routing]\nhold_s = 500', r"hold_max_s is 300: expected at least hold_s"),
        ('[[sites]]\nname = "a"\nkafka.properties.x = "${NOPE}"', r"\$\{NOPE\}, which is not set"),
        ("[[sites", "is not TOML"),
    ]:
        with pytest.raises(InvalidConfig, match=said):
            parse_sites(text, {})


def test_a_site_is_named_by_hand_or_by_its_address() -> None:
    like = SiteConfig(name="local", tier="leaf")
    assert named_site("gate=10.0.0.5:9092", like).name == "gate"
    found = named_site("Kafka.Example.org:9092,other:9092")
    assert (found.name, found.kafka.bootstrap_servers) == ("kafka-example-org-9092", "Kafka.Example.org:9092,other:9092")
    for text in ("", "gate", "gate=", "Gate=h:1", "h:1:2", "gate=h:0", "=h:99999999"):
        with pytest.raises(InvalidConfig, match="HOST:PORT"):
            named_site(text)
