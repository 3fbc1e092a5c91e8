"""Parts of the demo that judge or measure: the quantiles, what the region changed, and when a run has failed."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram, start_http_server

from infra.demo.figures import Percentiles, Tally
from infra.demo.machine import Measured
from infra.demo.observer import SeenAlert, SeenAnswer, SeenVerdict, difference
from infra.demo.report import report
from infra.demo.scenario import Demo, Plan
from infra.demo.scrape import Scrape, scrape
from schemas.detections import Detection, Detections
from streams.account import Account, Line


def test_quantiles_are_read_from_a_real_metrics_page() -> None:
    registry = CollectorRegistry()
    stages = Histogram("stage_seconds", "Test.", ["stage"], buckets=[0.01 * k for k in range(1, 101)], registry=registry)
    for number in range(1000):
        stages.labels("look").observe(number / 1000)
        stages.labels("other").observe(0.995)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        page = scrape(server.server_port)
        assert page is not None
        assert page.quantile("stage_seconds", 0.5, stage="look") == pytest.approx(0.5, abs=0.011)
        assert page.quantile("stage_seconds", 0.99, stage="look") == pytest.approx(0.99, abs=0.011)
        assert page.quantile("stage_seconds", 0.5, stage="absent") is None
        assert page.total("stage_seconds_count") == 2000
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
    assert scrape(1) is None, "nobody listens there"


def test_what_the_region_changed_is_counted_by_class_and_overlap() -> None:
    person, moved = Detection("person", 0.9, 0.1, 0.1, 0.3, 0.5), Detection("person", 0.8, 0.12, 0.1, 0.32, 0.5)
    elsewhere, faint = Detection("person", 0.9, 0.7, 0.1, 0.9, 0.5), Detection("person", 0.3, 0.5, 0.5, 0.6, 0.9)
    dog = Detection("dog", 0.9, 0.1, 0.1, 0.3, 0.5)
    assert difference(Detections([person]), Detections([moved])) == (0, 0)
    assert difference(Detections([person]), Detections([moved, elsewhere])) == (1, 0)
    assert difference(Detections([person, elsewhere]), Detections([moved])) == (0, 1)
    assert difference(Detections([person]), Detections([dog])) == (1, 1)
    assert difference(Detections([faint]), Detections()) == (0, 0)


def line(produced: int = 1770, missing: tuple[tuple[int, int], ...] = ()) -> Line:
    left = sum(last - first + 1 for first, last in missing)
    return Line(
        source="cam-1", epoch="e", state="ended", produced=produced, results=produced - left, dead=0, drops={}, open=missing, unsent=0
    )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (None, None),
        ("account", "1 frames are unexplained"),
        ("rate", "fewer than 29 frames/s"),
        ("escalations", "nothing was escalated"),
        ("outage", "no alert came during the outage"),
        ("nothing", "no frame was produced"),
    ],
)
def test_a_run_that_breaks_a_promise_has_failed(spoil: str | None, said: str | None, tmp_path: Path) -> None:
    measured = Measured(leaf_ms=6, region_ms=140, cameras=1, inferences_per_s=2, engine="cpu", cores=2)
    demo = Demo(Plan(video=tmp_path, seconds=60, cameras=1, outage=(20, 15), folder=tmp_path, measured=measured), lambda _: None)
    demo.produced = {"bytes": 10_000, "sources": {"cam-1": {"frames": 1700 if spoil == "rate" else 1770}}}
    asked = 0.0 if spoil == "escalations" else 3.0
    demo.scrapes["leaf agent"] = Scrape({("headwater_escalations_total", frozenset({("reason", "alert")})): asked})
    demo.cut_at, demo.restored_at = 1000.0, 1015.0
    common = {"source": "cam-1", "record": "cam-1/e/0", "latency_ms": 12.0}
    at = 990.0 if spoil == "outage" else 1005.0
    demo.tally.take(SeenAlert(read_at=at, alert="a", rule="r", state="raised", score=0.7, **common))
    demo.tally.take(SeenAlert(read_at=1020.0, alert="a", rule="r", state="confirmed", score=0.7, **common))
    demo.tally.take(SeenVerdict(read_at=1005.0, status="final", **common))
    demo.tally.take(SeenAnswer(read_at=1016.5, added=1, removed=0, **common))
    lines = () if spoil == "nothing" else (line(missing=((7, 7),)) if spoil == "account" else line(),)
    found = report(demo, Account(lines=lines))
    if said is None:
        assert found.failures == ()
        assert (found.alerts, found.first_answer_after_outage_s) == ({"confirmed": 1}, 1.5)
    else:
        assert any(said in failure for failure in found.failures)
    demo.proxy.stop()


def test_latencies_say_on_how_many_frames_they_rest() -> None:
    tally = Tally()
    assert Percentiles.of(tally.verdict_ms) is None
    assert Percentiles.of([float(k) for k in range(1, 101)]) == Percentiles(p50=50.5, p95=95.0, p99=99.0, frames=100)
