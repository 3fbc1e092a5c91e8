"""What the link carries first, how much of it, what it leaves and says so, who carries, and where it turns when its region is away."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streams.link.hold
import streams.link.lane
from infra.kafka.broker import Broker
from infra.kafka.settings import BrokerSettings
from schemas.config import SecondRegion
from schemas.envelope import Envelope, waited_ms
from schemas.identity import content_digest
from schemas.links import Breaker, LinkOrder, LinkState
from schemas.messages import Asked, Drop, Escalation, Reason
from streams import outputs
from streams.cluster import create_topics
from streams.link import Link
from streams.link.outbound import Outbound
from streams.link.told import give_order, read_told
from streams.partition import partition_of
from streams.topology import Topology, region_view

LIMIT_S = 60.0
SITE = "leaf-1"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams.link.lane, "GATHER_S", {"verdicts": 0.05})
    monkeypatch.setattr(streams.link.link, "STATE_S", 0.5)


def record(number: int, value: bytes, source: str = "cam-1") -> tuple[Any, ...]:
    name = b"%s/e/%d" % (source.encode(), number)
    return name, value, [("ce_id", name), ("ce_source", source.encode())], partition_of(source, 2)


def noise(number: int, size: int = 400) -> bytes:
    """Bytes that do not compress, told apart by their beginning."""
    return b"%6d" % number + os.urandom(size - 6)


def escalation(number: int, ttl_s: float) -> tuple[Any, ...]:
    evidence = b"evidence %d" % number
    asked = Asked(id=f"cam-1/e/{number}", captured_at=dt.datetime(2026, 1, 31, tzinfo=dt.UTC))
    digest = content_digest(evidence)
    value = Escalation(
        id=f"q{number}", source="cam-1", site=SITE, reason=Reason.UNCERTAIN, records=(asked,), evidence=digest, content_type="image/jpeg",
        deadline_ms=1000, ttl_s=ttl_s,
    )  # fmt: skip
    headers = [("ce_source", b"cam-1"), (outputs.ESCALATION_HEADER, value.to_bytes())]
    return b"cam-1", evidence, headers, partition_of("cam-1", 2)


def drops(way: Any) -> list[Drop]:
    return [Drop.from_bytes(row.value()) for row in way.leaf.rows(way.mirrors["drops"].source)]


# ---- what goes first


def test_what_is_new_and_what_is_urgent_passes_a_backlog_and_nothing_is_carried_twice(make_way: Any) -> None:
    way = make_way(budget_bytes_per_s=150_000)
    backlog = [record(n, noise(n)) for n in range(3000)]  # 1.2 MB: eight seconds of the budget
    way.put("verdicts", backlog)
    with way.link():
        way.leaf.until(lambda: len(way.arrived("verdicts")) > 100, "a link that carries")
        way.put("alerts", [record(1, b"urgent")])
        way.wait("alerts", {b"urgent"})
        way.put("verdicts", [record(5000, b"new")])
        way.wait("verdicts", {b"new"})
        assert len(way.arrived("verdicts")) < 2900, "the backlog was carried first"
        way.wait("verdicts", {value for _, value, _, _ in backlog})
        way.wait_positions("verdicts", 3001)
        way.leaf.until(lambda: not _gaps(way, "verdicts"), "positions without gaps")
    arrived = [row.value() for row in way.arrived("verdicts")]
    assert len(arrived) == 3001
    numbers = [int(value[:6]) for value in arrived if value != b"new"]
    assert numbers != sorted(numbers)
    early, late = numbers[: len(numbers) // 3], numbers[-len(numbers) // 3 :]
    assert sum(early) / len(early) > sum(late) / len(late), "the newest of the gap go first"


def _gaps(way: Any, base: str) -> list[Any]:
    name = way.mirrors[base].source.name
    return [gap for (topic, _), value in way.positions().items() if topic == name for gap in json.loads(value.get("backfill", "[]"))]


def test_a_link_killed_in_the_middle_of_a_gap_goes_on_with_what_is_left_of_it(make_way: Any) -> None:
    way = make_way(budget_bytes_per_s=100_000)
    way.put("verdicts", [record(n, noise(n)) for n in range(2000)])
    hook = "import msgspec; config = msgspec.structs.replace(config, link=msgspec.structs.replace(config.link, budget_bytes_per_s=100_000))"
    with way.process(hook) as process:
        way.leaf.until(lambda: _gaps(way, "verdicts"), "a position that names a gap", LIMIT_S)
        process.send_signal(signal.SIGKILL)
    name = way.mirrors["verdicts"].source.name
    top = way.positions()[name, partition_of("cam-1", 2)]["next_offset"]
    still_open = {offset for first, last in _gaps(way, "verdicts") for offset in range(first, last + 1)} | set(range(top, 2000))
    assert 0 < len(still_open) < 2000
    with way.link():
        way.wait_positions("verdicts", 2000)
        way.leaf.until(lambda: not _gaps(way, "verdicts"), "positions without gaps", LIMIT_S)
    arrived = Counter(int(row.value()[:6]) for row in way.arrived("verdicts"))  # one partition: its offsets are these numbers
    assert set(arrived) == set(range(2000))
    assert {number for number, count in arrived.items() if count > 1} <= still_open, "what a position called carried went again"


def test_over_a_longer_time_the_wire_carries_no_more_than_the_budget(make_way: Any, far: Any) -> None:
    """Both directions and everything that the clients say to each other, counted in the way between."""
    rate = 100_000
    way = make_way(budget_bytes_per_s=rate, burst_s=1.0)
    way.put("verdicts", [record(n, noise(n)) for n in range(2500)])
    way.put("down.verdicts", [record(n, noise(n)) for n in range(500)])
    with way.link():
        way.leaf.until(lambda: way.arrived("verdicts"), "a link that carries")
        begun, before = time.monotonic(), far.proxy.sent + far.proxy.received
        way.leaf.until(lambda: len(way.arrived("verdicts")) == 2500 and len(way.arrived("down.verdicts")) == 500, "the end", LIMIT_S)
        spent, passed_s = far.proxy.sent + far.proxy.received - before, time.monotonic() - begun
    assert spent > 500_000
    assert spent <= rate * (passed_s + 1.0) * 1.1 + 64_000  # what was saved up, and what a request and its answer may run over


# ---- what is left behind, and said


def test_an_escalation_whose_time_is_over_is_left_behind_and_explained(way: Any) -> None:
    way.put("escalations", [escalation(n, 0.5 if n % 2 else 3600.0) for n in range(6)])
    topic, partition = way.mirrors["escalations"].source, partition_of("cam-1", 2)
    newest_ms = max(row.timestamp()[1] for row in way.leaf.rows(topic))
    way.leaf.until(lambda: time.time() * 1000 > newest_ms + 600, "their time to pass")
    with way.link():
        way.wait_positions("escalations", 6)
        way.wait("escalations", {b"evidence %d" % n for n in (0, 2, 4)})
        way.leaf.until(lambda: drops(way), "an explanation")
    assert way.values("escalations").keys() == {b"evidence %d" % n for n in (0, 2, 4)}
    told = [drop for drop in drops(way) if drop.reason == "ttl"]
    assert {(drop.stage, drop.site, drop.source) for drop in told} == {("link", SITE, "kafka")}
    assert {offset for drop in told for first, last in drop.ranges.pairs for offset in range(first, last + 1)} == {1, 3, 5}
    assert {drop.epoch.rpartition("/")[2] for drop in told} == {str(partition)}


def test_what_retention_took_from_the_middle_of_a_gap_is_explained_exactly(make_way: Any) -> None:
    way = make_way(budget_bytes_per_s=60_000)
    topic, partition = way.mirrors["verdicts"].source, partition_of("cam-1", 2)
    way.put("verdicts", [record(n, noise(n)) for n in range(1500)])
    with way.link():
        way.leaf.until(lambda: len(way.arrived("verdicts")) > 50, "a link that carries")
        way.leaf.trim(topic, 900, partition)
        way.wait_positions("verdicts", 1500)
        way.leaf.until(lambda: not _gaps(way, "verdicts"), "positions without gaps", LIMIT_S)
    arrived = {int(row.value()[:6]) for row in way.arrived("verdicts")}
    lost = {
        offset
        for drop in drops(way)
        if drop.reason == "retention"
        for first, last in drop.ranges.pairs
        for offset in range(first, last + 1)
    }
    assert lost
    assert arrived | lost == set(range(1500))
    assert not arrived & lost
    assert max(lost) < 900


def test_every_record_says_when_it_was_appended_at_its_site(way: Any) -> None:
    way.put("alerts", [record(1, b"early")])
    (early,) = way.leaf.rows(way.mirrors["alerts"].source)
    way.leaf.until(lambda: time.time() * 1000 > early.timestamp()[1] + 1500, "a while")
    hour_ago = early.timestamp()[1] - 3_600_000
    with way.link():
        way.wait("alerts", {b"early"})
        way.put("alerts", [(b"k", b"twice", [("ce_source", b"cam-1"), ("ce_appendedms", b"%d" % hour_ago)], partition_of("cam-1", 2))])
        way.wait("alerts", {b"twice"})
    rows = {row.value(): row for row in way.arrived("alerts")}
    said = {value: [int(content) for name, content in row.headers() if name == "ce_appendedms"] for value, row in rows.items()}
    assert [len(each) for each in said.values()] == [1, 1]
    assert abs(said[b"early"][0] - early.timestamp()[1]) < 1000  # both brokers run on this machine, so both have its clock
    assert rows[b"early"].timestamp()[1] - said[b"early"][0] > 500
    assert abs(said[b"twice"][0] - hour_ago) < 1000  # over two links: the first site's time


def test_what_is_handed_to_the_client_while_the_region_is_away_has_waited_too(way: Any, far: Any) -> None:
    """An alert that waits in the client is late at the region, like one that waits in the log."""
    with way.link() as link:
        way.put("alerts", [record(1, b"before")])
        way.wait("alerts", {b"before"})
        far.proxy.cut()
        way.put("alerts", [record(2, b"during")])
        way.leaf.until(lambda: len(link.session.outbounds["urgent"].producer) > 0, "an alert that waits in the client", LIMIT_S)
        begun = time.monotonic()
        way.leaf.until(lambda: time.monotonic() - begun > 4, "a while")
        far.proxy.restore()
        way.wait("alerts", {b"during"})
    (late,) = (row for row in way.arrived("alerts") if row.value() == b"during")
    waited = waited_ms(Envelope.from_headers(event(late.headers())), late.timestamp()[1])
    assert waited >= 2000  # the clocks are known to within half a way there and back


def event(headers: list[tuple[str, bytes | None]]) -> list[tuple[str, bytes | None]]:
    """The test's bare records are no whole events."""
    return [*headers, ("ce_specversion", b"1.0"), ("ce_type", b"headwater.alert.v1"), ("ce_time", b"2026-01-31T12:00:00Z")]


def test_on_a_long_way_the_client_has_one_batch_of_a_partition_in_hand(way: Any, far: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """More would make its thread spin: it has one request of a partition under way."""
    monkeypatch.setattr(streams.link.lane, "MOST_RECORDS", 20)
    in_hand: Counter[int] = Counter()
    most: Counter[int] = Counter()
    lock = threading.Lock()
    send = Outbound.send

    def watched(self: Outbound, topic: str, key: Any, value: Any, headers: Any, partition: int, report: Any) -> None:
        if not topic.endswith(".verdicts"):
            return send(self, topic, key, value, headers, partition, report)

        def reported(error: Any, message: Any) -> None:
            with lock:
                in_hand[partition] -= 1
            report(error, message)

        with lock:
            in_hand[partition] += 1
            most[partition] = max(most[partition], in_hand[partition])
        return send(self, topic, key, value, headers, partition, reported)

    monkeypatch.setattr(Outbound, "send", watched)
    far.proxy.delay(0.1)
    backlog = [record(n, noise(n), source) for n in range(200) for source in ("cam-1", "cam-4")]
    way.put("verdicts", backlog)
    with way.link():
        way.leaf.until(lambda: len(way.arrived("verdicts")) > 40, "a link that carries", LIMIT_S)
        way.put("verdicts", [record(n, noise(n), source) for n in range(200, 260) for source in ("cam-1", "cam-4")])
        way.leaf.until(lambda: len(way.arrived("verdicts")) == 520, "the end", LIMIT_S)
    assert set(most) == {0, 1}
    assert max(most.values()) <= 20


# ---- who carries


def test_two_links_of_a_site_do_not_fight_and_the_second_goes_on_when_the_first_ends(way: Any, caplog: pytest.LogCaptureFixture) -> None:
    first = Link(way.config)
    first.start()
    way.put("alerts", [record(1, b"one")])
    way.wait("alerts", {b"one"})
    second = Link(way.config)
    second.start()
    try:
        way.leaf.until(lambda: "held by another one; this one stands by" in caplog.text, "a second link that says who holds it", LIMIT_S)
        said = next(entry for entry in caplog.records if "stands by" in entry.message)
        assert (said.site, said.pid) == (SITE, os.getpid())
        way.put("alerts", [record(n, b"%d" % n) for n in range(2, 200)])
        way.wait("alerts", {b"%d" % n for n in range(2, 200)})
        assert not second.session.carrying.is_set()
        first.stop()
        way.put("alerts", [record(200, b"after")])
        way.wait("alerts", {b"after"})
        assert second.session.carrying.is_set()
    finally:
        first.stop()
        second.stop()
    assert len(way.arrived("alerts")) == 200  # nothing was carried by both


def test_a_link_whose_process_was_killed_is_replaced_at_once(way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams.link.hold, "STALE_S", 3600.0)  # only by its process can its end be known in time
    with way.process() as process:
        way.put("alerts", [record(1, b"one")])
        way.wait("alerts", {b"one"})
        process.send_signal(signal.SIGKILL)
    with way.link():
        way.put("alerts", [record(2, b"two")])
        way.wait("alerts", {b"two"})


# ---- what people order, and see


def test_a_pause_holds_over_restarts_and_for_the_lanes_that_it_names(way: Any) -> None:
    leaf = Topology(way.config)
    order = LinkOrder(site=SITE, paused=True, lanes=("verdicts",), by="someone@here", reason="test")
    give_order(way.leaf.clients, leaf, order)
    way.put("verdicts", [record(1, b"held")])
    for _ in range(2):
        with way.link() as link:
            way.leaf.until(lambda link=link: link.order == order, "a link that has heard the order")
            way.put("alerts", [record(1, b"free")])
            way.wait("alerts", {b"free"})
    assert not way.arrived("verdicts")
    with way.link():
        give_order(way.leaf.clients, leaf, LinkOrder(site=SITE, paused=False, by="someone@here"))
        way.wait("verdicts", {b"held"})


def test_it_says_how_it_stands_also_during_an_outage(way: Any, far: Any) -> None:
    leaf = Topology(way.config)

    def state() -> LinkState | None:
        return read_told(way.leaf.clients, leaf).state

    def says(check: Callable[[LinkState], bool], what: str) -> LinkState:
        way.leaf.until(lambda: (told := state()) is not None and check(told), what, LIMIT_S)
        found = state()
        assert found is not None
        return found

    with way.link():
        way.put("verdicts", [record(1, b"one")])
        way.wait("verdicts", {b"one"})
        told = says(
            lambda value: value.breaker is Breaker.CLOSED and not any(lane.waiting for lane in value.lanes.lanes), "a link in order"
        )
        assert [lane.topic for lane in told.lanes.lanes][:2] == ["alerts", "escalations.alerts"]
        far.proxy.cut()
        says(lambda value: value.breaker is not Breaker.CLOSED, "a region that does not answer")
        way.put("verdicts", [record(n, b"during") for n in range(2, 42)])
        told = says(lambda value: any(lane.topic == "verdicts" and lane.waiting == 40 for lane in value.lanes.lanes), "what waits")
        way.leaf.until(
            lambda: next(lane.oldest_s for lane in state().lanes.lanes if lane.topic == "verdicts") > 1,  # type: ignore[union-attr]
            "the age of the oldest",
        )
        far.proxy.restore()
        says(lambda value: value.breaker is Breaker.CLOSED and not any(lane.waiting for lane in value.lanes.lanes), "a link in order again")
    assert way.values("verdicts")[b"during"] == 40


# ---- a second region


def test_a_second_region_takes_over_and_gives_back(make_way: Any, far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams.link.link, "PROBE_S", 0.5)
    monkeypatch.setattr(streams.link.session, "HINT_S", 0.3)
    with Broker(BrokerSettings(name="second", folder=tmp_path / "second", port=0)) as broker:
        way = make_way(second=SecondRegion(region=broker.kafka, region_name="region-2", after_s=5, return_after_s=5))
        other = type(way.region)(broker.kafka, way.leaf.prefix)
        create_topics(region_view(way.config, second=True), other.clients)
        alerts, verdicts = (region_view(way.config, second=True).topic(f"up.{base}", SITE) for base in ("alerts", "escalations"))

        def there(topic: Any) -> set[bytes]:
            return {row.value() for row in other.rows(topic)}

        with way.link() as link:
            way.put("alerts", [record(n, b"first %d" % n) for n in range(20)])
            way.put("escalations", [escalation(1, 3600)])
            way.wait("alerts", {b"first %d" % n for n in range(20)})
            way.wait("escalations", {b"evidence 1"})
            hints = f"{way.leaf.prefix}positions"
            way.leaf.until(lambda: len(way.leaf.rows(hints)) >= 2, "the leaf's copy of the positions")
            far.proxy.cut()
            way.put("alerts", [record(n, b"during %d" % n) for n in range(20)])
            way.leaf.until(lambda: link.session.second, "the turn to the second region", LIMIT_S)
            way.put("escalations", [escalation(2, 3600)])
            way.leaf.until(lambda: there(alerts) >= {b"during %d" % n for n in range(20)}, "the second region", LIMIT_S)
            way.leaf.until(lambda: b"evidence 2" in there(verdicts), "its evidence", LIMIT_S)
            assert not {b"first %d" % n for n in range(20)} & there(alerts), "it begins where the first one was"
            assert b"evidence 1" not in there(verdicts)
            other.put(region_view(way.config, second=True).topic("down.verdicts", SITE), [record(1, b"answer")])
            way.leaf.until(lambda: b"answer" in {row.value() for row in way.leaf.rows(way.mirrors["down.verdicts"].target)}, "its answer")
            far.proxy.restore()
            way.put("alerts", [record(99, b"back")])
            way.wait("alerts", {b"back", *(b"during %d" % n for n in range(20))})
        assert way.values("escalations").keys() == {b"evidence 1"}, "what one region was asked, the other is not"
        assert threading.active_count() < 60
