"""`headwater bench drift`: false alarms, delays and cost of the noticing of drift, on streams with a memory and on real video."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.table import Table

from infra.cli.common import CommandFailed, err, json_option, out, print_json

if TYPE_CHECKING:
    from infra.bench.drift import Cost, Delays, FalseAlarms, VideoFault

SHIFTS = ((0.175, 100), (0.1, 250))  # of a mean confidence, and the batches within which it must be noticed
FRAMES, FPS = 795, 10.0  # of the demo's video
_MOST_PER_100K = 1.0
_MOST_US = 5.0
_MOST_S = 10.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All figures, and the goals that were missed."""

    false_alarms: tuple[FalseAlarms, ...]
    delays: tuple[Delays, ...]
    cost: Cost
    undisturbed: int  # alarms on the video as it is
    faults: tuple[VideoFault, ...]
    missed: tuple[str, ...]


@click.command("drift")
@click.option("--batches", type=click.IntRange(1_000, 10**8), default=120_000, show_default=True, help="Judged of each stream.")
@click.option("--trials", type=click.IntRange(1, 10_000), default=40, show_default=True, help="Shifts of each size in each stream.")
@click.option("--seed", type=int, default=1, show_default=True, help="Where chance begins.")
@json_option
def drift(batches: int, trials: int, seed: int, as_json: bool) -> int:
    """Measure how drift is noticed.

    False alarms on streams that do not drift and have the memory of real ones, the delay until a shift of the mean confidence is noticed,
    the cost of a value and of a picture, and faults put into the demo's video. A batch is as many frames as the stream remembers. Exits
    with 1 if a goal was not met.

    \b
    Examples:
      headwater bench drift
      headwater bench drift --batches 5000 --trials 5
    """
    report = measure(batches, trials, seed)
    print_json(report) if as_json else _show(report)
    return 1 if report.missed else 0


def measure(batches: int, trials: int, seed: int) -> Report:
    """Run everything; raises `CommandFailed` if the video or the models cannot be had."""
    from agents.inference.detector import load
    from infra import assets
    from infra.assets.models import ready_models
    from infra.bench import drift as bench
    from infra.bench.drift_streams import streams
    from schemas.config import Detector, Engine

    settings = Detector()
    try:
        (video,) = assets.fetch(assets.VIDEO)
        detector = load(settings, Engine(), ready_models([settings]))
    except assets.AssetUnavailable as error:
        raise CommandFailed(str(error)) from None
    made = streams(bench.mean_confidences(detector, bench.played(video, FRAMES)))
    quiet, late = [], []
    for name, stream in made.items():
        err.print(f"{name}: false alarms", style="dim")
        quiet.append(bench.false_alarms(name, stream, batches=batches, seed=seed))
    for shift, _ in SHIFTS:
        err.print(f"delays of a shift of {shift:g}", style="dim")
        late.append(bench.delays_of_batches(shift, trials=trials, seed=seed))
        late += [bench.delays(name, made[name], shift=shift, trials=trials, seed=seed) for name in made if not name.startswith("count")]
    err.print("faults of the video", style="dim")
    spent = bench.cost([bench.decoded(frame) for frame in bench.played(video, 60)])
    undisturbed = len(bench.watch_video(video, FPS, 2 * FRAMES / FPS, None))
    faults = tuple(bench.video_fault(video, FPS, name) for name in bench.NAMED)
    report = Report(false_alarms=tuple(quiet), delays=tuple(late), cost=spent, undisturbed=undisturbed, faults=faults, missed=())
    return msgspec.structs.replace(report, missed=tuple(_missed(report)))


def _missed(report: Report) -> Iterator[str]:
    judged = sum(each.batches for each in report.false_alarms)
    alarms = sum(each.alarms for each in report.false_alarms)
    if alarms > _MOST_PER_100K * judged / 1e5:
        yield f"{alarms} false alarms in {judged} batches: at most {_MOST_PER_100K:g} in 100,000"
    for each in report.delays:
        most = dict(SHIFTS)[each.shift]
        if each.p95 > most:
            yield f"{each.stream}: a shift of {each.shift:g} is noticed after {each.p95:g} batches (19 of 20): at most {most}"
    if max(report.cost.frame_value_p50_us, report.cost.batch_mean_p50_us) > _MOST_US:
        yield f"a value costs more than {_MOST_US:g} us"
    if report.undisturbed:
        yield f"{report.undisturbed} alarms on the undisturbed video"
    for fault in report.faults:
        if not fault.named or fault.delay_s is None or fault.delay_s > _MOST_S or fault.recovered_after_s is None:
            yield f"{fault.fault}: alarms {', '.join(fault.causes) or 'none'} after {fault.delay_s} s"


def _show(report: Report) -> None:
    table = Table(
        "stream", "frames a batch", "correlation", "batches", "false alarms", "per 100k, at most", title="No drift", title_justify="left"
    )
    for quiet in report.false_alarms:
        figures = (f"{quiet.batch_frames:.0f}", f"{quiet.correlation:.2f}", f"{quiet.batches}", f"{quiet.alarms}")
        table.add_row(quiet.stream, *figures, f"{quiet.at_most_per_100k:.2f}")
    out.print(table)
    table = Table(
        "stream",
        "shift",
        "found",
        "batches p50",
        "p95",
        "most",
        "frames p95",
        title="Delay",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for late in report.delays:
        after = (f"{late.p50:.0f}", f"{late.p95:.0f}", f"{late.most:.0f}", f"{late.p95_frames:.0f}")
        table.add_row(late.stream, f"{late.shift:g}", f"{late.found} of {late.trials}", *after)
    out.print(table)
    table = Table(
        "fault", "alarms", "after", "closed after its end", title="The demo's video", title_justify="left", box=None, pad_edge=False
    )
    for fault in report.faults:
        table.add_row(fault.fault, ", ".join(fault.causes) or "none", _seconds(fault.delay_s), _seconds(fault.recovered_after_s))
    out.print(table)
    spent = report.cost
    out.print(f"undisturbed     {report.undisturbed} alarms")
    out.print(f"a frame's value p50 {spent.frame_value_p50_us:.2f} us")
    out.print(f"a batch's mean  p50 {spent.batch_mean_p50_us:.1f}, p99 {spent.batch_mean_p99_us:.1f} us")
    out.print(f"a picture       p50 {spent.picture_p50_us:.0f}, p95 {spent.picture_p95_us:.0f} us")
    out.print(f"a stream's state {spent.state_bytes / 1000:.0f} KB as JSON")
    for goal in report.missed:
        out.print(f"missed: {goal}", style="red")


def _seconds(value: Any) -> str:
    return "-" if value is None else f"{value:.1f} s"
