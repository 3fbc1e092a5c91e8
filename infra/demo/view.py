"""What a person sees of the demo while it runs, and at its end."""

from __future__ import annotations

import datetime as dt
import time

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from infra.demo.figures import Accuracy, Percentiles
from infra.demo.observer import SeenAlert
from infra.demo.report import Drifted, Report
from infra.demo.scenario import Demo

STATE_STYLE = {"raised": "yellow", "unreviewed": "magenta", "confirmed": "green", "retracted": "dim strike", "judged": "cyan"}
_ALERTS_SHOWN = 8


def live(demo: Demo, elapsed: float) -> RenderableType:
    """The page as it stands."""
    plan, now = demo.plan, time.time()
    head = Table.grid(expand=True)
    head.add_column()
    head.add_column(justify="right")
    title = Text.assemble(("Headwater ", "bold"), f"{plan.cameras} camera{'s' if plan.cameras > 1 else ''} · leaf → link → region")
    head.add_row(title, _link(demo, elapsed))
    head.add_row(
        ProgressBar(total=plan.seconds, completed=min(elapsed, plan.seconds), width=None), f"  {elapsed:4.0f} of {plan.seconds:.0f} s"
    )
    body = Table.grid(padding=(0, 2), expand=True)
    body.add_column(ratio=8)
    body.add_column(ratio=7)
    body.add_row(_figures(demo, now), _alerts(list(demo.tally.alerts.values())))
    return Panel(Group(head, Text(), body), border_style="red" if demo.cut_now else "blue")


def line(demo: Demo, elapsed: float) -> str:
    """The same in one line, for where there is no terminal."""
    now = time.time()
    latency = demo.tally.lately(now)
    text = f"{elapsed:4.0f} s  {_produced(demo)} frames  {demo.tally.rate(now):.0f}/s answered  "
    text += f"p99 {latency.p99:.0f} ms  " if latency else ""
    text += f"{len(demo.tally.alerts)} alerts  {_escalated(demo)} escalated, {len(demo.tally.answers)} answered  "
    text += f"{_mb(demo.proxy.sent - demo.wire_before[0])} of {_mb(int(demo.produced.get('bytes', 0)))} sent"
    return text + ("  LINK CUT" if demo.cut_now else "")


def _link(demo: Demo, elapsed: float) -> Text:
    if demo.plan.outage is None:
        return Text("link up", style="green")
    start, length = demo.plan.outage
    if demo.cut_now:
        return Text(f" link cut, {max(0.0, start + length - elapsed):.0f} s left ", style="bold white on red")
    return Text("link up" + (f", cut in {start - elapsed:.0f} s" if elapsed < start else " again"), style="green")


def _figures(demo: Demo, now: float) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim")
    table.add_column()
    latency, alerts = demo.tally.lately(now), Percentiles.of(demo.tally.alert_ms)
    table.add_row("frames", f"{_produced(demo)} produced, {demo.tally.rate(now):.0f}/s answered")
    table.add_row("answer", _ms(latency, "lately"))
    table.add_row("alert", _ms(alerts, "so far"))
    table.add_row("escalated", f"{_escalated(demo)} frames, {len(demo.tally.answers)} answered")
    table.add_row("region changed", f"{len(demo.tally.changed)} of them")
    if (accuracy := Accuracy.of(demo.scrapes.get("leaf agent"))) is not None and accuracy.results_f1 is not None:
        table.add_row("live F1", f"{accuracy.results_f1} against the region, on {accuracy.frames} frames")
    if demo.tally.drifts:
        latest = demo.tally.drifts[-1]
        table.add_row("drift", Text(f"{latest.source}: {latest.cause} {latest.state}", style="yellow" if latest.state == "opened" else ""))
    sent, everything = demo.proxy.sent - demo.wire_before[0], int(demo.produced.get("bytes", 0))
    saved = f", {1 - sent / everything:.1%} saved" if everything else ""
    table.add_row("wire", f"{_mb(sent)} instead of {_mb(everything)}{saved}")
    return table


def _alerts(alerts: list[SeenAlert]) -> Table:
    table = Table(box=None, padding=(0, 1), expand=True, header_style="dim")
    for name in ("alert", "rule", "source", "state"):
        table.add_column(name, no_wrap=True)
    for alert in alerts[-_ALERTS_SHOWN:][::-1]:
        at = dt.datetime.fromtimestamp(alert.read_at).strftime("%H:%M:%S")
        style = "dim" if alert.late else STATE_STYLE.get(alert.state, "")
        table.add_row(at, alert.rule, alert.source, Text(f"{alert.state} {alert.score:.2f}{' late' if alert.late else ''}", style=style))
    return table


def summary(found: Report, folder: str | None) -> RenderableType:
    """The end: figures, account, promises."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    rates = ", ".join(f"{name} {fps:.1f}/s" for name, fps in found.fps_by_camera.items())
    table.add_row("frames", f"{found.account.produced} produced ({rates}), {found.processed:.2%} answered by the leaf ({found.engine})")
    table.add_row("alert latency", f"{_ms(found.alert_latency_ms)}  capture to a reader in another process")
    table.add_row("answer latency", f"{_ms(found.verdict_latency_ms)}  the same for every frame's verdict")
    if found.compute_ms is not None:
        c = found.compute_ms
        table.add_row(
            "of which work",
            f"p50 {c.bare_p50:.1f}  p99 {c.bare_p99:.1f} ms decode and inference; Headwater adds {c.adds_p50:.1f} and {c.adds_p99:.1f} ms",
        )
    states = ", ".join(f"{count} {state}" for state, count in sorted(found.alerts.items()))
    late = f", {found.alerts_late} of them late" if found.alerts_late else ""
    table.add_row("alerts", f"{sum(found.alerts.values())}: {states or 'none'}{late}")
    if found.outage is not None:
        after = (
            f"; first answer {found.first_answer_after_outage_s:.1f} s after it" if found.first_answer_after_outage_s is not None else ""
        )
        table.add_row("outage", f"{found.outage[1]:g} s, {found.alerts_during_outage} alerts meanwhile{after}")
    looks = found.looks
    table.add_row(
        "escalations",
        f"{looks.escalated} frames, {looks.answered} answered; the region changed {looks.changed} (+{looks.added} −{looks.removed})"
        f", and was at work for {found.region_load:.0%} of what it can",
    )
    if found.accuracy is not None:
        table.add_row("live accuracy", str(found.accuracy))
    if found.drift:
        table.add_row("drift", "; ".join(_drifted(each) for each in found.drift))
    wire = found.wire
    table.add_row(
        "wire", f"{_mb(wire.sent)} up, {_mb(wire.received)} down, instead of {_mb(wire.all_as_jpeg)} of JPEG: {wire.saved:.1%} saved"
    )
    account = Table(box=None, padding=(0, 2), header_style="dim")
    for name in ("source", "produced", "results", "dropped", "dead letters", "unexplained"):
        account.add_column(name, justify="left" if name == "source" else "right")
    for each in found.account.lines:
        drops = f"{each.dropped} ({', '.join(f'{count} {reason}' for reason, count in each.drops.items())})" if each.dropped else "0"
        account.add_row(each.source, str(each.produced), str(each.results), drops, str(each.dead), str(each.missing))
    verdict = Text("Every frame is accounted for.", style="bold green")
    if found.failures:
        verdict = Text("\n".join(f"FAILED: {failure}" for failure in found.failures), style="bold red")
    parts: list[RenderableType] = [table, Text(), Text("The account", style="bold"), account, Text(), verdict]
    if folder:
        parts.append(Text(f"Logs, configuration and topics are kept in {folder}", style="dim"))
    return Group(*parts)


def _drifted(found: Drifted) -> str:
    until = f"until {found.closed_s:.0f} s" if found.closed_s is not None else "still"
    return f"{found.source}: {found.cause} from {found.opened_s:.0f} s on, {until}"


def _ms(found: Percentiles | None, note: str = "") -> str:
    if found is None:
        return "–"
    text = f"p50 {found.p50:.1f}  p95 {found.p95:.1f}  p99 {found.p99:.1f} ms"
    return f"{text}  {note}" if note else f"{text} on {found.frames} frames"


def _produced(demo: Demo) -> int:
    return int(demo.produced.get("frames", 0))


def _escalated(demo: Demo) -> int:
    agent = demo.scrapes.get("leaf agent")
    return int(agent.total("headwater_escalations_total")) if agent else 0


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
