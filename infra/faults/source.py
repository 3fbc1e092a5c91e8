"""A producer process of the fault suite: pictures of a folder, played by Headwater's own producer, each noted in the test's manifest before
it is sent. Run as `python -m infra.faults.source CONFIG --pictures DIR --manifests DIR --name NAME ... --fps N`.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import threading
import time
from pathlib import Path

import click

from infra import logs
from infra.cli.common import load_config
from infra.faults.manifest import Writing
from infra.processes import Terminated, ended_by_signals
from schemas.frames import Frame
from streams.clients import Clients
from streams.production.publisher import FramePublisher
from streams.topology import Topology

LATE_S = 1.0  # a camera that stood still does not catch up


@click.command()
@click.argument("config_path", metavar="CONFIG")
@click.option("--pictures", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--manifests", type=click.Path(path_type=Path), required=True)
@click.option("--name", "names", multiple=True, required=True)
@click.option("--fps", type=float, required=True, help="Of each source.")
def main(config_path: str, pictures: Path, manifests: Path, names: tuple[str, ...], fps: float) -> None:
    """Publish until SIGTERM, then end the epochs and say so in the manifest."""
    config = load_config(config_path)
    logs.setup(level="INFO", site=config.name, role="producer")
    played = [path.read_bytes() for path in sorted(pictures.iterdir())]
    digests = {data: hashlib.sha256(data).hexdigest() for data in played}
    manifest = Writing(manifests)

    def note(frame: Frame) -> None:
        manifest.write(str(frame.id), digests[frame.jpeg], time.monotonic())

    publisher = FramePublisher(Clients(config.kafka, "faults.source"), Topology(config), on_assigned=note)
    with ended_by_signals():
        try:
            publisher.start()
            _play(publisher, played, names, fps)
        except Terminated:
            if not publisher.close(10.0):
                manifest.end()


def _play(publisher: FramePublisher, played: list[bytes], names: tuple[str, ...], fps: float) -> None:
    sources = [publisher.source(name) for name in names]
    for source in sources:
        source.begin(fps=fps)
    pause = threading.Event()
    step_s = 1.0 / (fps * len(sources))
    index = time.time_ns() % len(played)
    due = time.monotonic()
    while publisher.error is None:
        sources[index % len(sources)].publish(played[index % len(played)], dt.datetime.now(dt.UTC))
        index += 1
        due = max(due + step_s, time.monotonic() - LATE_S)
        pause.wait(max(0.0, due - time.monotonic()))
    raise publisher.error


if __name__ == "__main__":
    main()
