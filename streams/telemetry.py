"""What every process says about itself: one table of Prometheus metrics, and the server that shows them on `/metrics`.

Telemetry is written at the edges (source, delivery, link, agents' stages), not between the lines of the work. Labels are few and bounded:
never a source, a record or an alert.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram, Info, start_http_server

from schemas.config import Metrics
from schemas.errors import Fault

# Half a millisecond to a minute, each bound a quarter above the last: a quantile read from them is within a few per cent.
_LATENCY = tuple(round(0.0005 * 1.25**k, 7) for k in range(53))

STAGE_SECONDS = Histogram(
    "headwater_stage_seconds",
    "Time that a stage takes: wait (broker to agent), decode, prepare, predict, unpack, look (all four), evidence, "
    "record (broker to the last output handed to delivery).",
    ["stage"],
    buckets=_LATENCY,
)
RECORDS = Counter("headwater_records_total", "Records taken from a topic, by what became of them.", ["topic", "outcome"])
RETRIES = Counter("headwater_retries_total", "Attempts beyond the first, by the class of the error.", ["error"])
DROPPED = Counter("headwater_dropped_total", "Records dropped with an explanation.", ["reason"])
VERDICTS = Counter("headwater_verdicts_total", "Verdicts written.", ["status"])
RESULTS = Counter("headwater_results_total", "Results written, by the tier whose verdict holds.", ["tier"])
ALERTS = Counter("headwater_alerts_total", "Alerts written, by state.", ["state"])
ESCALATIONS = Counter("headwater_escalations_total", "Escalations sent, by reason.", ["reason"])
ESCALATION_BYTES = Counter("headwater_escalation_bytes_total", "Bytes of evidence handed to the link.")
DECLINED = Counter("headwater_escalations_declined_total", "Looks that were wanted and not asked for, by what forbade them.", ["budget"])
LAG = Gauge("headwater_lag_records", "Records on the broker that this process has not finished.", ["topic"])
IN_FLIGHT = Gauge("headwater_batches_in_flight", "Batches handed over and not finished.")
SEND_QUEUE = Gauge("headwater_send_queue_records", "Records produced and not yet acknowledged.")
LINK_RECORDS = Counter("headwater_link_records_total", "Records that the link has carried, acknowledged.", ["direction", "topic"])
LINK_PAYLOAD = Counter("headwater_link_payload_bytes_total", "Bytes of keys, values and headers carried.", ["direction", "topic"])
LINK_WIRE = Counter("headwater_link_wire_bytes_total", "Bytes between the link and the region, as the client counts them.", ["direction"])
LINK_UP = Gauge("headwater_link_up", "1 while the region's Kafka answers, else 0.")
LINK_LOST = Counter("headwater_link_lost_records_total", "Records that retention removed before the link carried them.", ["topic"])
READY = Gauge("headwater_ready", "1 while this process takes records: partitions assigned, or every lane of the link open.")
ENGINE = Info("headwater_engine", "Engine asked and got, and the model in use.")
BUILD = Info("headwater_process", "Site, tier and role of this process.")


def observe_stages(seconds: Mapping[str, float]) -> None:
    """Count one observation of each stage, by names such as `decode_s`."""
    for stage, value in seconds.items():
        STAGE_SECONDS.labels(stage.removesuffix("_s")).observe(value)


class MetricsUnavailable(Fault, OSError):
    """The metrics cannot be served; the message names the address and the fix."""


def serve(config: Metrics, role: str, *, site: str, tier: str) -> int:
    """Serve `/metrics` and return the port; raises `MetricsUnavailable` if the configured port is taken."""
    BUILD.info({"site": site, "tier": tier, "role": role})
    port = config.ports.get(role, 0)
    try:
        server, _ = start_http_server(port, config.host)
    except OSError as error:
        raise MetricsUnavailable(
            f"metrics of role {role} cannot be served on {config.host}:{port} ({error.strerror or error}): "
            f"set metrics.ports.{role} to a free port, or 0 for any"
        ) from None
    return int(server.server_port)
