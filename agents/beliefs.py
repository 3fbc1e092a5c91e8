"""What a leaf believes of each frame: what its model saw, followed over the frames of its source and corrected by what a region taught.

A frame is shown to the cascade once, in the order of its source's run. One that comes again (its batch was given back) is answered as
before; one that is older than what the cascade knows, such as a replay, with what the model saw in it.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from agents.cascade.cascade import Cascade
from agents.cascade.stream import View
from agents.questions import Questions
from agents.sight import Seen
from schemas.detections import Detections
from schemas.frames import Frame
from schemas.messages import Verdict

KEPT = 1000  # frames of all sources that are known again


class Belief(msgspec.Struct, frozen=True):
    """What a frame is answered with. `view` is what the cascade made of it now, None if it was not shown it; `asked`: when the frame came
    before, the region was asked about it."""

    detections: Detections
    view: View | None = None
    asked: bool = False


class Beliefs:
    """What is believed of the frames that come, for one process."""

    def __init__(self, cascade: Cascade) -> None:
        self.cascade = cascade
        self._latest: OrderedDict[str, Detections] = OrderedDict()
        self._asked: set[str] = set()  # of these

    def about(self, frame: Frame, seen: Seen, *, replayed: bool = False) -> Belief:
        """What to answer to a frame; of one source they come in their order."""
        record = str(frame.id)
        known = self._latest.get(record)
        if known is not None:
            return Belief(known, None, record in self._asked)
        at_s = None if replayed else self.cascade.place(frame.source, frame.id.stream, frame.id.sequence, frame.captured_at)
        if at_s is None:
            return Belief(seen.look.detections)
        faint = seen.look.detections if seen.look.faint is None else Detections(seen.look.faint)
        view = self.cascade.see(frame.source, at_s, faint, seen.digest)
        answer = self._latest[record] = self.cascade.answer(frame.source, view)
        if len(self._latest) > KEPT:
            self._asked.discard(self._latest.popitem(last=False)[0])
        return Belief(answer, view)

    def ask(self, frame: Frame, belief: Belief, questions: Questions) -> None:
        """The region is asked about a frame."""
        if belief.view is not None:
            self._asked.add(str(frame.id))
            questions.remember(frame.source, str(frame.id), belief.view)

    def hear(self, verdict: Verdict) -> bool:
        """Learn from a region's answer; returns whether it was about a frame that is remembered."""
        return self.cascade.hear(verdict.source, verdict.id, verdict.detections) is not None
