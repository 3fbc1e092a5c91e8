"""`headwater bench cascade`: policies, budgets and teaching side by side over one video, with real models under a virtual clock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from infra import logs
from infra.cli.common import CommandFailed, err, json_option, out, print_json
from infra.processes import ended_by_signals
from schemas.errors import Fault

if TYPE_CHECKING:
    from infra.bench.cascade.report import Report
    from infra.bench.cascade.runs import Run
    from infra.bench.cascade.simulation import Material, Plan
    from infra.bench.cascade.truths import Truths

_WIDTH = 160
LEAF_MODEL, REGION_MODEL = "nanodet-g@224:int8", "nanodet-g@224+320+416+512:fp32"
POLICIES = ("uniform", "uncertainty", "expected-gain")


class _Options(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for."""

    leaf: str
    region: str
    reference: str | None
    labels: Path | None
    budgets: tuple[float, ...]
    policies: tuple[str, ...]
    delay: int
    seeds: int
    compute: float
    frames: int | None
    min_score: float
    skip_s: float
    classes: tuple[str, ...]
    everything: bool


@click.command("cascade")
@click.option("--video", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Any video; without it the demo's own.")
@click.option(
    "--labels", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The truth: MOTChallenge (.txt) or COCO (.json)."
)
@click.option(
    "--reference", metavar="MODEL", help="Without labels: agreement with this model on the camera's frames.  [default: the region's]"
)
@click.option(
    "--leaf", default=LEAF_MODEL, show_default=True, metavar="MODEL", help="Such as nanodet-g@224:int8, model.onnx@640, site.toml."
)
@click.option("--region", default=REGION_MODEL, show_default=True, metavar="MODEL", help="Named as --leaf is.")
@click.option(
    "--budgets", default="5,10,25,50", show_default=True, metavar="PERCENT,...", help="Shares of the frames that the region infers."
)
@click.option("--policies", default=",".join(POLICIES), show_default=True, metavar="NAME,...", help="What chooses the frames.")
@click.option("--delay", type=click.IntRange(1, 100_000), default=1, show_default=True, help="Frames until the region's answer is back.")
@click.option("--seeds", type=click.IntRange(1, 100), default=5, show_default=True, help="Runs of random choice.")
@click.option(
    "--compute",
    type=click.FloatRange(1, 100),
    default=4.0,
    show_default=True,
    help="How many times the configured look's pixels a leaf may look at, where it chooses input sizes; 1: as configured.",
)
@click.option(
    "--min-score", type=click.FloatRange(0.01, 0.9), default=0.25, show_default=True, help="What is answered: boxes from this score on."
)
@click.option("--frames", type=click.IntRange(1), help="Only so many frames.")
@click.option(
    "--skip",
    "skip_s",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Seconds at the beginning that are played and not scored.",
)
@click.option("--classes", default="", metavar="LABEL,...", help="Score only these.  [default: all that the truth has]")
@click.option("--everything/--no-everything", default=True, show_default=True, help="Also every frame in clips.")
@click.option("--markdown", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the tables to FILE too.")
@json_option
def cascade(video: Path | None, budgets: str, policies: str, classes: str, markdown: Path | None, as_json: bool, **options: object) -> int:
    """Compare what the cascade does with each policy and budget.

    The product's own policies, tracks, teaching and evidence run over a video with real models; only time is simulated. Looks are kept in
    the cache, so a second run takes a minute. Without labels the figures are agreement with the region (or a reference), not accuracy.
    Exits with 1 if a promise was not kept; goals that are called reach do not count.

    \b
    Examples:
      headwater bench cascade
      headwater bench cascade --video street.mp4 --labels gt/gt.txt --classes person --budgets 10,25
      headwater bench cascade --leaf site.toml --policies uncertainty --delay 10 --json
    """
    asked = msgspec.convert(
        options
        | {
            "budgets": tuple(_shares(budgets)),
            "policies": tuple(_known(policies)),
            "classes": tuple(filter(None, map(str.strip, classes.split(",")))),
        },
        _Options,
    )
    logs.setup(level="ERROR")
    try:
        with ended_by_signals():
            found = _compare(video, asked)
    except Fault as fault:
        raise CommandFailed(str(fault)) from None
    return _show(found, asked, markdown, as_json)


def _shares(text: str) -> Iterator[float]:
    for part in text.split(","):
        try:
            share = float(part) / 100
        except ValueError:
            share = -1.0
        if not 0 < share <= 1:
            raise click.BadParameter(f"{part!r}: expected percentages above 0 and up to 100, such as 5,10,25", param_hint="--budgets")
        yield share


def _known(text: str) -> Iterator[str]:
    for name in map(str.strip, text.split(",")):
        if name not in POLICIES:
            raise click.BadParameter(f"{name!r}: expected some of {', '.join(POLICIES)}", param_hint="--policies")
        yield name


def _compare(path: Path | None, asked: _Options) -> Report:
    from agents.cascade.stream import FAINT_FROM
    from agents.inference.detector import Detector as Opened
    from agents.inference.detector import load
    from agents.sizes import choices, pixels
    from infra import assets
    from infra.assets.models import ready_models
    from infra.bench.cascade import reference
    from infra.bench.cascade.cache import file_digest
    from infra.bench.cascade.labels import read_labels
    from infra.bench.cascade.material import CLIP_CRF, CLIP_FRAMES, Evidence, camera_bytes, footage, material, seen_by
    from infra.bench.cascade.models import detector_of
    from infra.bench.cascade.report import report
    from infra.bench.cascade.runs import Trial
    from infra.bench.cascade.truths import Video
    from infra.bench.report import machine
    from schemas.config import Detector, Engine

    found = machine()
    if path is None:
        (path,) = assets.fetch(assets.VIDEO)
    elif not path.is_file():
        raise CommandFailed(f"there is no video {path}")
    leaf, region = detector_of(asked.leaf), detector_of(asked.region)
    leaves = choices(msgspec.structs.replace(leaf, compute=asked.compute))
    judge = detector_of(asked.reference) if asked.reference else region
    models = ready_models([*leaves, region, judge])

    def opened(settings: Detector, least: float = asked.min_score) -> Opened:
        return load(msgspec.structs.replace(settings, min_score=least), Engine(), models)

    film = footage(path, file_digest(path), asked.frames)
    scored_from = round(asked.skip_s * film.fps)
    if scored_from >= film.frames:
        raise CommandFailed(f"--skip {asked.skip_s:g}: the video has {film.frames / film.fps:.1f} s, so nothing would be scored; skip less")
    truths = None
    if asked.labels is not None:  # before the looks, which take minutes
        truths = read_labels(asked.labels, Video(frames=film.frames, width=film.width, height=film.height))
        _check(truths, scored_from, asked)
    alone = Evidence(side=max(region.sizes))
    eyes, far = [opened(each, FAINT_FROM) for each in leaves], opened(region)
    sent = material(film, eyes, far, alone, publish_from=asked.min_score, cost=pixels)
    clips = None
    if asked.everything:
        form = Evidence(side=max(region.sizes), clip_frames=CLIP_FRAMES, crf=CLIP_CRF)
        clips = material(film, eyes[:1], far, form, publish_from=asked.min_score, cost=pixels)
    if truths is None:
        seen = seen_by(film, opened(judge), "the reference on the camera's frames")
        truths = reference.truths(seen, reference=asked.reference or f"the region ({asked.region}) on the camera's frames")
    _check(truths, scored_from, asked)
    trial = Trial(
        video=path.name,
        fps=film.fps,
        baseline_bytes=camera_bytes(film),
        scored_from=scored_from,
        labels=asked.classes or None,
        facts={
            "leaf": asked.leaf,
            "region": asked.region,
            "evidence": alone.name,
            "delay": f"{asked.delay} frames",
            "compute": f"{asked.compute:g} times the configured look",
        },
    )
    runs = [*_runs(asked, sent, clips, truths, scored_from)]
    with _bar("judging") as (progress, task):
        return report(found, trial, truths, runs, say=lambda done, total: progress.update(task, completed=done, total=total))


def _check(truths: Truths, scored_from: int, asked: _Options) -> None:
    """Raise `CommandFailed` where the truth has nothing that a run could be measured by."""
    scored = truths.only(range(scored_from, len(truths.frames)))
    if not scored.known:
        raise CommandFailed(f"no frame from {scored_from + 1} on has labels in {truths.origin}: skip less, or label more")
    if not set(scored.labels) & set(asked.classes or scored.labels):
        wanted = f"no {', '.join(asked.classes)}" if asked.classes else "nothing"
        found = ", ".join(scored.labels) or "nothing"
        raise CommandFailed(f"the truth ({truths.origin}) has {wanted} to find from frame {scored_from + 1} on; it has {found}")


@contextlib.contextmanager
def _bar(what: str) -> Iterator[tuple[Progress, TaskID]]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        yield progress, progress.add_task(what, total=None)


def _runs(asked: _Options, sent: Material, clips: Material | None, truths: Truths, scored_from: int) -> Iterator[Run]:
    from infra.bench.cascade.material import CLIP_FRAMES
    from infra.bench.cascade.oracle import greedy
    from infra.bench.cascade.runs import LEAF, ORACLE, RANDOM, REGION, UNIFORM
    from infra.bench.cascade.simulation import Plan, simulate

    plans: list[tuple[Material, Plan]] = [(sent, Plan(policy=LEAF)), (sent, Plan(policy=REGION))]
    bounds = (0.0, asked.compute * next(iter(sent.costs.values()))) if len(sent.leaf) > 1 else (0.0,)
    for share in asked.budgets:
        for seed in range(asked.seeds):
            plans.append((sent, Plan(policy=RANDOM, budget_share=share, taught=False, seed=seed)))
            plans += [(sent, Plan(policy=RANDOM, budget_share=share, seed=seed, compute=each, delay=asked.delay)) for each in bounds]
        plans.append((sent, Plan(policy=UNIFORM, budget_share=share, taught=False)))
        plans += [
            (sent, Plan(policy=name, budget_share=share, compute=each, delay=asked.delay))
            for name in dict.fromkeys((UNIFORM, *asked.policies))
            for each in bounds
        ]
    if clips is not None:
        plans.append((clips, Plan(policy="uniform", mode="everything", delay=asked.delay + CLIP_FRAMES)))
    seen = simulate(sent, Plan(policy=LEAF)).instant
    known = truths.only(range(scored_from, len(truths.frames)))
    chosen = greedy(known, seen, sent.region, asked.budgets, asked.classes or None)
    with _bar("playing") as (progress, task):
        progress.update(task, total=len(plans) + len(chosen))
        for stuff, plan in plans:
            yield simulate(stuff, plan)
            progress.advance(task)
        for share, frames in chosen.items():
            yield simulate(sent, Plan(policy=ORACLE, budget_share=share, taught=False), frames.tolist())
            progress.advance(task)


def _show(found: Report, asked: _Options, markdown: Path | None, as_json: bool) -> int:
    from infra.bench.cascade.goals import goals
    from infra.bench.cascade.tables import markdown as written
    from infra.bench.cascade.tables import tables

    kept = goals(found, beats=set(asked.policies) - {"uniform"}, shipped=set(asked.policies))
    if as_json:
        print_json(msgspec.to_builtins(found) | {"goals": msgspec.to_builtins(kept)})
    else:
        out.print(tables(found), width=None if out.is_terminal else _WIDTH)
        for goal in kept:
            out.print(f"{'met    ' if goal.met else 'NOT MET'} {goal.promise}: {goal.measured}", markup=False)
    if markdown is not None:
        markdown.write_text(written(found), encoding="utf-8")
    return 0 if all(goal.met or "(reach)" in goal.promise for goal in kept) else 1
