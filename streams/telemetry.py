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
ESCALATIONS = Counter("headwater_escalations_total", "Frames that the region was asked about, by reason; a clip holds several.", ["reason"])
ESCALATION_BYTES = Counter("headwater_escalation_bytes_total", "Bytes of evidence handed to the link.")
REPEATED = Counter("headwater_escalations_repeated_total", "Questions that came again, and were not judged again.")
DECLINED = Counter("headwater_escalations_declined_total", "Looks that were wanted and not asked for, by what forbade them.", ["budget"])
LESSONS = Counter("headwater_lessons_total", "Answers of the region that the leaf has learned from.")
AUDITS = Counter("headwater_audits_total", "Frames of the audit sample: asked, judged, missing (they could not be asked).", ["outcome"])
LABELS = Counter("headwater_labels_total", "Labels: used, or unknown (not of a frame of the audit sample that is remembered).", ["outcome"])
ACCURACY = Gauge(
    "headwater_live_accuracy",
    "Precision, recall and F1 of the leaf's answers and of the results against the region, over all sources; value, low and high (95 %).",
    ["answers", "measure", "bound"],
)
DRIFT = Counter("headwater_drift_alarms_total", "Drift alarms, by cause and state.", ["cause", "state"])
AUDITED = Gauge("headwater_live_accuracy_frames", "Judged frames of the audit sample that it rests on.")
LOOK_THRESHOLD = Gauge("headwater_look_threshold", "What a look must be worth at present for the region to be asked.")
LAG = Gauge("headwater_lag_records", "Records on the broker that this process has not finished.", ["topic"])
IN_FLIGHT = Gauge("headwater_batches_in_flight", "Batches handed over and not finished.")
SEND_QUEUE = Gauge("headwater_send_queue_records", "Records produced and not yet acknowledged.")
LINK_RECORDS = Counter("headwater_link_records_total", "Records that the link has carried, acknowledged.", ["direction", "topic"])
LINK_PAYLOAD = Counter("headwater_link_payload_bytes_total", "Bytes of keys, values and headers carried.", ["direction", "topic"])
LINK_WIRE = Counter("headwater_link_wire_bytes_total", "Bytes between the link and the region, as the client counts them.", ["direction"])
LINK_UP = Gauge("headwater_link_up", "1 while the region's Kafka answers, else 0.")
LINK_LOST = Counter(
    "headwater_link_lost_records_total",
    "Records that the link did not carry, by reason: retention (removed before), ttl (too old to be of use), too-large.",
    ["topic", "reason"],
)
LINK_HELD = Gauge("headwater_link_held", "1 while this process carries for its site, 0 while it stands by.")
LINK_WAITING = Gauge("headwater_link_waiting_records", "Records that the link has still to carry.", ["direction", "topic"])
LINK_WAITING_BYTES = Gauge("headwater_link_waiting_bytes", "Bytes of them, estimated.", ["direction", "topic"])
LINK_OLDEST = Gauge("headwater_link_oldest_seconds", "Age of the oldest record that the link has still to carry.", ["direction", "topic"])
LINK_DRAIN = Gauge(
    "headwater_link_drain_seconds", "Time until a lane is empty at the present rate; NaN if not known.", ["direction", "topic"]
)
LINK_WINDOW = Gauge("headwater_link_window_bytes", "Bytes that may be on their way to the region at a time.")
READY = Gauge("headwater_ready", "1 while this process takes records: partitions assigned, or every lane of the link open.")
ENGINE = Info("headwater_engine", "Engine asked and got, and the model in use.")
LADDER_STEP = Gauge("headwater_ladder_step", "Step of the degradation ladder in use: 0 is the first choice, the last asks the region only.")
BREAKER = Gauge("headwater_breaker_state", "State of a breaker: 0 closed, 1 half-open, 2 open.", ["stage"])
HUNG = Gauge("headwater_hung_looks", "Threads that were left behind in a look that does not return.")
ACCOUNTED = Gauge("headwater_accounted_time_seconds", "When the account was last written, in seconds since 1970.")
DISK_FREE = Gauge("headwater_disk_free_bytes", "Bytes free where the broker's log lies.")
DISK_LEVEL = Gauge("headwater_disk_level", "What the low disk has made us do without: 0 nothing, 5 even frames.")
DISK_DELETED = Counter("headwater_disk_deleted_records_total", "Records that were deleted early, since the disk was low.", ["topic", "why"])
BUILD = Info("headwater_process", "Site, tier and role of this process.")


def observe_stages(seconds: Mapping[str, float]) -> None:
    """Count one observation of each stage, by names such as `decode_s`."""
    for stage, value in seconds.items():
        STAGE_SECONDS.labels(stage.removesuffix("_s")).observe(value)


class MetricsUnavailable(Fault, OSError):
    """The metrics cannot be served; the message names the address and the fix."""


def serve(config: Metrics, role: str, *, site: str, tier: str, instance: int = 1) -> int:
    """Serve `/metrics` and return the port; raises `MetricsUnavailable` if the configured port is taken. Several processes of one role have
    ports one after the other, by `instance`, which counts from 1."""
    BUILD.info({"site": site, "tier": tier, "role": role, "instance": str(instance)})
    port = config.ports.get(role, 0)
    port += instance - 1 if port else 0
    try:
        server, _ = start_http_server(port, config.host)
    except OSError as error:
        raise MetricsUnavailable(
            f"metrics of role {role} cannot be served on {config.host}:{port} ({error.strerror or error}): "
            f"set metrics.ports.{role} to a free port, or 0 for any"
        ) from None
    return int(server.server_port)
