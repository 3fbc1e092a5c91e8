"""The resolver: whatever the order, repetition and batching of what it reads, what it has written is the same in the end; and it writes
only what changes something, also after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.resolver import Resolver
from schemas.config import Kafka, SharedZone, SiteConfig, Topics
from schemas.config import Region as RegionConfig
from schemas.detections import Detections
from schemas.envelope import InvalidEnvelope
from schemas.identity import RecordId, alert_id
from schemas.messages import LEAF_PREFERRED_RANK, RANK, Alert, AlertState, Result, Status, Tier, Verdict
from schemas.records import InvalidRecord
from schemas.resolution import order_of, unanswered
from schemas.rules import Zone
from streams import outputs
from streams.clients import Clients
from streams.cluster import create_topics
from streams.delivery import Rejected
from streams.message import KafkaRecord
from streams.restore import to_end
from streams.sink import Output, Sink
from streams.topology import Role, Topic, Topology

NOBODY = Kafka(bootstrap_servers="127.0.0.1:9")  # clients are made, never used


class Desk:
    """A resolver, and the topics around it, as lists."""

    def __init__(self, tools: ModuleType, config: SiteConfig, clients: Clients | None = None) -> None:
        self.tools, self.config = tools, config
        self.topology = Topology(config)
        self.role = self.topology.role(Role.RESOLVER)
        self.resolver = Resolver(config, self.role, clients or Clients(NOBODY, "test"))
        self.written: list[Output] = []

    def record(self, base: str, value: Verdict | Alert, *, site: str | None = None, at: int = 0, **parts: Any) -> tuple[Topic, Any]:
        topic = self.role.read(base, site)
        output = outputs.alert(topic, value) if isinstance(value, Alert) else outputs.answer(topic, value)
        return topic, self.tools.Record(in_topic=topic.name, **{"data": output.value, "pairs": list(output.headers), "at": at, **parts})

    def feed(self, *batches: Sequence[tuple[Topic, Any]]) -> list[Any]:
        """Give batches, each of one topic, one after the other; what is written counts as written. Returns what the work yielded."""

        async def drive() -> list[Any]:
            items = []
            for batch in batches:
                found = await self.tools.collect(self.resolver.work(batch[0][0], 0, [record for _, record in batch]))
                assert [item.index for item in found] == list(range(len(batch)))
                items += found
            return items

        items = asyncio.run(drive())
        self.written += self.tools.outputs_of(items)
        return items

    def results(self) -> dict[str, list[Result]]:
        found: dict[str, list[Result]] = {}
        for output in self.written:
            if output.topic.base == "results":
                found.setdefault(str(output.key), []).append(Result.from_bytes(output.value or b""))
        return found

    def alerts(self) -> list[Alert]:
        return [Alert.from_bytes(output.value or b"") for output in self.written if output.topic.base == "alerts"]

    def passed_on(self) -> list[tuple[str, Alert]]:
        """What went to those who join incidents: by which place, and what."""
        return [
            (output.source, Alert.from_bytes(output.value or b"")) for output in self.written if output.topic.base == "incidents.alerts"
        ]

    def changes(self) -> list[Output]:
        """What was written and is not merely passed on."""
        return [output for output in self.written if output.topic.base != "incidents.alerts"]


@pytest.fixture
def leaf(tools: ModuleType) -> Desk:
    return Desk(tools, tools.leaf_site())


def region_site(**fields: Any) -> SiteConfig:
    return SiteConfig(name="region-1", tier="region", region=RegionConfig(sites=("leaf-1", "leaf-2")), **fields)


@pytest.fixture
def region(tools: ModuleType) -> Desk:
    return Desk(tools, region_site())


def verdict(tools: ModuleType, record: str = "cam/e/0", tier: Tier = Tier.LEAF, status: Status = Status.FINAL, **changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "id": record,
        "source": record.split("/")[0],
        "captured_at": tools.NOON,
        "status": status,
        "detections": Detections([tools.person()] if tier is Tier.LEAF else []),
        "confidence": 0.5,
        "tier": tier,
        "site": "leaf-1" if tier is Tier.LEAF else "region-1",
        "rank": RANK[tier],
        "generation": 0,
        "model": "m",
        "model_digest": "d" * 64,
        "deadline_ms": 1000 if status is Status.PROVISIONAL else None,
    }
    return Verdict(**{**fields, **changes})


def raised(tools: ModuleType, record: str = "cam/e/0", rule: str = "r", **changes: Any) -> Alert:
    fields: dict[str, Any] = {
        "id": alert_id(rule, record),
        "rule": rule,
        "source": record.split("/")[0],
        "site": "leaf-1",
        "record": record,
        "captured_at": tools.NOON,
        "state": AlertState.RAISED,
        "version": 0,
        "label": "person",
        "min_score": 0.5,
        "zone": Zone(),
        "seen": Detections([tools.person()]),
        "score": 0.9,
        "held_s": 0.0,
        "model_digest": "d" * 64,
        "deadline_ms": 1000,
    }
    return Alert(**{**fields, **changes})


# ---- any order, repetition and batching


class Frame(msgspec.Struct, frozen=True):
    """What happens to one frame: the leaf's verdicts, whether its deadline passed, what the region saw (None: no answer), its alerts."""

    leaf: tuple[Status, ...]
    passed: bool
    region: str | None
    rules: tuple[str, ...]


frames = st.builds(
    Frame,
    st.sampled_from([(Status.FINAL,), (Status.PROVISIONAL,), (Status.PROVISIONAL, Status.FINAL)]),
    st.booleans(),
    st.sampled_from([None, "person", "low", "dog", "nothing"]),
    st.sampled_from([(), ("r",), ("r", "s")]),
)


def inputs_of(tools: ModuleType, n: int, frame: Frame) -> list[tuple[str, Verdict | Alert]]:
    """(kind, value) of all that is ever written of a frame by others."""
    record = f"cam-{n % 2}/e/{n}"
    found: list[tuple[str, Verdict | Alert]] = [("leaf", verdict(tools, record, status=status)) for status in frame.leaf]
    if frame.passed and Status.PROVISIONAL in frame.leaf:
        found.append(("leaf", unanswered(verdict(tools, record, status=Status.PROVISIONAL))))
    seen = {"person": [tools.person(0.6)], "low": [tools.person(0.4)], "dog": [tools.person(label="dog")], "nothing": []}
    if frame.region is not None:
        found.append(("region", verdict(tools, record, Tier.REGION, detections=Detections(seen[frame.region]))))
    return found + [("alert", raised(tools, record, rule)) for rule in frame.rules]


def expected_of(frame: Frame, *, asks: bool) -> tuple[str, str]:
    """By hand: whose answer holds and how, and the state of the frame's alerts."""
    if frame.region is not None:
        return "region final", "confirmed" if frame.region == "person" else "retracted"
    if frame.passed and Status.PROVISIONAL in frame.leaf:
        return "leaf unanswered", "unreviewed"
    if Status.FINAL in frame.leaf:
        return "leaf final", "unreviewed" if asks else "raised"
    return "leaf provisional", "raised"


@given(st.lists(frames, min_size=1, max_size=4), st.data())
@settings(deadline=None, max_examples=200)
def test_any_order_repetition_and_batching_ends_the_same(tools: ModuleType, story: list[Frame], data: st.DataObject) -> None:
    at_leaf = data.draw(st.booleans(), label="at the leaf")
    desk = Desk(tools, tools.leaf_site() if at_leaf else region_site())
    names = {
        "leaf": ("verdicts", None) if at_leaf else ("up.verdicts", "leaf-1"),
        "region": ("region.verdicts", None) if at_leaf else ("down.verdicts", "leaf-1"),
        "alert": ("alerts", None) if at_leaf else ("up.alerts", "leaf-1"),
    }
    everything = [(kind, value) for n, frame in enumerate(story) for kind, value in inputs_of(tools, n, frame)]
    repeated = data.draw(st.lists(st.sampled_from(everything), max_size=6), label="repeated")
    order = data.draw(st.permutations([*everything, *repeated]), label="order")
    batches: list[list[tuple[Topic, Any]]] = []
    for kind, value in order:
        record = desk.record(names[kind][0], value, site=names[kind][1])
        if batches and batches[-1][0][0] == record[0] and data.draw(st.booleans(), label="joins the batch"):
            batches[-1].append(record)
        else:
            batches.append([record])
    desk.feed(*batches)
    if at_leaf and desk.alerts():  # it reads its own alerts again: that changes nothing
        before = desk.changes()
        desk.feed([desk.record("alerts", alert) for alert in desk.alerts()])
        assert desk.changes() == before

    results = desk.results()
    for n, frame in enumerate(story):
        record = f"cam-{n % 2}/e/{n}"
        answer, state = expected_of(frame, asks=at_leaf)
        written = results.pop(record)
        assert f"{written[-1].tier} {written[-1].status}" == answer
        assert [r.order for r in written] == sorted({r.order for r in written})  # each write a change, each change a step up
        assert written[-1].order == max(order_of(v) for _, v in inputs_of(tools, n, frame) if isinstance(v, Verdict))
        for rule in frame.rules:
            seen = [alert for alert in desk.alerts() if alert.id == alert_id(rule, record)]
            orders = [alert.order for alert in seen]
            assert orders == sorted(set(orders)), "readers by maximum believe the last"
            if at_leaf:  # where the leaf's agent wrote the first state
                assert (seen[-1].state if seen else "raised") == state
            else:
                assert seen[-1].state == state
    assert results == {}


# ---- alerts follow the result of their own frame


def test_an_alert_climbs_from_raised_by_unreviewed_to_confirmed_or_retracted(tools: ModuleType, leaf: Desk) -> None:
    zone = Zone(((0, 0), (0.5, 0), (0.5, 1), (0, 1)))
    for rule in ("everywhere", "left"):
        leaf.feed([leaf.record("alerts", raised(tools, rule=rule, zone=zone if rule == "left" else Zone()))])
    leaf.feed([leaf.record("verdicts", verdict(tools, status=Status.PROVISIONAL), at=100)])
    assert leaf.alerts() == []
    (late,) = leaf.resolver.overdue(1100.0)
    assert (late.topic.base, late.key) == ("verdicts", "cam/e/0")
    leaf.feed([leaf.record("verdicts", Verdict.from_bytes(late.value or b""))])
    assert {(alert.rule, alert.state, alert.decided_by) for alert in leaf.alerts()} == {
        ("everywhere", "unreviewed", None),
        ("left", "unreviewed", None),
    }
    seen = Detections([tools.person(0.8, x=0.9)])  # a person, but not on the left
    leaf.feed([leaf.record("region.verdicts", verdict(tools, tier=Tier.REGION, detections=seen))])
    assert {alert.rule: (alert.state, alert.decided_by) for alert in leaf.alerts()[2:]} == {
        "everywhere": ("confirmed", "region"),
        "left": ("retracted", "region"),
    }


@pytest.mark.parametrize("first", ["alert", "verdict"])
@pytest.mark.parametrize("status", [Status.FINAL, Status.UNANSWERED], ids=["sure", "unsure"])
def test_an_alert_that_nobody_is_asked_about_is_unreviewed_and_an_answer_still_decides(
    tools: ModuleType, leaf: Desk, first: str, status: Status
) -> None:
    """A replay after results were settled raises it: the provisional verdict that comes with it loses, so no deadline runs."""
    found = [leaf.record("alerts", raised(tools))], [leaf.record("verdicts", verdict(tools, status=status, seen="0" * 32))]
    leaf.feed(*(found if first == "alert" else reversed(found)), [leaf.record("verdicts", verdict(tools, status=Status.PROVISIONAL))])
    assert [(alert.state, alert.decided_by) for alert in leaf.alerts()] == [("unreviewed", None)]
    assert leaf.resolver.overdue(1e15) == []
    leaf.feed([leaf.record("region.verdicts", verdict(tools, tier=Tier.REGION, detections=Detections([tools.person()])))])
    assert [alert.state for alert in leaf.alerts()] == ["unreviewed", "confirmed"]


def test_where_nobody_is_ever_asked_an_alert_stays_as_it_was_raised(tools: ModuleType) -> None:
    alone = Desk(tools, msgspec.structs.replace(tools.leaf_site(), link=None))
    alone.feed([alone.record("alerts", raised(tools))], [alone.record("verdicts", verdict(tools))])
    assert alone.alerts() == []


@pytest.mark.parametrize(("there", "state"), [(True, "confirmed"), (False, "retracted")])
def test_where_the_leaf_is_preferred_its_own_answer_ends_an_alert(tools: ModuleType, leaf: Desk, there: bool, state: str) -> None:
    seen = Detections([tools.person()] if there else [])
    leaf.feed([leaf.record("alerts", raised(tools))])
    leaf.feed([leaf.record("verdicts", verdict(tools, rank=LEAF_PREFERRED_RANK, detections=seen))])
    leaf.feed([leaf.record("region.verdicts", verdict(tools, tier=Tier.REGION, detections=Detections([tools.person()])))])
    assert [(alert.state, alert.decided_by) for alert in leaf.alerts()] == [(state, "leaf")]


def test_where_the_leaf_is_preferred_and_waits_all_the_same_a_deadline_or_an_answer_ends_it(tools: ModuleType, leaf: Desk) -> None:
    leaf.feed([leaf.record("alerts", raised(tools))])
    leaf.feed([leaf.record("verdicts", verdict(tools, status=Status.PROVISIONAL, rank=LEAF_PREFERRED_RANK), at=0)])
    (late,) = leaf.resolver.overdue(1000.0)
    leaf.feed([leaf.record("verdicts", Verdict.from_bytes(late.value or b""))])
    leaf.feed([leaf.record("region.verdicts", verdict(tools, tier=Tier.REGION))])
    assert [alert.state for alert in leaf.alerts()] == ["unreviewed", "retracted"]


def test_two_higher_tiers_that_disagree_end_an_alert_by_the_better_one_in_either_order(tools: ModuleType) -> None:
    """A second region takes over, and both have answered."""
    older, newer = (
        verdict(tools, tier=Tier.REGION, generation=n, detections=Detections([tools.person()] if n == 0 else [])) for n in (0, 1)
    )
    for answers in ([older, newer], [newer, older]):
        desk = Desk(tools, tools.leaf_site())
        desk.feed([desk.record("alerts", raised(tools))], *([desk.record("region.verdicts", each)] for each in answers))
        assert desk.alerts()[-1].state is AlertState.RETRACTED


def test_each_alert_is_passed_on_by_its_place_as_it_stands(tools: ModuleType) -> None:
    zone = SharedZone(name="gate", sources=("cam-1", "cam-2"), rules=("r",))
    leaf = Desk(tools, tools.leaf_site(shared_zones=(zone,)))
    leaf.feed([leaf.record("region.verdicts", verdict(tools, "cam-1/e/0", Tier.REGION))])
    alerts = [raised(tools, "cam-1/e/0"), raised(tools, "cam-1/e/0", "s"), raised(tools, "cam-2/e/0"), raised(tools, "cam-3/e/0")]
    leaf.feed([leaf.record("alerts", alert) for alert in alerts])
    assert [(place, alert.rule, alert.state) for place, alert in leaf.passed_on()] == [
        ("zone:gate", "r", "retracted"),
        ("cam-1", "s", "retracted"),
        ("zone:gate", "r", "raised"),
        ("cam-3", "r", "raised"),
    ]
    again = len(leaf.passed_on())
    leaf.feed([leaf.record("alerts", alerts[0])])  # read again, since it may not have been done
    assert [alert.state for _, alert in leaf.passed_on()[again:]] == ["retracted"], "never as it once was: compaction keeps what came last"


def test_the_region_gathers_the_alerts_of_all_sites_under_the_site_of_their_topic(tools: ModuleType, region: Desk) -> None:
    region.feed([region.record("up.alerts", raised(tools, "cam-a/e/0"), site="leaf-1")])
    region.feed([region.record("up.alerts", raised(tools, "cam-b/e/0", site="leaf-1"), site="leaf-2")])  # it speaks as another
    region.feed([region.record("down.verdicts", verdict(tools, "cam-b/e/0", Tier.REGION), site="leaf-2")])
    assert [(alert.source, alert.site, alert.state) for alert in region.alerts()] == [
        ("cam-a", "leaf-1", "raised"),
        ("cam-b", "leaf-2", "raised"),
        ("cam-b", "leaf-2", "retracted"),
    ]
    assert {output.topic.name for output in region.written if output.topic.base == "alerts"} == {"alerts"}


# ---- the topic decides who speaks


@pytest.mark.parametrize("claimed", [Tier.CLOUD, Tier.REGION, Tier.LEAF])
def test_tier_site_and_rank_are_the_topics_whatever_a_payload_claims(tools: ModuleType, leaf: Desk, region: Desk, claimed: Tier) -> None:
    forged = verdict(tools, tier=claimed, site="another", rank=99)
    cases = [
        (leaf, "verdicts", None, "leaf", "leaf-1", LEAF_PREFERRED_RANK),
        (leaf, "region.verdicts", None, "region", "region-1", RANK[Tier.REGION]),
        (region, "up.verdicts", "leaf-2", "leaf", "leaf-2", LEAF_PREFERRED_RANK),
        (region, "down.verdicts", "leaf-2", "region", "region-1", RANK[Tier.REGION]),
    ]
    for n, (desk, base, site, tier, name, rank) in enumerate(cases):
        value = msgspec.structs.replace(forged, id=f"cam/e/{n}")
        desk.feed([desk.record(base, value, site=site)])
        (result,) = desk.results()[f"cam/e/{n}"]
        assert (result.tier, result.site, result.rank) == (tier, name, rank)


def test_a_forged_leaf_verdict_does_not_beat_the_region_where_the_leaf_is_not_preferred(tools: ModuleType, region: Desk) -> None:
    """A leaf may claim at most that labels prefer it; it can never speak as region or cloud, and what it decides says that it did."""
    region.feed([region.record("up.alerts", raised(tools), site="leaf-1")])
    region.feed([region.record("up.verdicts", verdict(tools, tier=Tier.CLOUD, rank=99), site="leaf-1")])
    region.feed([region.record("up.verdicts", verdict(tools, tier=Tier.CLOUD, rank=10, confidence=1.0), site="leaf-1")])
    assert [(alert.state, alert.decided_by) for alert in region.alerts()] == [("raised", None), ("retracted", "leaf")]
    forged = raised(tools, "cam/e/1", raised_by=Tier.REGION)
    region.feed([region.record("up.alerts", forged, site="leaf-1")])
    assert region.alerts()[-1].raised_by is Tier.LEAF


# ---- two leaves and one source


def copies_of(tools: ModuleType, n: int, site: str) -> list[tuple[str, str, Verdict | Alert]]:
    """(topic, site, value) of all that one of two leaves, whose models differ, and its region say of a frame that both have processed."""
    record = f"cam/e/{n}"
    own: dict[str, Any] = {"site": site, "confidence": 0.5 if site == "leaf-1" else 0.6}
    said: list[tuple[str, str, Verdict | Alert]] = [("up.verdicts", site, verdict(tools, record, status=Status.PROVISIONAL, **own))]
    if n % 3 == 0:
        said.append(("up.alerts", site, raised(tools, record, site=site, score=0.9 if site == "leaf-1" else 0.8)))
    if n % 2 == 0:
        said.append(("down.verdicts", site, verdict(tools, record, Tier.REGION)))
    return said


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_two_leaves_that_process_one_source_give_one_result_a_record_and_one_alert(tools: ModuleType, data: st.DataObject) -> None:
    ends = []
    for _ in range(2):
        desk = Desk(tools, region_site())
        said = [each for n in range(4) for site in ("leaf-1", "leaf-2") for each in copies_of(tools, n, site)]
        said += data.draw(st.lists(st.sampled_from(said), max_size=6), label="twice at one site")
        for base, site, value in data.draw(st.permutations(said), label="order"):
            desk.feed([desk.record(base, value, site=site)])
        results = {record: written[-1] for record, written in desk.results().items()}
        assert sorted(results) == [f"cam/e/{n}" for n in range(4)]
        assert [results[f"cam/e/{n}"].tier for n in range(4)] == ["region", "leaf", "region", "leaf"]
        alerts = {alert.id: alert for alert in desk.alerts()}
        assert {alert.record: (alert.state, alert.site, alert.score) for alert in alerts.values()} == {
            "cam/e/0": ("retracted", "leaf-2", 0.8),
            "cam/e/3": ("raised", "leaf-2", 0.8),
        }
        ends.append((results, alerts))
    assert ends[0] == ends[1]


# ---- lateness


def test_what_waited_for_the_link_is_that_much_later_at_the_region_and_the_first_copy_counts(tools: ModuleType, region: Desk) -> None:
    topic, record = region.record("up.alerts", raised(tools, late_by_s=0.5), site="leaf-1")

    record = msgspec.structs.replace(record, at=1_700_000_000_000)

    def appended(ms: str) -> Any:
        return msgspec.structs.replace(record, pairs=[*(record.pairs or []), ("ce_appendedms", ms.encode())])

    def waited(ms: int) -> Any:
        return appended(str(record.timestamp()[1] - ms))

    region.feed([(topic, waited(3_600_000))])
    assert [(alert.late_by_s, alert.late) for alert in region.alerts()] == [(3600.5, True)]
    region.feed([(topic, waited(250))])
    assert [(alert.late_by_s, alert.late) for alert in region.alerts()[1:]] == [(0.75, False)]
    region.feed([(topic, waited(7_200_000))], [(topic, waited(-5))], [(topic, appended("-5"))], [(topic, appended("9" * 40))])
    assert region.alerts()[-1].late_by_s == 0.5
    region.feed([region.record("down.verdicts", verdict(tools, tier=Tier.REGION), site="leaf-1")])
    assert (region.alerts()[-1].state, region.alerts()[-1].late_by_s) == ("retracted", 0.5)


def test_an_alert_that_comes_to_the_region_as_a_replayed_dead_letter_is_never_new(tools: ModuleType, region: Desk) -> None:
    topic, record = region.record("up.alerts", raised(tools), site="leaf-1")
    region.feed([(topic, msgspec.structs.replace(record, pairs=[*(record.pairs or []), ("headwater.replays", b"1")]))])
    assert [alert.late for alert in region.alerts()] == [True]


# ---- deadlines


def test_unanswered_is_published_once_after_the_deadline_and_not_when_answered_before(tools: ModuleType, leaf: Desk) -> None:
    leaf.feed([leaf.record("verdicts", verdict(tools, f"cam/e/{n}", status=Status.PROVISIONAL), at=100 + n) for n in range(3)])
    leaf.feed([leaf.record("region.verdicts", verdict(tools, "cam/e/1", Tier.REGION), at=500)])
    assert leaf.resolver.overdue(1099.9) == []
    found = leaf.resolver.overdue(1101.0)
    assert [(output.topic.base, output.key) for output in found] == [("verdicts", "cam/e/0")]
    assert [output.key for output in leaf.resolver.overdue(5000.0)] == ["cam/e/2"]
    assert leaf.resolver.overdue(1e9) == []
    late = Verdict.from_bytes(found[0].value or b"")
    assert (late.status, late.rank, late.deadline_ms, late.detections) == (
        Status.UNANSWERED,
        RANK[Tier.REGION],
        None,
        Detections([tools.person()]),
    )
    leaf.feed([leaf.record("verdicts", late)])
    assert leaf.results()["cam/e/0"][-1].status is Status.UNANSWERED
    leaf.feed([leaf.record("region.verdicts", verdict(tools, "cam/e/0", Tier.REGION))])
    assert leaf.results()["cam/e/0"][-1].status is Status.FINAL  # an answer that still comes is better than none


def test_the_region_publishes_no_deadlines(tools: ModuleType, region: Desk) -> None:
    region.feed([region.record("up.verdicts", verdict(tools, status=Status.PROVISIONAL), site="leaf-1")])
    assert region.resolver.overdue(1e12) == []


# ---- bad records, and what fails on the way


def test_bad_records_are_rejected_and_the_rest_go_on(tools: ModuleType, leaf: Desk) -> None:
    topic, good = leaf.record("verdicts", verdict(tools))
    _, other = leaf.record("verdicts", verdict(tools, "cam/e/1"))
    bad = [
        msgspec.structs.replace(good, data=None),
        msgspec.structs.replace(good, data=b"{}"),
        msgspec.structs.replace(good, data=(good.data or b"")[:-1]),
        msgspec.structs.replace(other, pairs=[*(other.pairs or []), ("ce_type", b"\xff")]),
    ]
    items = leaf.feed([(topic, record) for record in [*bad, good, other]])
    assert [type(item.error) if isinstance(item, Rejected) else None for item in items] == [
        InvalidRecord,
        InvalidRecord,
        InvalidRecord,
        InvalidEnvelope,
        None,
        None,
    ]
    assert set(leaf.results()) == {"cam/e/0", "cam/e/1"}  # what was rejected for its headers is not taken as known


def test_a_trace_goes_on_and_one_that_is_none_is_ignored(tools: ModuleType, leaf: Desk) -> None:
    trace = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    for n, value in enumerate((trace, b"nonsense", b"")):
        topic, record = leaf.record("verdicts", verdict(tools, f"cam/e/{n}"))
        leaf.feed([(topic, msgspec.structs.replace(record, pairs=[*(record.pairs or []), ("ce_traceparent", value)]))])
    assert [dict(output.headers).get("ce_traceparent") for output in leaf.written] == [trace, None, None]


def test_what_could_not_be_made_is_tried_again_as_if_it_were_new(tools: ModuleType, leaf: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf.feed([leaf.record("alerts", raised(tools))])
    with monkeypatch.context() as patch:
        patch.setattr("streams.outputs.alert", broken)
        with pytest.raises(OSError, match="no memory"):
            leaf.feed([leaf.record("region.verdicts", verdict(tools, tier=Tier.REGION))])
    leaf.feed([leaf.record("region.verdicts", verdict(tools, tier=Tier.REGION))])
    assert list(leaf.results()) == ["cam/e/0"]
    assert [alert.state for alert in leaf.alerts()] == ["retracted"]


def broken(*_: Any) -> Output:
    raise OSError("no memory")


# ---- restarts, on a real Kafka


def test_a_restart_reads_its_memory_back_and_a_replay_writes_nothing(tools: ModuleType, kafka: Kafka, prefix: str) -> None:
    config = tools.leaf_site(kafka=kafka, topics=Topics(prefix=prefix, partitions=1))
    clients = Clients(kafka, "test")
    create_topics(Topology(config), clients)
    first = Desk(tools, config, clients)
    places = [(topic.name, 0) for topic in first.role.reads()]
    first.resolver.restore(places)
    story = [
        Frame((Status.PROVISIONAL,), False, None, ("r",)),
        Frame((Status.PROVISIONAL,), True, None, ("r",)),
        Frame((Status.PROVISIONAL,), True, "person", ("r", "s")),
        Frame((Status.FINAL,), False, "nothing", ("r",)),
        Frame((Status.FINAL,), False, None, ()),
    ]
    names = {"leaf": "verdicts", "region": "region.verdicts", "alert": "alerts"}
    batches = [[first.record(names[kind], value, at=5)] for n, frame in enumerate(story) for kind, value in inputs_of(tools, n, frame)]
    first.feed(*batches)

    async def write() -> None:
        sink = Sink(clients)
        try:
            alerts = [value for n, frame in enumerate(story) for _, value in inputs_of(tools, n, frame) if isinstance(value, Alert)]
            agents = [outputs.alert(first.resolver.alerts, alert) for alert in alerts]
            await sink.write([*agents, *first.written, Output(first.resolver.results, "cam", "cam/e/9", b"from another version", [])])
        finally:
            sink.close()

    asyncio.run(write())
    second = Desk(tools, config, clients)
    second.resolver.restore(places)
    second.feed(*batches, *batches)
    assert second.changes() == []
    # the open deadline was taken up too, by the time that the broker gave the result
    (last,) = [r for r in stored(clients, first.resolver.results) if r.key() == b"cam-0/e/0"]
    due = last.timestamp()[1] + 1000
    assert second.resolver.overdue(due - 1) == []
    assert [output.key for output in second.resolver.overdue(due)] == ["cam-0/e/0"]
    # and what is new is still written
    second.feed([second.record("region.verdicts", verdict(tools, "cam-0/e/0", Tier.REGION))])
    assert [output.topic.base for output in second.changes()] == ["results", "alerts"]
    # a partition that went takes its memory with it
    second.resolver.forget(places)
    assert second.resolver._memories == {}


def test_an_alert_that_was_known_but_not_yet_in_work_before_a_crash_is_judged(tools: ModuleType, kafka: Kafka, prefix: str) -> None:
    """The log of alerts, which memory is restored from, is ahead of what the resolver has committed."""
    config = tools.leaf_site(kafka=kafka, topics=Topics(prefix=prefix, partitions=1))
    clients = Clients(kafka, "test")
    create_topics(Topology(config), clients)
    first = Desk(tools, config, clients)
    first.feed([first.record("region.verdicts", verdict(tools, tier=Tier.REGION))])

    async def write() -> None:
        sink = Sink(clients)
        try:
            await sink.write([*first.written, outputs.alert(first.resolver.alerts, raised(tools))])
        finally:
            sink.close()

    asyncio.run(write())
    second = Desk(tools, config, clients)
    second.resolver.restore([(topic.name, 0) for topic in second.role.reads()])
    second.feed([second.record("alerts", raised(tools))])
    assert [alert.state for alert in second.alerts()] == ["retracted"]
    assert [alert.state for _, alert in second.passed_on()] == ["retracted"]


def stored(clients: Clients, topic: Topic) -> list[KafkaRecord]:
    found = list(to_end(clients, [(topic.name, 0)]))
    assert all(RecordId.parse((record.key() or b"").decode()) for record in found)
    return found
