"""Parts of the demo that judge or measure: the quantiles, what the region changed, and when a run has failed."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram, start_http_server

from infra.demo.figures import Accuracy, Percentiles, Tally
from infra.demo.machine import Measured
from infra.demo.observer import SeenAlert, SeenAnswer, SeenDrift, SeenVerdict, difference
from infra.demo.report import Drifted, report
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
        ("drift", "the first camera was spoiled (blur@20), and no alarm told of it"),
    ],
)
def test_a_run_that_breaks_a_promise_has_failed(spoil: str | None, said: str | None, tmp_path: Path) -> None:
    measured = Measured(leaf_ms=6, region_ms=140, cameras=1, inferences_per_s=2, engine="cpu", cores=2)
    plan = Plan(video=tmp_path, seconds=60, cameras=1, outage=(20, 15), folder=tmp_path, measured=measured, degrade="blur@20")
    demo = Demo(plan, lambda _: None)
    demo.began_at = 1000.0
    demo.produced = {"bytes": 10_000, "sources": {"cam-1": {"frames": 1700 if spoil == "rate" else 1770}}}
    asked = 0.0 if spoil == "escalations" else 3.0
    demo.scrapes["leaf agent"] = Scrape({("headwater_escalations_total", frozenset({("reason", "alert")})): asked})
    demo.cut_at, demo.restored_at = 1000.0, 1015.0
    common = {"source": "cam-1", "record": "cam-1/e/0", "latency_ms": 12.0}
    at = 990.0 if spoil == "outage" else 1005.0
    demo.tally.take(SeenAlert(read_at=at, alert="a", rule="r", state="raised", score=0.7, **common))
    demo.tally.take(SeenAlert(read_at=1020.0, alert="a", rule="r", state="confirmed", score=0.7, **common))
    demo.tally.take(SeenVerdict(read_at=1005.0, status="final", **common))
    drift = {"source": "cam-1", "latency_ms": 5.0, "cause": "blur", "before": 0.4, "after": 0.01}
    if spoil != "drift":
        demo.tally.take(SeenDrift(read_at=1026.0, record="drift-1", state="opened", **drift))
        demo.tally.take(SeenDrift(read_at=1046.5, record="drift-1", state="closed", **drift))
    demo.tally.take(SeenAnswer(read_at=1016.5, added=1, removed=0, **common))
    lines = () if spoil == "nothing" else (line(missing=((7, 7),)) if spoil == "account" else line(),)
    found = report(demo, Account(lines=lines))
    if said is None:
        assert found.failures == ()
        assert (found.alerts, found.first_answer_after_outage_s) == ({"confirmed": 1}, 1.5)
        assert found.drift == (Drifted(source="cam-1", cause="blur", opened_s=26.0, closed_s=46.5),)
        assert found.region_load == round(1 / 60 / 2, 3)
    else:
        assert any(said in failure for failure in found.failures)
    demo.proxy.stop()


def test_latencies_say_on_how_many_frames_they_rest() -> None:
    tally = Tally()
    assert Percentiles.of(tally.verdict_ms) is None
    assert Percentiles.of([float(k) for k in range(1, 101)]) == Percentiles(p50=50.5, p95=95.0, p99=99.0, frames=100)


def test_live_accuracy_is_read_from_the_leafs_metrics() -> None:
    def sample(name: str, value: float, **labels: str) -> tuple[tuple[str, frozenset[tuple[str, str]]], float]:
        return (name, frozenset(labels.items())), value

    bounds = {"value": 0.9, "low": 0.8, "high": 0.95}
    f1 = [
        sample("headwater_live_accuracy", each, answers=answers, measure="f1", bound=bound)
        for answers in ("leaf", "results")
        for bound, each in bounds.items()
    ]
    found = Accuracy.of(Scrape(dict([sample("headwater_live_accuracy_frames", 240.0), *f1])))
    assert str(found) == "F1 0.90 (0.80 to 0.95) leaf, 0.90 (0.80 to 0.95) results, against the region on 240 audited frames"
    unknown = [((name, labels), float("nan")) for (name, labels), _ in f1]
    few = Accuracy.of(Scrape(dict([sample("headwater_live_accuracy_frames", 12.0), *unknown])))
    assert str(few) == "not known yet: 12 frames were judged"
    assert Accuracy.of(Scrape({})) is None
    assert Accuracy.of(None) is None
