"""The cascade of a site: every source's stream, and which of their frames the next tier is asked about.

It decides by values, thresholds and budgets alone and does no work of its own: who drives it looks at frames, writes questions and brings
the answers. The leaf drives it with real time, a benchmark with a video's.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from agents.cascade.boxes import Boxes, best_of, boxes_of
from agents.cascade.budgets import Budgets
from agents.cascade.eyes import Eyes, Sizes, Tried
from agents.cascade.governor import Governor
from agents.cascade.stream import MOST_BOXES, SURE, UNSURE, Heard, Remembered, Stream, View
from agents.cascade.timeline import Timeline
from agents.cascade.values import Value
from schemas.detections import Detections

Mode = Literal["everything", "budgeted", "off"]
SOURCES = 1000  # that are remembered
ASKED = 1000  # frames of all sources whose answers are waited for, of some ten kilobytes each


class Lesson(msgspec.Struct, frozen=True):
    """What was learned of one source, as plain values, and, since it was learned from all of them, what a look is worth.

    Attributes
    ----------
    verdicts
        How many it was learned from.
    """

    verdicts: int
    stream: Remembered
    eyes: Tried
    value: list[list[float]]


class _Source(msgspec.Struct):
    stream: Stream
    eyes: Eyes
    asked_at_s: float = -math.inf
    trials: dict[str, Mapping[Sizes, Boxes] | None] = {}  # of the frames whose answers are waited for
    since: dict[str, float] = {}  # how long before each of them its source was last asked about
    timeline: Timeline = msgspec.field(default_factory=Timeline)
    verdicts: int = 0  # that were learned from
    claim: float = 1.0  # factor on what a look is worth


class Cascade:
    """What a leaf knows of its sources, and what it asks.

    Parameters
    ----------
    mode
        `everything`: each frame that the budgets allow; `budgeted`: those whose value exceeds a threshold that follows the budgets; `off`:
        none.
    choices
        Sets of input sides that a stream may be looked at in; the first is the configured one.
    publish_from
        Score below which a box is not part of an answer.
    """

    def __init__(
        self, *, mode: Mode, value: Value, budgets: Budgets, choices: Sequence[Sizes], publish_from: float, teach: bool = True
    ) -> None:
        self.mode, self.value, self.budgets = mode, value, budgets
        self.choices, self.publish_from, self.teach = tuple(choices), publish_from, teach
        self.governor = Governor()
        self._sources: OrderedDict[str, _Source] = OrderedDict()
        self._asked: OrderedDict[tuple[str, str], None] = OrderedDict()  # the oldest first
        self._fresh: set[str] = set()  # what was learned of them was not dumped yet
        self._seconds: dict[Sizes, float] = {}
        self._at_most_s = math.inf
        self._offered_at_s = -math.inf

    # ---- frames

    def sizes(self, source: str) -> Sizes:
        """The input sides that the source's next frame is to be looked at in."""
        return self._source(source).eyes.chosen

    def allow(self, seconds: Mapping[Sizes, float], at_most_s: float) -> None:
        """Bound the choices of input sides: how long a look at each takes, and how long one may take."""
        self._seconds, self._at_most_s = dict(seconds), at_most_s
        for each in self._sources.values():
            each.eyes.allow(self._seconds, at_most_s)

    def place(self, source: str, epoch: str, sequence: int, captured_at: dt.datetime) -> float | None:
        """The time of a source's frame on the source's own clock; None if it was seen before, and is not to be seen again."""
        return self._source(source).timeline.place(epoch, sequence, captured_at)

    def see(self, source: str, at_s: float, seen: Boxes | Detections, model: str = "", sizes: Sizes | None = None) -> View:
        """Take in what a source's next frame holds.

        Parameters
        ----------
        model
            Which model looked, by a name that it is known again by; without one it is whatever looks with the sizes that were asked for.
        sizes
            With which of the choices it looked; None: with none of them.
        """
        of = self._source(source)
        if not model:
            sizes = of.eyes.chosen
            model = "+".join(map(str, sizes))
        of.stream.look_with(model, of.eyes.calibrators.get(sizes) if sizes is not None else None)
        return of.stream.see(at_s, seen)

    def answer(self, source: str, view: View) -> Detections:
        """What a frame is answered with, as a record."""
        return self._source(source).stream.detections(view)

    def wants(self, source: str, view: View, now_s: float, size: float) -> bool:
        """Whether the next tier should be asked about a frame; that the budgets allow it is to be seen (`Budgets.take`).

        Parameters
        ----------
        now_s
            The time, by which budgets fill; of all sources together it does not go back.
        size
            Bytes that a look is expected to cost.
        """
        if self.mode == "off":
            return False
        wanted = self.mode == "everything"
        if not wanted:
            of = self._source(source)
            worth = self.value.worth(view, now_s - of.asked_at_s) * of.claim
            wanted = worth > 0 and (self.budgets.full() or self.governor.passes(worth))
        self._account(size if wanted else 0.0, now_s)
        return wanted

    def must(self, now_s: float, size: float) -> None:
        """Take note of a frame that the next tier is asked about whatever it is worth, such as an alert's: what remains is less."""
        self._account(size, now_s)

    def _account(self, size: float, now_s: float) -> None:
        passed_s = min(max(now_s - self._offered_at_s, 1e-4), 1.0)
        self._offered_at_s = now_s
        # by what is wanted, not by what is got: budgets that say no would leave the threshold where everything passes it
        self.governor.account(self._seconds_of_budget(size) if size else 0.0, passed_s)

    def _seconds_of_budget(self, size: float) -> float:
        """What a look takes of the budget that binds."""
        inferences, octets = self.budgets.inferences.rate, self.budgets.bytes.rate
        return max(1 / inferences if inferences > 0 else math.inf, size / octets if octets > 0 else math.inf)

    # ---- questions and answers

    def wants_trial(self, source: str) -> bool:
        """Whether a frame that is asked about should be looked at in every allowed size, so that the answer tells which serves best."""
        return self._source(source).eyes.wants_trial()

    def ask(self, source: str, key: str, view: View, now_s: float, trial: Mapping[Sizes, Boxes | Detections] | None = None) -> None:
        """Remember that the next tier is asked about a frame."""
        of = self._source(source)
        of.since[key] = now_s - of.asked_at_s
        of.asked_at_s = now_s
        of.stream.ask(key, view)
        of.trials[key] = None
        if trial is not None:
            self.tried(source, key, trial)
        while len(of.trials) > len(of.stream.asked):
            oldest = next(iter(of.trials))
            of.trials.pop(oldest), of.since.pop(oldest)
        self._asked[source, key] = None
        while len(self._asked) > ASKED:
            self._forget(*self._asked.popitem(last=False)[0])

    def tried(self, source: str, key: str, trial: Mapping[Sizes, Boxes | Detections]) -> None:
        """What a frame that is asked about holds, looked at in every size; for an answer that is still to come."""
        of = self._source(source)
        if key in of.trials:
            of.trials[key] = {sizes: best_of(seen, MOST_BOXES) for sizes, seen in trial.items()}

    def _forget(self, source: str, key: str) -> None:
        of = self._sources.get(source)
        if of is not None:
            of.stream.asked.pop(key, None), of.trials.pop(key, None), of.since.pop(key, None)

    def hear(self, source: str, key: str, verdict: Detections) -> Heard | None:
        """Learn from the next tier's verdict; None if the frame is not remembered."""
        of = self._source(source)
        view = of.stream.asked.get(key)
        heard = of.stream.hear(key, verdict)
        trial, since_s = of.trials.pop(key, None), of.since.pop(key, math.inf)
        self._asked.pop((source, key), None)
        if view is None or heard is None:
            return None
        self.value.learn(view, since_s, heard)
        of.verdicts += 1
        self._fresh.add(source)
        if self.teach:
            theirs = boxes_of(verdict)
            theirs = theirs.take(theirs.scores >= UNSURE)
            of.eyes.hear(trial, theirs, theirs.scores >= SURE)
        return heard

    # ---- a stream that is no longer what it was

    def claim(self, source: str, factor: float) -> None:
        """Looks at a source are worth so many times as much until this is called again: it takes a larger share of the budgets."""
        self._source(source).claim = factor

    def begin_again(self, source: str) -> None:
        """Forget what was learned of a source: it was about another picture. Its tracks go on."""
        of = self._source(source)
        begun = self._new()
        of.stream.forget()
        of.eyes, of.trials = begun.eyes, dict.fromkeys(of.trials)
        of.verdicts += 1  # what is kept elsewhere of before is older
        self._fresh.add(source)

    # ---- what outlives the process

    def lessons(self) -> dict[str, Lesson]:
        """What was learned since the last call, by source."""
        fresh, self._fresh = self._fresh, set()
        return {name: lesson for name in sorted(fresh) if (lesson := self.lesson(name)) is not None}

    def lesson(self, source: str) -> Lesson | None:
        """What was learned of a source; None if it is not known."""
        of = self._sources.get(source)
        return Lesson(of.verdicts, of.stream.dump(), of.eyes.dump(), self.value.dump()) if of is not None else None

    def unsaved(self, sources: Iterable[str]) -> None:
        """What `lessons` gave of some sources was not kept: it is to be given again."""
        self._fresh |= set(sources)

    def recall(self, source: str, lesson: Lesson) -> bool:
        """Take up what was learned of a source, unless as much is known already; returns whether it was.

        Raises
        ------
        ValueError
            If it is of another version, or about other input sizes.
        """
        of = self._source(source)
        if of.verdicts >= lesson.verdicts:
            return False
        begun = self._new()
        begun.stream.load(lesson.stream)
        begun.eyes.load(lesson.eyes)
        if lesson.value:
            self.value.load(lesson.value)
        begun.verdicts, begun.timeline = lesson.verdicts, of.timeline
        self._sources[source] = begun
        return True

    def _source(self, name: str) -> _Source:
        found = self._sources.get(name)
        if found is None:
            found = self._sources[name] = self._new()
            if len(self._sources) > SOURCES:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(name)
        return found

    def _new(self) -> _Source:
        eyes = Eyes(self.choices)
        eyes.allow(self._seconds, self._at_most_s)
        return _Source(Stream(publish_from=self.publish_from, teach=self.teach), eyes, trials={}, since={})
