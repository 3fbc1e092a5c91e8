"""The client library: publish frames to the nearest healthy one of several leaf sites, from any Python program, plain or async.

Plain, for a camera that must never lag (when all sites are slow the oldest waiting frame is dropped, and declared as dropped later):

>>> with RoutedPublisher(["gate=10.0.0.5:9092", "hall=10.0.0.6:9092"], on_event=print) as publisher:  # doctest: +SKIP
...     camera = publisher.source("camera-1")
...     camera.begin(width=1280, height=720, fps=15)  # a new epoch: one run of the camera
...     for jpeg in pictures:
...         camera.publish(jpeg)

For a program that can wait, so that nothing is dropped: `camera.wait_for_room(timeout_s=5)` before each `publish`. With asyncio:

>>> async def main() -> None:
...     async with RoutedPublisher(["gate=10.0.0.5:9092", "hall=10.0.0.6:9092"]) as publisher:
...         publisher.source("scanner").begin()
...         outcome = await publisher.send("scanner", jpeg)  # waits for room, then for the acknowledgement
...         print(outcome.id, outcome.site or outcome.reason)

Every frame gets an id (source, epoch, sequence) before anything can go wrong, and keeps it whatever site takes it. Each ends as
acknowledged by a site or as a declared drop; a frame may be stored at two sites after a move, and the fleet's results hold it once.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from schemas.config import SiteConfig
from schemas.routing import Routing, named_site
from streams.clients import Clients
from streams.production.frames import Limits, OnAssigned, Outcome
from streams.production.publisher import FramePublisher
from streams.routing.router import OnEvent
from streams.routing.way import Site
from streams.topology import Topology


class NoRoom(TimeoutError):
    """No site took frames for so long that there was no room for another; nothing was assigned."""


class RoutedPublisher(FramePublisher):
    """A `FramePublisher` of several sites, made from their addresses.

    Parameters
    ----------
    sites
        `HOST:PORT`, `NAME=HOST:PORT`, or the leaf's configuration. Names should be the leaves' own: the account knows them by that.
    routing
        When it moves; see `schemas.routing.Routing`.
    limits, on_assigned, on_event
        As in `FramePublisher`.
    client
        Becomes the Kafka clients' `client.id`.

    Raises
    ------
    InvalidConfig
        For an address that is none.
    ValueError
        For no site, or two of one name.
    """

    def __init__(
        self,
        sites: Sequence[str | SiteConfig],
        *,
        routing: Routing | None = None,
        limits: Limits | None = None,
        on_assigned: OnAssigned | None = None,
        on_event: OnEvent | None = None,
        client: str = "headwater.client",
    ) -> None:
        configs = [named_site(site) if isinstance(site, str) else site for site in sites]
        if not configs:
            raise ValueError("no site: expected at least one")
        found = [Site(clients=Clients(config.kafka, client), topology=Topology(config)) for config in configs]
        super().__init__(
            found[0].clients,
            found[0].topology,
            others=found[1:],
            routing=routing,
            limits=limits,
            on_assigned=on_assigned,
            on_event=on_event,
        )

    async def send(self, source: str, jpeg: bytes, captured_at: dt.datetime | None = None, *, wait_s: float = 10.0) -> Outcome:
        """Wait for room, publish a frame, and wait for what becomes of it.

        Raises
        ------
        NoRoom
            If there was no room for `wait_s`.
        InvalidFrame, PublisherClosed
            As `FrameProducer.publish`.
        """
        producer = self.source(source)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Outcome] = loop.create_future()

        def settle(outcome: Outcome) -> None:
            if not ended.done():  # it may have been cancelled
                ended.set_result(outcome)

        def on_outcome(outcome: Outcome) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and with it whoever waited
                loop.call_soon_threadsafe(settle, outcome)

        deadline_s = loop.time() + wait_s
        while True:
            with self.lock:  # so that nobody takes the room between the look and the frame
                if producer.has_room:
                    producer.publish(jpeg, captured_at, on_outcome=on_outcome)
                    break
            if not await asyncio.to_thread(producer.wait_for_room, max(0.0, deadline_s - loop.time())) and loop.time() >= deadline_s:
                self.check_open()
                raise NoRoom(f"source {source}: no site has taken frames for {wait_s:g} s")
        return await ended

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await asyncio.to_thread(self.close)
