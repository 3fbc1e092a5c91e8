"""The producers' figures on `/metrics`: read from the sources' counters when somebody asks, so that publishing pays nothing for them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streams.production.publisher import FramePublisher


class ProducerCollector(Collector):
    """Sums over all sources of one process. Register it with `prometheus_client.REGISTRY`."""

    def __init__(self, publisher: FramePublisher) -> None:
        self._publisher = publisher

    def collect(self) -> Iterator[Metric]:
        counters = self._publisher.counters()
        frames = CounterMetricFamily("headwater_produced_frames", "Frames with a sequence, by what became of them.", labels=["outcome"])
        frames.add_metric(["acknowledged"], sum(source.acknowledged for source in counters))
        frames.add_metric(["dropped"], sum(source.dropped for source in counters))
        yield frames
        size = sum(source.bytes for source in counters)
        yield CounterMetricFamily("headwater_produced_bytes", "Bytes of the frames that the broker has acknowledged.", value=size)
        waiting = sum(source.open for source in counters)
        yield GaugeMetricFamily("headwater_produce_open_frames", "Frames that wait, or are with the Kafka client.", value=waiting)
