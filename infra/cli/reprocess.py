"""`headwater reprocess`: judge what retention still has again, with another model, beside the running site."""

from __future__ import annotations

import datetime as dt
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from infra.cli.clusters import clients_of, explained
from infra.cli.common import CommandFailed, config_option, err, json_option, load_config, out, print_json
from infra.cli.tail import START
from schemas.config import Detector, Engine, SiteConfig
from schemas.identity import InvalidIdentity, check_source

if TYPE_CHECKING:
    from agents.reprocess import Judged, Reprocess
    from streams.clients import Clients
    from streams.lag import LagMeter
    from streams.reader import Start, Stored
    from streams.sink import Output, Sink
    from streams.topology import RoleView

NICE = 10
CHUNK = 16  # frames whose verdicts are written together
LAG_EVERY_S = 1.0
OUTCOMES = ("changed", "new", "same", "kept", "done", "unreadable")
ENGINES = ("tensorrt", "cuda", "openvino", "cpu")


@click.command()
@config_option
@click.option("--from", "start", type=START, required=True, metavar="WHERE", help="Begin at: beginning, an age (5m, 2h), or a time.")
@click.option("--to", "end", type=START, metavar="WHERE", help="End before: an age or a time; now, if it is left out.")
@click.option("--source", "sources", multiple=True, metavar="NAME", help="Only this source; may be repeated.")
@click.option("--detector", "other", metavar="FILE", help="Take [detector] and [engine] from another site's file.")
@click.option("--model", metavar="MODEL", help="nanodet-g, or the path of an ONNX file.")
@click.option("--family", type=click.Choice(["nanodet", "yolov8", "detr", "classifier"]), help="Layout of the model's outputs.")
@click.option("--size", "sizes", multiple=True, type=click.IntRange(32, 4096), metavar="SIDE", help="Input side; several are united.")
@click.option("--fp32/--int8", "full", default=None, help="Weights of nanodet-g.")
@click.option("--labels", metavar="FILE", help="Names of the classes, one a line.")
@click.option("--min-score", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Detections below it are not reported.")
@click.option("--engine", "engines", multiple=True, type=click.Choice(ENGINES), help="Engines in order of preference.")
@click.option("--generation", type=click.IntRange(0, (1 << 31) - 1), metavar="N", help="Of the verdicts; one above the site's by default.")
@click.option("--rate", type=click.FloatRange(0, 10_000, min_open=True), default=20.0, show_default=True, help="Frames a second at most.")
@click.option("--max-lag", type=click.IntRange(0), default=50, show_default=True, help="Wait while the leaf is behind by more frames.")
@click.option("--alerts", is_flag=True, help="Raise alerts too, marked as late; without it none are raised.")
@click.option("--dry-run", is_flag=True, help="Judge and compare, and write nothing.")
@json_option
def reprocess(
    config_path: str,
    start: Start,
    end: Start | None,
    sources: tuple[str, ...],
    generation: int | None,
    rate: float,
    max_lag: int,
    alerts: bool,
    dry_run: bool,
    as_json: bool,
    **model: Any,
) -> int:
    """Judge a time range again with another model.

    It reads the frames that retention still has (topics.frames_retention_s), and writes verdicts of a later model generation: they replace
    the leaf's own answers and fill what was dropped; what a region has judged stands. Live frames go first: it runs with low priority,
    keeps to --rate and waits while the leaf is behind. It may be ended and started again at any time, and done twice it changes nothing.

    \b
    Examples:
      headwater reprocess --from 10m --size 416 --fp32 --dry-run
      headwater reprocess --from 2026-01-31T12:00:00Z --to 2026-01-31T12:05:00Z --source gate --size 320
      headwater reprocess --from beginning --detector next.toml --rate 5
      headwater reprocess --from 1h --model yolo.onnx --family yolov8 --size 640 --json
    """
    config = load_config(config_path)
    if config.tier != "leaf":
        raise CommandFailed(f"{config_path} describes a region: frames are at the leaves, so it is their files that this command takes")
    for source in sources:
        try:
            check_source(source)
        except InvalidIdentity as error:
            raise click.UsageError(str(error)) from None
    begin, until = _range(start, end)
    settings, engine = _detector(config, **model)
    number = config.detector.generation + 1 if generation is None else generation
    if number <= config.detector.generation and not dry_run:
        err.print(f"[yellow]warning[/] generation {number} is not above the site's {config.detector.generation}: its answers may not hold")
    os.nice(NICE)
    with explained():
        run = _Run(config, settings, engine, number, frozenset(sources), begin, until, rate, max_lag, alerts, dry_run, quiet=as_json)
        with closing(run):
            tally = run.all()
    _tell(tally, run, as_json)
    return 0


def _range(start: Start, end: Start | None) -> tuple[Start, dt.datetime]:
    now = dt.datetime.now(dt.UTC)

    def at(where: Start | None) -> dt.datetime | None:
        return now - where if isinstance(where, dt.timedelta) else where if isinstance(where, dt.datetime) else None

    if isinstance(start, int) or start == "end":
        raise click.UsageError("--from takes beginning, an age such as 10m, or a time")
    until = now if end is None else at(end)
    if until is None:
        raise click.UsageError("--to takes an age such as 5m, or a time")
    begin = at(start)
    if begin is not None and begin >= until:
        raise click.UsageError(f"--from ({begin:%Y-%m-%d %H:%M:%S}) is not before --to ({until:%Y-%m-%d %H:%M:%S})")
    return begin or "beginning", until


def _detector(
    config: SiteConfig,
    *,
    other: str | None,
    model: str | None,
    family: str | None,
    sizes: tuple[int, ...],
    full: bool | None,
    labels: str | None,
    min_score: float | None,
    engines: tuple[str, ...],
) -> tuple[Detector, Engine]:
    """The detector that is asked for: the site's, or another file's, with what the options say."""
    base = load_config(other) if other is not None else config
    given: dict[str, Any] = {"model": model, "family": family, "sizes": sizes or None, "labels": labels, "min_score": min_score}
    given["quantized"] = None if full is None else not full
    changes = {name: value for name, value in given.items() if value is not None}
    if changes:
        changes["name"] = ""  # the name in the file is that of the model in the file
    try:
        settings = msgspec.convert({**msgspec.to_builtins(base.detector), **changes}, Detector)
    except msgspec.ValidationError as error:
        raise click.UsageError(str(error)) from None
    engine = msgspec.structs.replace(base.engine, prefer=engines) if engines else base.engine
    return msgspec.structs.replace(settings, fallbacks=()), engine


class _Run:
    """One run: what it needs, and its loop."""

    def __init__(
        self,
        config: SiteConfig,
        settings: Detector,
        engine: Engine,
        generation: int,
        sources: frozenset[str],
        begin: Start,
        until: dt.datetime,
        rate: float,
        max_lag: int,
        alerts: bool,
        dry_run: bool,
        *,
        quiet: bool,
    ) -> None:
        from streams.lag import LagMeter
        from streams.sink import Sink
        from streams.topology import Role, Topology

        self.config, self.sources, self.begin, self.until = config, sources, begin, until
        self.rate, self.max_lag, self.dry_run, self.quiet = rate, max_lag, dry_run, quiet
        self.role: RoleView = Topology(config).role(Role.LEAF)
        self.frames = self.role.read("frames")
        self.clients: Clients = clients_of(config.kafka, "reprocess")
        self.work: Reprocess = self._prepare(settings, engine, generation, alerts)
        self.sink: Sink | None = None if dry_run else Sink(self.clients, linger_ms=20)
        self.meter: LagMeter = LagMeter(self.clients, self.role.group(), self.frames)
        self.paused_s = 0.0

    def close(self) -> None:
        self.meter.close()
        if self.sink is not None:
            self.sink.close()

    def _prepare(self, settings: Detector, engine: Engine, generation: int, alerts: bool) -> Reprocess:
        from agents.alerts import AlertRules
        from agents.inference.detector import load
        from agents.reprocess import Reprocess, believed
        from infra.assets.models import ready_models
        from streams.reader import read
        from streams.topology import Topology

        info = self.clients.cluster([self.frames.name])
        if self.frames.name not in info.topics:
            raise CommandFailed(f"{self.config.kafka.bootstrap_servers} has no topic {self.frames.name}: is this the site's file?")
        detector = load(settings, engine, ready_models([settings]))
        detector.warm_up()
        topology = Topology(self.config)
        results = read(self.clients, [topology.topic("results")], start=self.begin)
        rules = None
        if alerts:
            rules = AlertRules(
                self.config.rules, site=self.config.name, model_digest=detector.digest, deadline_ms=self.config.policy.deadline_ms
            )
            longest = dt.timedelta(seconds=max((rule.cooldown_s for rule in self.config.rules), default=0.0))
            since: Start = self.begin - longest if isinstance(self.begin, dt.datetime) else "beginning"
            rules.recall(_alerts(read(self.clients, [self.role.read("alerts")], start=since)))
        return Reprocess(
            self.config,
            detector,
            generation,
            believed(results, self.sources),
            cluster=info.id,
            frames_uuid=info.topics[self.frames.name][0],
            rules=rules,
            age_s=lambda appended_ms: max(0.0, time.time() - appended_ms / 1000),
        )

    def all(self) -> dict[str, Counter[str]]:
        """Judge everything; counts by source and what became of the frames."""
        from agents.reprocess import paced
        from streams.reader import count, read

        total = count(self.clients, [self.frames], start=self.begin, until=self.until)
        tally: dict[str, Counter[str]] = {}
        halt = threading.Event()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[changed]} changed"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=err, disable=self.quiet) as bar:
            task = bar.add_task("comparing" if self.dry_run else "reprocessing", total=total, changed=0)
            waiting: list[Output] = []
            stored = read(self.clients, [self.frames], start=self.begin, until=self.until, stop=halt, where=self._passes(bar, task))
            for number, record in enumerate(paced(self._yielding(stored, bar, task), self.rate, time.sleep)):
                judged = self.work.judge(record)
                _count(tally, judged)
                waiting += self._outputs(judged)
                if number % CHUNK == CHUNK - 1:
                    waiting = self._write(waiting)
                bar.update(task, advance=1, changed=sum(each["changed"] + each["new"] for each in tally.values()))
            self._write(waiting)
        return tally

    def _passes(self, bar: Progress, task: Any) -> Any:
        """Frames of other sources are passed over without a look."""
        from streams.views import decode

        if not self.sources:
            return None

        def passes(stored: Stored) -> bool:
            wanted = decode(stored).source in self.sources
            if not wanted:
                bar.advance(task)
            return wanted

        return passes

    def _yielding(self, items: Iterable[Stored], bar: Progress, task: Any) -> Iterator[Stored]:
        """The items, with a pause while the leaf is behind."""
        from agents.reprocess import Yielding

        rule, looked_at = Yielding(self.max_lag), float("-inf")
        name = bar.tasks[task].description
        for item in items:
            while time.monotonic() - looked_at >= LAG_EVERY_S:
                lag, looked_at = self.meter.read(), time.monotonic()
                if lag is None or rule.may_go(lag, looked_at):
                    break
                bar.update(task, description=f"the leaf is behind by {lag.records} frames: waiting")
                time.sleep(LAG_EVERY_S)
                self.paused_s += LAG_EVERY_S
            bar.update(task, description=name)
            yield item

    def _outputs(self, judged: Judged) -> list[Output]:
        from streams import outputs

        found: list[Output] = []
        if judged.verdict is not None and judged.outcome in ("new", "same", "changed"):
            found.append(outputs.answer(self.role.write("verdicts"), judged.verdict))
        if judged.frame is not None:
            found += [outputs.alert(self.role.write("alerts"), alert) for alert in judged.alerts]
            found += [outputs.picture(self.role.write("alerts.evidence"), alert.id, judged.frame) for alert in judged.alerts]
        return found

    def _write(self, waiting: list[Output]) -> list[Output]:
        from streams.sink import NotDelivered, SinkBroken

        if self.sink is not None and waiting:
            try:
                self.sink.write_blocking(waiting)
            except (NotDelivered, SinkBroken) as error:
                raise CommandFailed(f"{error}. What was written stands; the same command goes on with the rest") from None
        return []


def _alerts(records: Iterable[Stored]) -> Iterator[Any]:
    from schemas.messages import Alert
    from schemas.records import InvalidRecord

    for stored in records:
        try:
            yield Alert.from_bytes(stored.value or b"")
        except InvalidRecord:
            continue


def _count(tally: dict[str, Counter[str]], judged: Judged) -> None:
    each = tally.setdefault(judged.source, Counter())
    each["frames"] += 1
    each[judged.outcome] += 1
    each["alerts"] += len(judged.alerts)
    each["before"] += judged.before.total()
    each["after"] += judged.after.total()


def _tell(tally: dict[str, Counter[str]], run: _Run, as_json: bool) -> None:
    total: Counter[str] = sum(tally.values(), Counter())
    detector = run.work.detector
    if as_json:
        names = ("frames", *OUTCOMES, "alerts", "before", "after")
        told = {source or "?": {name: counts[name] for name in names} for source, counts in sorted(tally.items())}
        head = {"model": detector.name, "model_digest": detector.digest, "generation": run.work.generation, "dry_run": run.dry_run}
        print_json({**head, "paused_s": run.paused_s, "total": {name: total[name] for name in names}, "sources": told})
        return
    if not total["frames"]:
        out.print("no frames in that range: topics.frames_retention_s says how long they are kept")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("SOURCE")
    for heading in ("FRAMES", "CHANGED", "NEW", "SAME", "KEPT", "DONE", "UNREADABLE", "OBJECTS"):
        table.add_column(heading, justify="right")
    rows = [*sorted(tally.items()), ("all", total)] if len(tally) > 1 else sorted(tally.items())
    for source, counts in rows:
        objects = f"{counts['before']} -> {counts['after']}"
        table.add_row(source or "?", str(counts["frames"]), *(str(counts[outcome]) for outcome in OUTCOMES), objects)
    out.print(table)
    results = total["changed"] + total["new"] + total["same"]
    what = "would be" if run.dry_run else "are"
    out.print(
        f"{results} results {what} those of {detector.name} (generation {run.work.generation}): {total['changed']} see something else, "
        f"{total['new']} had no answer; {total['kept']} stay, since a better answer stands"
    )
    if total["alerts"]:
        out.print(f"{total['alerts']} alerts {'would be ' if run.dry_run else ''}raised, marked as late")
