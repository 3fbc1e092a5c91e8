"""What a leaf says of its own accuracy, again and again: a record for each source of which frames were judged, and the metrics of all."""

from __future__ import annotations

import logging
from typing import Any

from mode import Service

from agents.audits import Audits
from agents.cascade.accuracy import MEASURES, Live
from streams import outputs, telemetry
from streams.sink import NotDelivered, Sink, SinkBroken
from streams.topology import Topic

log = logging.getLogger("headwater.audit")

EVERY_S = 15.0


class Reports(Service):
    """Writes what the audit says, and once more at the end."""

    def __init__(self, audits: Audits, sink: Sink, topic: Topic, *, every_s: float = EVERY_S, **kwargs: Any) -> None:
        self.audits, self.sink, self.topic, self.every_s = audits, sink, topic, every_s
        super().__init__(**kwargs)

    @Service.task
    async def _report(self) -> None:
        while not self.should_stop:
            await self.sleep(self.every_s)
            await self.write()

    async def on_stop(self) -> None:
        await self.write()

    async def write(self) -> None:
        """Write what is new. What fails is said again with the next frames that are judged."""
        news = self.audits.news()
        if not news:
            return
        observe(self.audits.live())
        try:
            await self.sink.write([outputs.accuracy(self.topic, each) for each in news])
        except (NotDelivered, SinkBroken) as error:
            log.warning("the live accuracy could not be written: %s", error)


def observe(live: Live) -> None:
    """Show it as metrics; what is not known is not a number."""
    telemetry.AUDITED.set(live.frames)
    for answers, accuracy in (("leaf", live.leaf), ("results", live.results)):
        for measure in MEASURES:
            estimate = getattr(accuracy, measure)
            for bound in ("value", "low", "high"):
                value = getattr(estimate, bound)
                telemetry.ACCURACY.labels(answers, measure, bound).set(float("nan") if value is None else value)
