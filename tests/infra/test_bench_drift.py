"""The measuring of drift: that its streams are what they say, and that the command tells what it found."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import msgspec
import numpy as np
import pytest

from infra.bench import drift as bench
from infra.bench.drift_streams import CHUNK, Stream, bootstrap, crowd, fading, looped, streams
from infra.cli import bench_drift
from schemas.drift import Cause

SERIES = 0.6 + 0.1 * np.sin(np.arange(500) / 20)


def correlation(values: np.ndarray, lag: int) -> float:
    return float(np.corrcoef(values[lag:], values[:-lag])[0, 1])


@pytest.mark.parametrize("frames", [10, 100])
def test_a_fading_memory_fades(frames: int) -> None:
    stream = fading(np.random.default_rng(1), frames=frames)
    values = np.concatenate([next(stream), next(stream)])
    shared = 0.07**2 / (0.07**2 + 0.05**2)
    for lag in (1, frames, 2 * frames):
        assert correlation(values, lag) == pytest.approx(shared * np.exp(-lag / frames), abs=0.05)
    assert correlation(np.concatenate([values[CHUNK - 100 : CHUNK], values[CHUNK : CHUNK + 100]]), 1) > 0.3  # no seam


def test_a_crowd_has_the_size_and_the_memory_that_it_should() -> None:
    numbers = np.concatenate(list(islice(crowd(np.random.default_rng(2), stay_s=4, people=5, counted=True), 3)))
    assert numbers.mean() == pytest.approx(4.5, rel=0.03)  # one in ten is not seen
    assert numbers.var() == pytest.approx(4.5, rel=0.1)  # those present by chance are Poisson
    assert 0.3 < correlation(numbers, 20) < 0.75
    assert abs(correlation(numbers, 2000)) < 0.05
    thirds = numbers[: CHUNK * 3].reshape(3, -1).mean(1)
    assert np.ptp(thirds) < 0.5  # the first chunk is like the others


def test_pieces_and_loops_are_of_the_series() -> None:
    places = next(bootstrap(np.random.default_rng(3), series=np.arange(500.0), block=50))
    assert set(places) == set(range(500))
    assert np.mean(places[1:] != (places[:-1] + 1) % 500) == pytest.approx(1 / 50, rel=0.05)
    loop = next(looped(np.random.default_rng(4), series=SERIES))
    assert np.array_equal(loop[:500], loop[500:1000])


@pytest.mark.parametrize("name", streams(SERIES))
def test_the_same_seed_is_the_same_stream(name: str) -> None:
    stream = streams(SERIES)[name]
    one, other = next(stream(np.random.default_rng(5))), next(stream(np.random.default_rng(5)))
    assert np.array_equal(one, other)
    assert np.isfinite(one).all()
    assert one.shape == (CHUNK,)


@pytest.mark.parametrize(("count", "upper"), [(0, 2.996), (1, 4.744), (3, 7.754), (10, 16.962)])
def test_the_upper_bound_of_a_count(count: int, upper: float) -> None:
    assert bench.poisson_upper(count) == pytest.approx(upper, abs=2e-3)


def test_a_drift_in_a_stream_is_counted_as_an_alarm() -> None:
    """The judge itself: a stream that does jump is not called quiet."""

    def jumping(random: np.random.Generator) -> Any:
        for part in range(8):
            yield 0.5 + 0.2 * (part % 2) + 0.05 * random.standard_normal(CHUNK)

    found = bench.false_alarms("jumping", jumping, batches=1_000_000, seed=1)
    assert found.alarms >= bench.CAMERAS
    assert found.per_100k > 0


def full_report(report: Any) -> bench_drift.Report:
    """A report of the command, read again."""
    parts = {
        "false_alarms": tuple[bench.FalseAlarms, ...],
        "delays": tuple[bench.Delays, ...],
        "cost": bench.Cost,
        "faults": tuple[bench.VideoFault, ...],
        "missed": tuple[str, ...],
    }
    return bench_drift.Report(
        undisturbed=report["undisturbed"], **{name: msgspec.convert(report[name], kind) for name, kind in parts.items()}
    )


def test_the_command_tells_what_it_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def few(real: Any) -> dict[str, Stream]:
        assert len(real) > 200
        return {"the video, in pieces": streams(real)["the video, in pieces"]}

    monkeypatch.setattr("infra.bench.drift_streams.streams", few)
    monkeypatch.setattr(bench, "NAMED", {"blur": Cause.BLUR})
    monkeypatch.setattr(bench_drift, "FRAMES", 250)
    code = bench_drift.drift.main(["--batches", "1000", "--trials", "1", "--json"], standalone_mode=False)
    report = json.loads(capsys.readouterr().out)
    assert [each["alarms"] for each in report["false_alarms"]] == [0]
    assert {each["shift"] for each in report["delays"]} == {0.175, 0.1}
    assert all(each["found"] == 1 for each in report["delays"])
    assert report["undisturbed"] == 0
    assert [(each["causes"], each["named"]) for each in report["faults"]] == [(["blur"], True)]
    assert code == (1 if report["missed"] else 0)
    monkeypatch.setattr(bench_drift, "measure", lambda *_: full_report(report))
    assert bench_drift.drift.main([], standalone_mode=False) == code
    text = capsys.readouterr().out
    assert "undisturbed     0 alarms" in text
    assert "blur=0.01@20-40" in text
