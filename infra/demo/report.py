"""What a demo run amounts to: figures, the account, and whether it kept its promises."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from importlib.metadata import version

import msgspec

from infra.demo.figures import Accuracy, Percentiles
from infra.demo.machine import Measured
from infra.demo.scenario import Demo
from streams.account import Account

LEAST_FPS = 29.0
LEAST_PROCESSED = 0.99  # with one camera


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes through the proxy from the first frame on, against every frame sent as the JPEG it was."""

    sent: int
    received: int
    all_as_jpeg: int
    saved: float


class Looks(msgspec.Struct, frozen=True, kw_only=True):
    """What the region was asked, and what came of it."""

    escalated: int
    answered: int
    changed: int
    added: int
    removed: int


class Drifted(msgspec.Struct, frozen=True, kw_only=True):
    """A drift alarm: when it was opened and closed, in seconds from the first frame (None: it is open still)."""

    source: str
    cause: str
    opened_s: float
    closed_s: float | None


class Compute(msgspec.Struct, frozen=True, kw_only=True):
    """The leaf's bare work on a frame in this run (decode to unpack, ms), and what Headwater adds to it until an alert is read."""

    bare_p50: float
    bare_p99: float
    adds_p50: float
    adds_p99: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A demo run in figures. `region_load` is the share of the looks it can take that the region was asked for; `failures` says which
    promises were not kept; empty is a success."""

    seconds: float
    cameras: int
    fps_by_camera: dict[str, float]
    processed: float
    alert_latency_ms: Percentiles | None
    verdict_latency_ms: Percentiles | None
    compute_ms: Compute | None
    alerts: dict[str, int]
    alerts_late: int
    alerts_during_outage: int
    outage: tuple[float, float] | None
    first_answer_after_outage_s: float | None
    wire: Wire
    looks: Looks
    region_load: float
    accuracy: Accuracy | None
    drift: tuple[Drifted, ...]
    account: Account
    engine: str
    measured: Measured
    versions: dict[str, str]
    failures: tuple[str, ...]


def report(demo: Demo, account: Account) -> Report:
    """Add a finished run up."""
    plan, tally = demo.plan, demo.tally
    sources = demo.produced.get("sources", {})
    fps = {name: round(source["frames"] / plan.seconds, 2) for name, source in sources.items()}
    agent = demo.scrapes.get("leaf agent")
    escalated = int(agent.total("headwater_escalations_total")) if agent else 0
    outage_alerts = [at for at in tally.raised_at if demo.cut_at and demo.cut_at <= at <= demo.restored_at]
    answered = [at for at in tally.answered_at if demo.restored_at and at > demo.restored_at]
    processed = account.results / account.produced if account.produced else 0.0
    sent, received = demo.proxy.sent - demo.wire_before[0], demo.proxy.received - demo.wire_before[1]
    everything = int(demo.produced.get("bytes", 0))
    answers = list(tally.answers.values())
    found = Report(
        seconds=plan.seconds,
        cameras=plan.cameras,
        fps_by_camera=fps,
        processed=round(processed, 5),
        alert_latency_ms=Percentiles.of(tally.alert_ms, len(tally.alert_frames)),
        verdict_latency_ms=Percentiles.of(tally.verdict_ms),
        compute_ms=_compute(demo),
        alerts=tally.states(),
        alerts_late=tally.late(),
        alerts_during_outage=len(outage_alerts),
        outage=plan.outage,
        first_answer_after_outage_s=round(min(answered) - demo.restored_at, 2) if answered else None,
        wire=Wire(
            sent=sent, received=received, all_as_jpeg=everything, saved=round(1 - (sent + received) / everything, 5) if everything else 0.0
        ),
        looks=Looks(
            escalated=escalated,
            answered=len(answers),
            changed=len(tally.changed),
            added=sum(answer.added for answer in answers),
            removed=sum(answer.removed for answer in answers),
        ),
        region_load=round(len(answers) / plan.seconds / plan.measured.inferences_per_s, 3),
        accuracy=Accuracy.of(agent),
        drift=tuple(_drifts(demo)),
        account=account,
        engine=plan.measured.engine,
        measured=plan.measured,
        versions=_versions(),
        failures=(),
    )
    return msgspec.structs.replace(found, failures=tuple(_failures(demo, found)))


def _failures(demo: Demo, found: Report) -> list[str]:
    failures = []
    if not found.account.produced:
        failures.append("no frame was produced")
    if not found.account.adds_up:
        gaps = {line.source: line.open[:5] for line in found.account.lines if line.open}
        failures.append(f"the account does not add up: {found.account.missing} frames are unexplained ({gaps})")
    slow = {name: fps for name, fps in found.fps_by_camera.items() if fps < LEAST_FPS}
    if slow or len(found.fps_by_camera) != found.cameras:
        failures.append(f"fewer than {LEAST_FPS:g} frames/s were produced: {slow or 'a camera said nothing'}")
    if not found.looks.escalated:
        failures.append("nothing was escalated")
    if demo.plan.outage is not None and not found.alerts_during_outage:
        failures.append("no alert came during the outage")
    if demo.plan.outage is not None and not demo.restored_at:
        failures.append("the outage did not end within the run: ask for more --seconds")
    if demo.plan.degrade is not None and not any(each.source == "cam-1" for each in found.drift):
        failures.append(f"the first camera was spoiled ({demo.plan.degrade}), and no alarm told of it")
    if demo.tally.troubles:
        failures.append(f"{len(demo.tally.troubles)} records could not be read, such as: {demo.tally.troubles[0].reason}")
    return failures


def _drifts(demo: Demo) -> Iterator[Drifted]:
    """The drift alarms in the order of their opening."""
    closed = {each.record: each for each in demo.tally.drifts if each.state == "closed"}
    for each in demo.tally.drifts:
        if each.state == "opened":
            end = closed.get(each.record)
            yield Drifted(
                source=each.source,
                cause=each.cause,
                opened_s=round(each.read_at - demo.began_at, 1),
                closed_s=None if end is None else round(end.read_at - demo.began_at, 1),
            )


def _compute(demo: Demo) -> Compute | None:
    agent = demo.scrapes.get("leaf agent")
    if agent is None or not demo.tally.verdict_ms:
        return None
    bare = [agent.quantile("headwater_stage_seconds", share, stage="look") for share in (0.5, 0.99)]
    seen = Percentiles.of(demo.tally.alert_ms or demo.tally.verdict_ms)
    if seen is None or bare[0] is None or bare[1] is None:
        return None
    p50, p99 = bare[0] * 1000, bare[1] * 1000
    return Compute(bare_p50=round(p50, 1), bare_p99=round(p99, 1), adds_p50=round(seen.p50 - p50, 1), adds_p99=round(seen.p99 - p99, 1))


def _versions() -> dict[str, str]:
    names = ("headwater", "faust-streaming", "confluent-kafka", "onnxruntime", "numpy")
    found = {"python": platform.python_version(), "machine": f"{platform.machine()} {platform.system()}", "date": time.strftime("%Y-%m-%d")}
    for name in names:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            continue
    return found
