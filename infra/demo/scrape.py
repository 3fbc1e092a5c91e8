"""What the demo reads of its processes' `/metrics`: sums of counters, gauges, and quantiles of histograms by linear interpolation."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping

import msgspec
from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


class Scrape(msgspec.Struct, frozen=True):
    """The samples of one process."""

    samples: dict[tuple[str, Labels], float]

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric over all label sets that contain the given labels."""
        wanted = labels.items()
        return sum(value for (found, has), value in self.samples.items() if found == name and wanted <= dict(has).items())

    def by(self, name: str, label: str) -> dict[str, float]:
        """A metric's values by one label."""
        found: dict[str, float] = {}
        for (metric, has), value in self.samples.items():
            if metric == name and label in dict(has):
                key = dict(has)[label]
                found[key] = found.get(key, 0.0) + value
        return found

    def quantile(self, name: str, share: float, **labels: str) -> float | None:
        """A quantile of a histogram, as Prometheus' `histogram_quantile` has it; None without observations."""
        buckets = sorted(
            (float(dict(has)["le"]), value)
            for (metric, has), value in self.samples.items()
            if metric == f"{name}_bucket" and labels.items() <= dict(has).items()
        )
        if not buckets or not buckets[-1][1]:
            return None
        rank = share * buckets[-1][1]
        below, start = 0.0, 0.0
        for edge, count in buckets:
            if count >= rank:
                return start if edge == float("inf") else start + (edge - start) * (rank - below) / (count - below or 1)
            below, start = count, edge
        return start


def scrape(port: int, *, host: str = "127.0.0.1", timeout_s: float = 1.0) -> Scrape | None:
    """Read a process's metrics; None while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=timeout_s) as reply:
            text = reply.read(4 << 20).decode()
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return None
    return Scrape(
        {
            (sample.name, frozenset(_labels(sample.labels))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    )


def _labels(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    return list(labels.items())
