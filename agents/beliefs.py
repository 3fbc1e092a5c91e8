"""What a leaf believes of each frame: what its model saw, followed over the frames of its source and corrected by what a region taught.

A frame is shown to the cascade once, in the order of its source's run. One that comes again (its batch was given back) is answered as
before; one that is older than what the cascade knows, such as a replay, with what the model saw in it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import msgspec

from agents.cascade.boxes import Boxes, boxes_of
from agents.cascade.cascade import Cascade
from agents.cascade.stream import View
from agents.inference.detector import Look
from agents.sight import Seen, Sight
from agents.sizes import Sizes
from schemas.detections import Detections
from schemas.frames import Frame
from schemas.messages import Verdict
from streams import telemetry

log = logging.getLogger("headwater.leaf")

KEPT = 1000  # frames of all sources that are known again
TRIAL_SHARE = 0.1  # of the time, in which a frame may be looked at in other sizes
ALLOW_S = 2.0  # how often it is seen to which sizes the leaf can keep up with


class Belief(msgspec.Struct, frozen=True):
    """What a frame is answered with. `view` is what the cascade made of it now, None if it was not shown it; `asked`: when the frame came
    before, the region was asked about it."""

    detections: Detections
    view: View | None = None
    asked: bool = False


class Beliefs:
    """What is believed of the frames that come, for one process. All is called on the event loop."""

    def __init__(self, cascade: Cascade, sight: Sight, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.cascade, self.sight, self._clock = cascade, sight, clock
        self._latest: OrderedDict[str, Detections] = OrderedDict()
        self._asked: set[str] = set()  # of these
        self._trying: dict[str, asyncio.Future[dict[Sizes, Look] | None]] = {}
        self._heard: dict[str, Verdict] = {}  # answers to frames that are still being tried
        self._allowed_at_s = self._trial_at_s = float("-inf")

    def sizes(self, source: str) -> Sizes:
        """The input sides that a source's next frame is to be looked at in."""
        now_s = self._clock()
        if self.sight.others is not None and now_s - self._allowed_at_s > ALLOW_S:
            self._allowed_at_s = now_s
            self.cascade.allow(self.sight.others.seconds(), self.sight.at_most_s())
        return self.cascade.sizes(source)

    def about(self, frame: Frame, seen: Seen) -> Belief:
        """What to answer to a frame; of one source they come in their order."""
        record = str(frame.id)
        known = self._latest.get(record)
        if known is not None:
            return Belief(known, None, record in self._asked)
        at_s = None if frame.replays else self.cascade.place(frame.source, frame.id.stream, frame.id.sequence, frame.captured_at)
        if at_s is None:
            return Belief(seen.look.detections)
        view = self.cascade.see(frame.source, at_s, _faint(seen.look), seen.digest, seen.sizes)
        answer = self._latest[record] = self.cascade.answer(frame.source, view)
        if len(self._latest) > KEPT:
            self._asked.discard(self._latest.popitem(last=False)[0])
        return Belief(answer, view)

    def ask(self, frame: Frame, seen: Seen, belief: Belief, now_s: float) -> None:
        """The region is asked about a frame: its answer is to be held against what is known of it now, and, for some, against what other
        input sizes would have seen."""
        record = str(frame.id)
        if belief.view is None:
            return
        self._asked.add(record)
        self.cascade.ask(frame.source, record, belief.view, now_s)
        begun_s = self._clock()
        if seen.sizes is None or self._trying or begun_s < self._trial_at_s or not self.cascade.wants_trial(frame.source):
            return
        trial = self._trying[record] = asyncio.wrap_future(self.sight.try_sizes(frame.jpeg, seen))
        trial.add_done_callback(partial(self._tried, frame.source, record, begun_s))

    def _tried(self, source: str, record: str, begun_s: float, trial: asyncio.Future[dict[Sizes, Look] | None]) -> None:
        del self._trying[record]
        self._trial_at_s = self._clock() + (self._clock() - begun_s) * (1 / TRIAL_SHARE - 1)
        if not trial.cancelled():
            if (error := trial.exception()) is not None:
                log.warning("a frame could not be looked at in other sizes: %s", error, extra={"record": record})
            elif (looks := trial.result()) is not None:
                self.cascade.tried(source, record, {sizes: _faint(look) for sizes, look in looks.items()})
        if (verdict := self._heard.pop(record, None)) is not None:
            self.hear(verdict)

    def hear(self, verdict: Verdict) -> None:
        """Learn from a region's answer, if it is about a frame that is remembered; as soon as all is known that it is held against."""
        if verdict.id in self._trying:
            self._heard[verdict.id] = verdict
        elif self.cascade.hear(verdict.source, verdict.id, verdict.detections) is not None:
            telemetry.LESSONS.inc()


def _faint(look: Look) -> Boxes:
    """All that a look told of, however faint."""
    return boxes_of(look.detections) if look.faint is None else Boxes(*look.faint)
