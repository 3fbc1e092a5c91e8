"""The routing's figures on `/metrics`: read from the router when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streams.routing.router import Router


class RoutingCollector(Collector):
    """Where a producer publishes, and how near each site is. Register it with `prometheus_client.REGISTRY`."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def collect(self) -> Iterator[Metric]:
        states = self._router.states()
        site = GaugeMetricFamily("headwater_producer_site", "1 for the site that is published to, 0 for others.", labels=["site"])
        healthy = GaugeMetricFamily("headwater_producer_site_healthy", "1 for a site that could be published to.", labels=["site"])
        rtt = GaugeMetricFamily("headwater_producer_site_rtt_seconds", "Median round trip of a small request to a site.", labels=["site"])
        for state in states:
            site.add_metric([state.site], float(state.in_use))
            healthy.add_metric([state.site], float(state.ok))
            if state.rtt_s is not None:
                rtt.add_metric([state.site], state.rtt_s)
        moves = CounterMetricFamily("headwater_producer_moves", "Moves from one site to another, by reason.", labels=["reason"])
        for reason, count in sorted(self._router.moves.items()):
            moves.add_metric([reason], count)
        yield from (site, healthy, rtt, moves)
