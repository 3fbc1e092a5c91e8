"""The comparison of links: its thin link, what MirrorMaker is told, how runs are judged; and once the whole, small, with real processes."""

from __future__ import annotations

import datetime as dt
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from infra.bench.contenders import Contender
from infra.bench.course import Case, Course, Sample, Written, orders
from infra.bench.judge import Figures, Spread, judge
from infra.bench.report import Machine, Variant, report, tables
from infra.bench.shaping import ThinProxy, TokenBucket
from infra.bench.workload import ALERT_SHARE, Workload
from infra.kafka import KafkaFailed
from infra.kafka.jars import connect_jars, locked_jars
from infra.kafka.mirror_maker import properties, settings
from schemas.config import SiteConfig, parse
from schemas.envelope import Envelope
from schemas.messages import Alert, Verdict
from streams.topology import Topology, mirrors, region_view

LEAF = 'name = "leaf-1"\ntier = "leaf"\n[kafka]\nbootstrap_servers = "leaf:9092"\n[link.region]\nbootstrap_servers = "far:9093"\n'


def leaf(extra: str = "") -> SiteConfig:
    return parse(LEAF + extra, {})


# ---- the thin link


@given(
    rate=st.floats(100, 1e7),
    burst=st.floats(0, 1e5),
    asked=st.lists(st.tuples(st.integers(1, 100_000), st.floats(0, 2)), min_size=1, max_size=60),
)
def test_a_bucket_lets_no_more_pass_than_its_rate_and_a_burst(rate: float, burst: float, asked: list[tuple[int, float]]) -> None:
    bucket, now, passed = TokenBucket(rate_bytes_per_s=rate, burst_bytes=burst), 0.0, []
    for size, pause_s in asked:
        now += pause_s
        passed.append((now + bucket.take(size, now), size))
    times = [at for at, _ in passed]
    assert times == sorted(times), "who comes first passes first"
    for first in range(len(passed)):
        window = passed[first:]
        total = 0.0
        for at, size in window:
            total += size
            # The one that opens the window may have been let through on credit that it pays by waiting before it.
            assert total <= burst + rate * (at - window[0][0]) + window[0][1] + 1e-3 * total


@given(rate=st.floats(100, 1e7), sizes=st.lists(st.integers(1, 100_000), min_size=1, max_size=40))
def test_a_bucket_that_is_always_asked_wastes_nothing(rate: float, sizes: list[int]) -> None:
    bucket, now = TokenBucket(rate_bytes_per_s=rate, burst_bytes=0), 0.0
    for size in sizes:
        now += bucket.take(size, now)
    assert now == pytest.approx(sum(sizes) / rate)


@pytest.mark.parametrize("limit", [None, 2_000_000])
def test_what_passes_a_thin_link_is_whole_and_counted(limit: int | None) -> None:
    sent = bytes(range(256)) * 2_000
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                received = b""
                while len(received) < len(sent):
                    received += connection.recv(65_536)
                connection.sendall(received[::-1])

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        proxy = ThinProxy().start(server.getsockname()[:2])
        try:
            proxy.limit(limit)
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
                client.sendall(sent)
                back = b""
                while len(back) < len(sent):
                    back += client.recv(65_536)
            thread.join(20)
        finally:
            proxy.stop()
    assert back == sent[::-1]
    assert (proxy.sent, proxy.received) == (len(sent), len(sent))


# ---- MirrorMaker 2


def by_name(config: SiteConfig, *, down: bool = True) -> dict[str, str]:
    return {each.name: each.value for each in settings(config, down=down)}


def test_its_own_policy_of_names_gives_what_the_region_reads() -> None:
    config = leaf()
    told = by_name(config)
    alias, _ = told["clusters"].split(",")
    upward = [each for each in mirrors(Topology(config), region_view(config)) if each.direction == "up"]
    assert [f"{alias}.{each.source.name}" for each in upward] == [each.target.name for each in upward]
    wanted = re.compile("|".join(told["up.leaf-1->region.topics"].split(",")))
    topology = Topology(config)
    assert {topic.name for topic in topology if wanted.fullmatch(topic.name)} == {each.source.name for each in upward}
    assert (told["up.leaf-1.bootstrap.servers"], told["region.bootstrap.servers"]) == ("leaf:9092", "far:9093")


def test_downwards_each_topic_is_renamed_to_the_leafs() -> None:
    config = leaf()
    told = by_name(config)
    renamed = [
        (re.compile(told[name]), told[name.replace(".regex", ".replacement")])
        for name in told
        if name.startswith("region->up.leaf-1.transforms.") and name.endswith(".regex")
    ]
    for mirror in mirrors(Topology(config), region_view(config)):
        if mirror.direction == "down":
            found = [target for regex, target in renamed if regex.fullmatch(f"region.{mirror.source.name}")]
            assert found == [mirror.target.name]
    assert not [name for name in by_name(config, down=False) if "transforms" in name]


def test_its_worker_settings_carry_the_alias_of_the_target() -> None:
    told = by_name(leaf())
    for alias in ("region", "up.leaf-1"):
        assert told[f"{alias}.session.timeout.ms"] == "60000"
        assert told[f"{alias}.scheduled.rebalance.max.delay.ms"] == "0"
        assert told[f"{alias}.plugin.discovery"] == "service_load"
        assert told[f"{alias}.producer.enable.idempotence"] == "true"
    assert told["region.producer.compression.type"] == "zstd"
    assert "up.leaf-1.producer.compression.type" not in told, "the leaf's own broker is not behind the thin link"
    assert "session.timeout.ms" not in told


def test_its_file_reads_as_java_reads_properties() -> None:
    text = properties(settings(leaf()))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    read = dict(line.split("=", 1) for line in lines)
    assert len(read) == len(lines), "no setting stands twice"
    assert {name: value.replace("\\\\", "\\") for name, value in read.items()} == by_name(leaf())


@pytest.mark.parametrize(
    ("config", "said"),
    [(leaf('[topics]\nprefix = "a."\n'), "topics.prefix is 'a.'"), (parse('name = "leaf-1"\ntier = "leaf"', {}), "has no \\[link\\]")],
)
def test_what_it_cannot_mirror_is_said(config: SiteConfig, said: str) -> None:
    with pytest.raises(KafkaFailed, match=said):
        settings(config)


def test_connect_adds_to_the_brokers_jars_and_replaces_none() -> None:
    whole, broker = connect_jars(), locked_jars()
    assert whole[: len(broker)] == broker
    assert len({jar.coordinates[:2] for jar in whole}) == len(whole), "no library in two versions"
    assert {jar.coordinates[2] for jar in whole if jar.coordinates[0] == "org.apache.kafka"} == {"4.3.1"}
    assert ("org.apache.kafka", "connect-mirror") in {jar.coordinates[:2] for jar in whole}


# ---- the work and the judgement


def test_its_records_are_a_leafs_and_the_same_for_everyone() -> None:
    topology = Topology(leaf())
    verdicts, alerts = topology.topic("verdicts"), topology.topic("alerts")
    start = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
    first, again = (list(Workload("leaf-1", verdicts, alerts, 7).backlog(500, start, 20)) for _ in range(2))
    assert [(each.key, each.value, each.headers) for each in first] == [(each.key, each.value, each.headers) for each in again]
    kinds: dict[str, type[Verdict] | type[Alert]] = {"verdicts": Verdict, "alerts": Alert}
    for output in first:
        kinds[output.topic.base].from_bytes(output.value or b"")
        found = Envelope.from_headers(output.headers)
        assert found is not None
        assert found.source == output.source
    assert sum(output.topic is alerts for output in first) == 500 * ALERT_SHARE
    assert len({dict(output.headers)["ce_id"] for output in first}) == 500


CASE = Case(records=3, outage_s=20, steady_s=1, limit_bytes_per_s=1000, drain_limit_s=60)


def course(arrivals: list[tuple[str, float]]) -> Course:
    """Cut at 110, restored at 130; three records in the outage, two alerts after it."""
    return Course(
        started_at=100.0,
        ready_at=104.0,
        cut_at=110.0,
        restored_at=130.0,
        ended_at=140.0,
        written=[
            Written("steady", 105.0, True, 100),
            Written("a", 111.0, False, 1000),
            Written("b", 112.0, False, 1000),
            Written("old alert", 113.0, True, 500),
            Written("new alert", 130.0, True, 500),
            Written("newer alert", 131.0, True, 500),
        ],
        arrivals=arrivals,
        samples=[
            Sample(100, 0, 0, 10, 1.0),
            Sample(130, 500, 50, 99, 2.0),
            Sample(134, 4_500, 90, 20, 4.0),
            Sample(140, 4_500, 90, 20, 4.0),
        ],
    )


ARRIVALS = [("steady", 105.25), ("new alert", 130.5), ("newer alert", 133.0), ("old alert", 131.0), ("a", 132.0), ("b", 134.0)]


def test_a_run_is_judged_by_when_each_record_first_came() -> None:
    found = judge(CASE, course([*ARRIVALS, ("a", 139.0), ("a", 139.5)]))
    assert found.drain_s == 4.0, "the last of what was written before the end of the outage"
    assert (found.backlog, found.records_per_s, found.payload_bytes_per_s) == (3, 0.75, 625.0)
    assert found.first_alert_s == 0.5
    assert (found.alerts, found.alert_max_ms, found.alert_p50_ms) == (2, 2000.0, 1250.0)
    assert found.steady_alert_p50_ms == 250.0
    assert found.duplicates == 2
    assert (found.wire_bytes, found.wire_down_bytes, found.budget_share) == (4000, 40, 1.01)
    assert (found.resident_bytes, found.cpu_s) == (99, 2.0)
    assert (found.start_s, found.outage_s) == (4.0, 20.0)


def test_contenders_take_turns_and_each_repeat_starts_with_another() -> None:
    def make(*_: Any) -> Any:
        raise AssertionError("nothing runs here")

    three = [Contender(name=name, label=name, make=make, version="1") for name in "abc"]
    assert "".join(each.name for _, each in orders(three, 3)) == "abcbcacab"


def figures(**changes: float) -> Figures:
    return msgspec.structs.replace(judge(CASE, course(ARRIVALS)), **changes)


def told(ours: list[Figures], theirs: list[Figures], limit: int | None) -> tuple[str, list[bool]]:
    where = Machine(processor="a processor", cores=2, memory_bytes=8 << 30, system="Linux 6", python="3.11.7", load_before=0.1)
    case = msgspec.structs.replace(CASE, limit_bytes_per_s=limit)
    variant = Variant(name="limited" if limit else "unlimited", case=case, runs={"headwater": ours, "mirrormaker": theirs})
    whole = report(where, {"headwater": "0.1.0", "mirrormaker": "4.3.1"}, [variant])
    assert msgspec.json.decode(msgspec.json.encode(whole), type=type(whole)) == whole
    screen = Console(width=130, record=True, force_terminal=False, file=open("/dev/null", "w"))  # noqa: SIM115
    screen.print(tables(whole, {"headwater": "Headwater link", "mirrormaker": "MirrorMaker 2"}))
    return screen.export_text(), [goal.met for goal in whole.goals]


def test_the_table_shows_medians_and_ranges_and_the_goals() -> None:
    text, met = told([figures(drain_s=value) for value in (9.0, 4.0, 5.0)], [figures(drain_s=20.0)], 1000)
    assert re.search(r"backlog through, s +5\.0 \(4\.0–9\.0\) +20\.0", text)
    assert re.search(r"met +limited: the first alert .*: 0\.50 s, the slowest 0\.50 s", text)
    assert re.search(r"met +limited: the backlog drains at 98% of the budget: 101\.0%", text)
    assert "a processor, 2 cores, 8 GiB" in text
    assert "MirrorMaker 2 4.3.1" in text
    assert met == [True, True]


def test_a_goal_that_was_not_met_says_so() -> None:
    text, met = told([figures(first_alert_s=0.2, budget_share=0.95), figures(first_alert_s=1.5, budget_share=0.95)], [figures()], 1000)
    assert met == [False, False]
    assert text.count("NOT MET") == 2
    _, met = told([figures(records_per_s=140.0)], [figures(records_per_s=100.0)], None)
    assert met == [True, False]
    _, met = told([figures(records_per_s=150.0)], [figures(records_per_s=100.0)], None)
    assert met == [True, True]


def test_a_spread_is_the_median_and_the_range() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


# ---- the whole, small


def test_the_link_and_the_plain_loop_carry_an_outage_through(headwater: Callable[..., Any], tmp_path: Path) -> None:
    ran = headwater(
        *("bench", "link", "--with", "headwater", "--with", "raw", "--variant", "limited", "--limit", 400_000, "--repeats", 1),
        *("--records", 1_000, "--outage", 1.5, "--steady", 0.5, "--json", "--keep", tmp_path / "kept"),
    )
    assert ran.code in (0, 1), ran.err  # 1: a goal was not met, as may be on a busy machine
    whole = msgspec.json.decode(ran.out)
    (variant,) = whole["variants"]
    for name in ("headwater", "raw"):
        (found,) = variant["runs"][name]
        assert found["backlog"] >= 1_000
        assert found["duplicates"] == 0
        assert found["outage_s"] >= 1.5
        assert 0 < found["wire_bytes"] < found["backlog"] * 1_000, "compressed"
    assert len(whole["goals"]) == 2
    assert (tmp_path / "kept" / "limited-1-headwater" / "link.log").exists()
