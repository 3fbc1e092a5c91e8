"""`headwater produce`: video and images become frames on Kafka. How is in streams.production; here it is asked for and shown."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from infra.cli.common import DEFAULT_CONFIG, CommandFailed, err, json_option
from infra.cli.produce_run import MakeFeed, publish
from infra.cli.produce_sites import Wish
from schemas.identity import InvalidIdentity, check_source
from streams.production.address import InvalidAddress, default_name, kind_of, unique
from streams.production.cache import FrameCache
from streams.production.capture import VideoFile
from streams.production.feed import LiveFeed, Recorded, RecordedFeed
from streams.production.images import ImageFolder
from streams.production.live import AttachedCamera, NetworkCamera
from streams.production.pictures import CaptureFailed, Look


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("--fps", type=click.FloatRange(0, 10_000, min_open=True), help="Frames a second of each source."),
        click.option("--width", type=click.IntRange(16, 16_384), help="Scale to this width in pixels, keeping the aspect."),
        click.option("--quality", type=click.IntRange(1, 100), default=85, show_default=True, help="JPEG quality."),
        click.option("--loop", is_flag=True, help="Begin again at the end, in the same epoch."),
        click.option("--seconds", type=click.FloatRange(0, min_open=True), metavar="N", help="Stop after N seconds."),
        click.option("--frames", type=click.IntRange(1), metavar="N", help="Stop after N frames of each source."),
        click.option("--name", "names", multiple=True, metavar="NAME", help="Name of the source; one for each, in their order."),
        click.option(
            "--bootstrap-servers", "bootstrap", metavar="HOST:PORT", help="The Kafka to publish to, instead of the configured one."
        ),
        click.option(
            "--to",
            "to",
            multiple=True,
            metavar="[NAME=]HOST:PORT",
            help="A leaf site; given several times, the nearest healthy one is used.",
        ),
        click.option("--sites", "sites_path", metavar="FILE", help="A list of leaf sites ([[sites]]), and when to move between them."),
        click.option(
            "-c",
            "--config",
            "config_paths",
            multiple=True,
            type=click.Path(),
            default=[DEFAULT_CONFIG],
            envvar="HEADWATER_CONFIG",
            show_default=True,
            show_envvar=True,
            metavar="FILE",
            help="The site's configuration; given several times, those of several leaf sites.",
        ),
        click.option("--manifest", type=click.Path(dir_okay=False), help="Write a JSON line for every frame that gets a sequence."),
        json_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def produce() -> None:
    """Publish video or images as frames.

    Every frame gets a number in its source's run (epoch) and ends as acknowledged or as a declared drop; `epochs` and `drops` tell of
    both. When the broker is slow or away, frames are dropped here, oldest first, so that a camera never lags.

    Without --config and without a headwater.toml, --bootstrap-servers is enough: the site is then called `local`.

    With several leaf sites (--to, several --config, or --sites) it starts at the nearest healthy one, moves to another within two
    seconds when that one breaks, and goes back when it is well again. Frames keep their numbers, and those that were not acknowledged are
    sent again. A site is called as its --to NAME= says; the account knows the leaves by their own names.
    """


@produce.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@_common
@click.option("--preload", is_flag=True, help="Encode the whole of each file first, so that producing it costs little.")
@click.option("--cache-mib", type=click.IntRange(1), default=256, show_default=True, help="Encoded frames kept for replay, in all.")
@click.option(
    "--stagger", type=click.FloatRange(0), default=0.0, metavar="SECONDS", help="Begin each file SECONDS further in than the one before."
)
@click.option("--start-at", type=click.FloatRange(0), default=0.0, metavar="SECONDS", help="Begin SECONDS into each file.")
@click.option(
    "--degrade",
    metavar="FAULT",
    help="Spoil the first SOURCE, a file, on purpose: NAME[=STRENGTH]@FROM[-TO] in seconds; blur, darkness, noise, moved or frozen.",
)
@click.option("--once", is_flag=True, help="Fail if a stream does not answer or breaks off, instead of connecting again.")
@click.pass_context
def video(
    ctx: click.Context,
    /,
    sources: tuple[str, ...],
    fps: float | None,
    width: int | None,
    quality: int,
    loop: bool,
    names: tuple[str, ...],
    preload: bool,
    cache_mib: int,
    stagger: float,
    start_at: float,
    degrade: str | None,
    once: bool,
    **common: Any,
) -> int:
    """Publish video: files, streams (RTSP, HTTP, ...) and cameras at this machine.

    A SOURCE is a path, a URL or a camera's index. --fps plays a file at another rate than its own, and thins out a camera's. A stream
    that breaks off is connected to again, as a new epoch. Users, passwords and queries of URLs are never shown.

    \b
    Examples:
      headwater produce video gate.mp4 --loop --bootstrap-servers 127.0.0.1:9092
      headwater produce video rtsp://user:password@10.0.0.7/stream1 --name gate --fps 15 --width 1280
      headwater produce video 0
      headwater produce video gate.mp4 --loop --to gate=10.0.0.5:9092 --to hall=10.0.0.6:9092
      headwater produce video a.mp4 a.mp4 a.mp4 --loop --preload --stagger 7 --fps 30
      headwater produce video gate.mp4 --loop --degrade blur@20-50
    """
    wish = _wish(ctx, common)
    look = Look(width, quality)
    named = _named(sources, names)
    if degrade and kind_of(sources[0]) != "file":
        raise click.UsageError(f"--degrade spoils a video file: {sources[0]} is none")
    cache = FrameCache(cache_mib << 20) if loop or preload or len(sources) > len(set(sources)) else None
    makers: list[tuple[str, MakeFeed]] = []
    files: list[VideoFile] = []
    try:
        for place, (source, name) in enumerate(zip(sources, named, strict=True)):
            match kind_of(source):
                case "file":
                    file = VideoFile(Path(source), look, cache)
                    files.append(file)
                    played = _degraded(file, degrade, fps, quality) if degrade and not place else file
                    makers.append((name, _plays(played, fps, loop, start_at + place * stagger)))
                case "url":
                    makers.append((name, _watches(NetworkCamera(source, look), fps, once)))
                case "camera":
                    makers.append((name, _watches(AttachedCamera(int(source), look), fps, once)))
    except (CaptureFailed, InvalidAddress) as error:
        raise CommandFailed(str(error)) from None

    def prepare(halt: threading.Event) -> None:
        if preload:
            _preload(files, cache_mib, halt, quiet=wish.as_json)

    return publish(wish, makers, prepare)


@produce.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@_common
@click.pass_context
def images(
    ctx: click.Context,
    /,
    folder: Path,
    fps: float | None,
    width: int | None,
    quality: int,
    loop: bool,
    names: tuple[str, ...],
    **common: Any,
) -> int:
    """Publish the images in a folder, in the order of their names, 10 a second unless --fps says otherwise.

    A JPEG is sent as its own bytes (unless --width asks for another size); other images are encoded as JPEG first.

    \b
    Examples:
      headwater produce images ./pictures --bootstrap-servers 127.0.0.1:9092
      headwater produce images ./pictures --loop --fps 2 --name shelf-3
    """
    wish = _wish(ctx, common)
    [name] = _named((str(folder),), names)
    try:
        recording = ImageFolder(folder, Look(width, quality))
    except CaptureFailed as error:
        raise CommandFailed(str(error)) from None
    return publish(wish, [(name, _plays(recording, fps, loop, 0.0))], lambda halt: None)


def _degraded(file: VideoFile, fault: str, fps: float | None, quality: int) -> Recorded:
    from infra.degrade import Degradation, UnknownDegradation
    from infra.degraded import DegradedRecording

    try:
        return DegradedRecording(file, Degradation.parse(fault), fps=fps, quality=quality)
    except UnknownDegradation as error:
        raise click.BadParameter(str(error), param_hint="--degrade") from None


def _plays(recording: Recorded, fps: float | None, loop: bool, start_s: float) -> MakeFeed:
    return lambda producer, until: RecordedFeed(producer, recording, until, fps=fps, loop=loop, start_s=start_s)


def _watches(camera: NetworkCamera | AttachedCamera, fps: float | None, once: bool) -> MakeFeed:
    return lambda producer, until: LiveFeed(producer, camera, until, fps=fps, once=once)


def _wish(ctx: click.Context, common: dict[str, Any]) -> Wish:
    named = ctx.get_parameter_source("config_paths") is not click.core.ParameterSource.DEFAULT
    return Wish(config_named=named, **common)


def _named(sources: tuple[str, ...], names: tuple[str, ...]) -> list[str]:
    """The sources' names: as given, or made from what they are."""
    if not names:
        try:
            return unique([default_name(source) for source in sources])
        except InvalidAddress as error:
            raise CommandFailed(str(error)) from None
    if len(names) != len(sources):
        raise click.UsageError(f"{len(names)} --name for {len(sources)} sources: give one for each, in their order, or none")
    if len(set(names)) != len(names):
        raise click.UsageError("two --name are the same: every source needs a name of its own")
    try:
        return [check_source(name) for name in names]
    except InvalidIdentity as error:
        raise click.UsageError(str(error)) from None


def _preload(files: list[VideoFile], cache_mib: int, halt: threading.Event, *, quiet: bool) -> None:
    """Encode files into the cache, each once, with a progress bar."""
    columns = TextColumn("encoding {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True, disable=quiet) as bar:
        for file in {(file.path, file.look): file for file in files}.values():
            task = bar.add_task(file.path.name, total=file.estimate)

            def advance(done: int, total: int | None, task: Any = task) -> None:
                if halt.is_set():
                    raise _Halted
                bar.update(task, completed=done, total=total)

            try:
                whole = file.preload(advance)
            except _Halted:
                return
            except CaptureFailed as error:
                raise CommandFailed(str(error)) from None
            if not whole:
                kept = len(file.recording or ())
                err.print(
                    f"{file.path.name}: its first {kept / file.fps:.0f} s fill the cache of {cache_mib} MiB; the rest is encoded as it is "
                    "played (--cache-mib gives more room, --width and --quality need less)"
                )


class _Halted(Exception):
    """The end was asked for during the preparation."""
