"""One run of `headwater produce`: which site is published to, the feeds at work, and how they end (limits, signals, failures)."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import click
from prometheus_client import REGISTRY

from infra import logs
from infra.cli.common import CommandFailed, err
from infra.cli.produce_sites import Wish, configs_of, sites_of
from infra.cli.produce_view import Tally, View
from schemas.config import SiteConfig
from streams import telemetry
from streams.clients import BrokerUnavailable
from streams.production.address import redact
from streams.production.feed import Feed, Until
from streams.production.frames import FrameProducer
from streams.production.manifest import Manifest
from streams.production.metrics import ProducerCollector
from streams.production.pictures import CaptureFailed
from streams.production.publisher import FramePublisher, WrongTopics
from streams.routing.metrics import RoutingCollector
from streams.routing.router import Event

CLOSE_S = 10.0  # for what is under way when the end is asked for
FEED_END_S = 2.0
MAX_EVENTS = 1000  # between two looks at them
MakeFeed = Callable[[FrameProducer, Until], Feed]
Prepare = Callable[[threading.Event], None]  # done before the first frame; ends early when the event is set


def publish(wish: Wish, makers: list[tuple[str, MakeFeed]], prepare: Prepare) -> int:
    """Publish until it ends or is ended; returns the exit code.

    Parameters
    ----------
    makers
        For each source its name, and what makes its feed.

    Raises
    ------
    CommandFailed
        If a source, the cluster or its topics are not usable, or the end could not be told to the broker.
    click.Abort
        After Ctrl-C and a clean end.
    """
    configs, routing, biases_s = configs_of(wish)
    config = configs[0]
    events: deque[Event] = deque(maxlen=MAX_EVENTS)
    _show_logs(wish.as_json, config.name if len(configs) == 1 else "several")
    sites = sites_of(configs, biases_s)  # after the logs are set up, since it silences what the clients say while they connect
    with contextlib.ExitStack() as stack:
        manifest = stack.enter_context(_manifest(wish.manifest)) if wish.manifest else None
        publisher = FramePublisher(
            sites[0].clients,
            sites[0].topology,
            others=sites[1:],
            bias_s=sites[0].bias_s,
            routing=routing,
            on_assigned=manifest,
            on_event=events.append,
        )
        try:
            publisher.start()
        except (BrokerUnavailable, WrongTopics) as error:
            raise CommandFailed(str(error)) from None
        _serve_metrics(config, publisher)
        signals = stack.enter_context(_signals())
        feeds: list[Feed] = []
        left = []
        tally = Tally(feeds, publisher.router, events)
        try:
            prepare(signals.halt)
            if not signals.halt.is_set():
                until = Until(seconds=wish.seconds, frames=wish.frames)
                feeds.extend(make(publisher.source(name), until) for name, make in makers)
                _watch(publisher, feeds, tally, signals, wish.as_json)
        finally:
            for feed in feeds:
                feed.stop()
            for feed in feeds:
                feed.join(FEED_END_S)
            left = publisher.close(CLOSE_S if signals.count < 2 else 1.0)
            view = View(tally, as_json=wish.as_json)
            view.events()
            view.summary(left)
    _raise_failure(publisher, feeds, bool(left))
    if signals.last == signal.SIGINT:
        raise click.Abort
    return 0


def _serve_metrics(config: SiteConfig, publisher: FramePublisher) -> None:
    REGISTRY.register(ProducerCollector(publisher))
    REGISTRY.register(RoutingCollector(publisher.router))
    port = telemetry.serve(config.metrics, "producer", site=config.name, tier=config.tier)
    if err.is_terminal:  # elsewhere a port is configured (metrics.ports.producer)
        err.print(f"metrics: http://{config.metrics.host}:{port}/metrics")


def _watch(publisher: FramePublisher, feeds: list[Feed], tally: Tally, signals: _Signals, as_json: bool) -> None:
    """Start the feeds and show them, until all have ended or the end is asked for. If one fails, the others go on."""
    with View(tally, as_json=as_json) as view:
        tally.begin()
        for feed in feeds:
            feed.start()
        next_s = time.monotonic() + 1.0
        failed: set[str] = set()
        while any(feed.alive for feed in feeds) and publisher.error is None:
            view.events()
            if signals.halt.wait(0.05):
                return
            for feed in feeds:
                if feed.error is not None and feed.name not in failed and any(other.alive for other in feeds if other is not feed):
                    failed.add(feed.name)
                    logging.getLogger("headwater.produce").error("%s: %s", feed.name, feed.error, extra={"source": feed.name})
            if time.monotonic() >= next_s:
                next_s += 1.0
                view.show()


def _raise_failure(publisher: FramePublisher, feeds: list[Feed], incomplete: bool) -> None:
    for feed in feeds:
        if isinstance(feed.error, CaptureFailed):
            raise CommandFailed(str(feed.error))
        if isinstance(feed.error, OSError):
            raise CommandFailed(f"{feed.name}: {redact(str(feed.error))}")
        if feed.error is not None:
            raise feed.error
    if publisher.error is not None:
        raise publisher.error
    if incomplete:
        raise CommandFailed(
            "the broker did not answer in time: what is missing is named above, and the account will count it as produced and open"
        )


@contextlib.contextmanager
def _manifest(path: str) -> Iterator[Manifest]:
    try:
        manifest = Manifest(Path(path))
    except OSError as error:
        raise CommandFailed(f"--manifest {path}: {error.strerror}") from None
    with manifest:
        yield manifest


class _Signals:
    """SIGINT and SIGTERM ask for a clean end; a second one makes it a quick one."""

    def __init__(self) -> None:
        self.halt = threading.Event()
        self.count = 0
        self.last = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.last = self.last or number
        self.halt.set()


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    signals = _Signals()
    before = {number: signal.signal(number, signals) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _ForPeople(logging.Handler):
    """Log lines as sentences on standard error, above the live line."""

    def emit(self, record: logging.LogRecord) -> None:
        err.print(redact(record.getMessage()), markup=False)


def _show_logs(as_json: bool, site: str) -> None:
    """Show what the rooms log: to people as sentences, to programs as JSON lines."""
    logs.setup(as_json=as_json, level="WARNING", site=site, role="producer")
    if not as_json:
        logging.basicConfig(handlers=[_ForPeople()], level="WARNING", force=True)
    logging.getLogger("headwater.produce").setLevel("INFO")
