"""The figures of a demo run: what the observer's lines, the processes' metrics, the proxy and the account add up to."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import msgspec
import numpy as np

from infra.demo.observer import Line, SeenAlert, SeenAnswer, SeenDrift, SeenVerdict, Trouble
from infra.demo.scrape import Scrape


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies in milliseconds, and on how many frames they rest."""

    p50: float
    p95: float
    p99: float
    frames: int

    @classmethod
    def of(cls, values: Sequence[float], frames: int | None = None) -> Percentiles | None:
        if not values:
            return None
        p50, p95, p99 = np.percentile(np.asarray(values), (50, 95, 99))
        return cls(p50=round(float(p50), 1), p95=round(float(p95), 1), p99=round(float(p99), 1), frames=frames or len(values))


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """A share that was measured on a sample: in truth it lies from `low` to `high` with a probability of .95."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """F1 of the leaf's answers and of the results against the region, on the frames of the audit sample; None where they are too few."""

    frames: int
    leaf_f1: Share | None
    results_f1: Share | None

    @classmethod
    def of(cls, agent: Scrape | None) -> Accuracy | None:
        """As the leaf's metrics say; None if it has said nothing yet."""
        if agent is None or not (frames := int(agent.total("headwater_live_accuracy_frames"))):
            return None

        def share(answers: str) -> Share | None:
            bounds = {
                name: agent.total("headwater_live_accuracy", answers=answers, measure="f1", bound=name) for name in ("value", "low", "high")
            }
            return None if any(map(math.isnan, bounds.values())) else Share(**bounds)

        return cls(frames=frames, leaf_f1=share("leaf"), results_f1=share("results"))

    def __str__(self) -> str:
        if self.leaf_f1 is None or self.results_f1 is None:
            return f"not known yet: {self.frames} frames were judged"
        return f"F1 {self.leaf_f1} leaf, {self.results_f1} results, against the region on {self.frames} audited frames"


class Tally:
    """Counts what was observed; fed by one thread, read by another between two lines."""

    def __init__(self) -> None:
        self.verdict_ms: list[float] = []
        self.alert_ms: list[float] = []
        self.alert_frames: set[str] = set()
        self.recent: deque[tuple[float, float]] = deque(maxlen=4000)  # (read at, latency in ms) of verdicts
        self.alerts: dict[str, SeenAlert] = {}
        self.raised_at: list[float] = []
        self.answers: dict[str, SeenAnswer] = {}
        self.changed: set[str] = set()
        self.answered_at: list[float] = []
        self.drifts: list[SeenDrift] = []
        self.troubles: list[Trouble] = []

    def take(self, line: Line) -> None:
        match line:
            case SeenVerdict():
                self.verdict_ms.append(line.latency_ms)
                self.recent.append((line.read_at, line.latency_ms))
            case SeenAlert():
                if line.alert not in self.alerts and line.state == "raised" and not line.late:  # old news has no latency
                    self.alert_ms.append(line.latency_ms)
                    self.alert_frames.add(line.record)
                    self.raised_at.append(line.read_at)
                known = self.alerts.get(line.alert)
                self.alerts[line.alert] = line if known is None else msgspec.structs.replace(line, read_at=known.read_at)
            case SeenAnswer():
                self.answers[line.record] = line
                self.answered_at.append(line.read_at)
                if line.added or line.removed:
                    self.changed.add(line.record)
            case SeenDrift():
                self.drifts.append(line)
            case Trouble():
                self.troubles.append(line)

    def states(self) -> dict[str, int]:
        """Alerts by the state they are in."""
        found: dict[str, int] = {}
        for alert in list(self.alerts.values()):
            found[alert.state] = found.get(alert.state, 0) + 1
        return found

    def late(self) -> int:
        """Alerts that were old news when they came."""
        return sum(alert.late for alert in list(self.alerts.values()))

    def rate(self, now: float, over_s: float = 3.0) -> float:
        """Verdicts a second, lately."""
        return sum(1 for at, _ in list(self.recent) if now - over_s < at <= now) / over_s

    def lately(self, now: float, over_s: float = 10.0) -> Percentiles | None:
        return Percentiles.of([ms for at, ms in list(self.recent) if at > now - over_s])
