"""`headwater demo`: the whole on this machine, with real parts, ending with an account of every frame."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
from rich.live import Live

from infra import logs
from infra.cli.common import CommandFailed, err, out
from infra.processes import ended_by_signals
from schemas.errors import Fault

_LINE_EVERY_S = 5.0
_WIDTH = 130


class Outage(click.ParamType):
    """`START:LENGTH` in seconds."""

    name = "START:LENGTH"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        try:
            start, length = (float(part) for part in str(value).split(":"))
        except ValueError:
            self.fail(f"{value!r}: expected START:LENGTH in seconds, such as 20:15", param, ctx)
        if start < 0 or length <= 0:
            self.fail(f"{value!r}: START is 0 or more and LENGTH more than 0", param, ctx)
        return start, length


class Degrade(click.ParamType):
    """A fault of a camera's picture, as `infra.degrade` reads it."""

    name = "FAULT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from infra.degrade import Degradation, UnknownDegradation

        try:
            return str(Degradation.parse(str(value)))
        except UnknownDegradation as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.option("--seconds", type=click.FloatRange(5, 86_400), default=60.0, show_default=True, help="How long the cameras run.")
@click.option("--cameras", type=click.IntRange(1, 64), help="Cameras at 30 frames/s; without it, as many as this machine holds.")
@click.option("--video", type=click.Path(path_type=Path), help="A video of yours; without it, the demo's is fetched.")
@click.option("--outage", type=Outage(), help="Cut the link START seconds after the first frame, for LENGTH seconds.")
@click.option(
    "--degrade",
    type=Degrade(),
    help="Spoil the first camera on purpose, NAME[=STRENGTH]@FROM[-TO] in seconds: blur, darkness, noise, moved or frozen.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the figures to FILE.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Keep logs, configuration and topics in DIR.")
def demo(
    seconds: float,
    cameras: int | None,
    video: Path | None,
    outage: tuple[float, float] | None,
    degrade: str | None,
    json_file: Path | None,
    keep: Path | None,
) -> int:
    """See the whole on this machine: real video, two Kafkas, two tiers, an outage.

    The first run fetches Kafka, a video and a model, and keeps them. It ends with an account of every frame, and exits with 1 if the
    account does not add up or another promise was not kept.

    \b
    Examples:
      headwater demo --seconds 60 --outage 20:15
      headwater demo --cameras 1 --video gate.mp4 --json figures.json
      headwater demo --degrade blur@20-40
    """
    if outage is not None and outage[0] + outage[1] >= seconds:
        raise click.UsageError(f"--outage {outage[0]:g}:{outage[1]:g} does not end within --seconds {seconds:g}")
    logs.setup(level="ERROR")
    with ended_by_signals(), _folder(keep) as folder:
        return _play(folder, seconds, cameras, video, outage, degrade, json_file, kept=keep)


def _play(
    folder: Path,
    seconds: float,
    cameras: int | None,
    video: Path | None,
    outage: tuple[float, float] | None,
    degrade: str | None,
    json_file: Path | None,
    kept: Path | None,
) -> int:
    from infra.demo.prepare import prepare
    from infra.demo.report import report
    from infra.demo.scenario import Demo, Plan
    from infra.demo.view import line, live, summary

    ready = prepare(video, say=_say)
    found = ready.measured
    looks = f"{found.inferences_per_s:g} looks/s"
    count = cameras or found.cameras
    _say(
        f"this machine ({found.cores} cores, {found.engine}): a look takes {found.leaf_ms:.1f} ms at the leaf and "
        f"{found.region_ms:.0f} ms at the region, so {count} camera{'s' if count > 1 else ''} and {looks}"
    )
    plan = Plan(video=ready.video, seconds=seconds, cameras=count, outage=outage, folder=folder, measured=ready.measured, degrade=degrade)
    run = Demo(plan, _say)
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(run.close)
            run.prepare()
            if err.is_terminal:
                page = stack.enter_context(Live(console=err, refresh_per_second=4, transient=True))
                for elapsed in run.play():
                    page.update(live(run, elapsed))
            else:
                said = -_LINE_EVERY_S
                for elapsed in run.play():
                    if elapsed - said >= _LINE_EVERY_S:
                        said = elapsed
                        out.print(line(run, elapsed))
            account = run.settle()
            figures = report(run, account)
            if json_file is not None:
                json_file.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
            _say("stopping")
    except Fault as fault:
        saved = _rescue_logs(folder) if kept is None else folder / "logs"
        raise CommandFailed(str(fault).replace(str(folder / "logs"), str(saved))) from None
    out.print()
    page_width = None if out.is_terminal else _WIDTH  # a pipe has no width: rich would take 80 and break the lines
    out.print(summary(figures, str(kept) if kept else None), width=page_width)
    return 1 if figures.failures else 0


def _say(text: str) -> None:
    err.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {text}")


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise CommandFailed(f"--keep {keep} is not empty: name a new folder")
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="headwater-demo-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _rescue_logs(folder: Path) -> Path:
    """A failed run's logs outlive its folder."""
    saved = Path(tempfile.mkdtemp(prefix="headwater-demo-logs-"))
    shutil.copytree(folder / "logs", saved, dirs_exist_ok=True) if (folder / "logs").exists() else None
    return saved
