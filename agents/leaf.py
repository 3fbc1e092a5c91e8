"""The leaf: a verdict for every frame at once, alerts for what the rules want, and a question to the region where it is worth one.

A frame's outputs leave in the order of their urgency: alerts, the verdict, pictures, then evidence, which costs an encoding. Frames of
one source are answered in their order; no source waits for another, and no answer for evidence or a dead letter. How frames are looked at
is `agents.sight`'s, what the region is asked `agents.questions`'.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from agents.alerts import AlertRules
from agents.audits import Audits
from agents.beliefs import Belief, Beliefs
from agents.cascade.accuracy import leaf_rank
from agents.inference.images import UndecodableImage
from agents.monitors import Monitors
from agents.questions import Question, Questions, Wish, ids
from agents.reach import AWAY, LATER
from agents.sight import Seen, Sight
from schemas.config import SiteConfig
from schemas.detections import Detections
from schemas.drift import Drift
from schemas.frames import Frame, InvalidFrame, Origin, read_frame
from schemas.intervals import Intervals
from schemas.messages import RANK, Alert, Control, Drop, Reason, Status, Tier, Verdict
from streams import outputs, telemetry
from streams.delivery import Emitted, Rejected
from streams.disk import REASON, SHED
from streams.message import KafkaRecord
from streams.sink import BrokerClock, Output
from streams.topology import RoleView, Topic

log = logging.getLogger("headwater.leaf")

STALE = "stale"
NO_ENGINE = "no-engine"
STAGE = "leaf"
NO_MODEL = "none"  # the model of a verdict that nobody's look is behind
NO_DIGEST = "0" * 64
UNJUDGED = "no model of the leaf works: the region is asked"


class Shed(Exception):
    """A frame that the low disk has no room for: it is dropped, with an explanation."""


class Stale(Exception):
    """A frame that waited too long: it is dropped, with an explanation."""


class _Taken(msgspec.Struct, frozen=True):
    """A frame in work: its place in the batch, and the look that is being taken."""

    index: int
    frame: Frame
    look: asyncio.Future[Seen | None]
    appended_ms: int


class _Failed(msgspec.Struct, frozen=True):
    """A record whose work raised an unexpected error; it is not finished."""

    error: Exception


Ready = asyncio.Queue[Emitted | Rejected | _Failed]
Rest = Coroutine[Any, Any, None]


class Leaf:
    """The work of the leaf agent, for `streams.delivery.Delivery`.

    Parameters
    ----------
    role
        The leaf's view of the topology.
    cluster, frames_uuid
        Cluster id and topic uuid of `frames`, for the ids of foreign records.
    clock
        The broker's clock, by which the age of a frame is measured.
    now
        The time, in UTC; for what is stamped, never for what is decided.
    """

    def __init__(
        self,
        config: SiteConfig,
        role: RoleView,
        sight: Sight,
        questions: Questions,
        *,
        cluster: str,
        frames_uuid: str,
        clock: BrokerClock,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self.config, self.sight, self.questions = config, sight, questions
        self.cluster, self.frames_uuid, self.clock, self.now = cluster, frames_uuid, clock, now
        self.verdicts, self.alerts, self.pictures = role.write("verdicts"), role.write("alerts"), role.write("alerts.evidence")
        self.drops = role.write("drops")
        self.rules = AlertRules(config.rules, site=config.name, model_digest=NO_DIGEST, deadline_ms=config.policy.deadline_ms)
        self.beliefs = Beliefs(questions.cascade, sight, clock=questions.clock)
        self.audits = Audits(config.audit, questions.budgets, self.rules.of, clock=questions.clock)
        self.monitors = Monitors(config.name, questions.cascade, self.audits)
        self.drift = role.write("drift")
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # of the sources in work

    def close(self) -> None:
        self.sight.close()
        self.questions.close()

    @property
    def stuck(self) -> int:
        """Threads that hang in an engine."""
        return self.sight.stuck

    def heed(self, control: Control) -> None:
        """What the region announced: how many looks a second it can afford for us."""
        if self.questions.heed(control):
            log.info("the region announced its capacity", extra={"region": control.region, "inferences_per_s": control.inferences_per_s})

    def hear(self, verdict: Verdict) -> list[Output]:
        """A region's answer, whoever asked for it: what it teaches if it was us, and what is to be written of it."""
        if verdict.status is not Status.FINAL:
            return []
        if not self.audits.truths.prefers_leaf(verdict.source):  # else it would teach the leaf to be worse
            self.beliefs.hear(verdict)
        counts = self.audits.heard(verdict)
        if counts is None:
            return []
        return [outputs.drift(self.drift, each) for each in self.monitors.audited(verdict.source, self.clock.now_ms() / 1000, counts)]

    def tick(self) -> list[Output]:
        """About once a second, while no frame waits to be read: what is to be written of cameras that are silent."""
        return [outputs.drift(self.drift, each) for each in self.monitors.tick(self.clock.now_ms() / 1000)]

    def recall(self, alerts: Iterable[Alert]) -> None:
        """Take in the site's latest alerts, so that frames that are read again after a restart raise no second alert on one event."""
        self.rules.recall(alerts)

    async def work(self, topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> AsyncIterator[Emitted | Rejected]:
        """Answer the frames of one batch. A record that fails holds nothing up: the error is raised when all others are answered, and
        what cannot be a frame is rejected last, since a dead letter takes the time of a round trip."""
        sources: dict[str, list[_Taken]] = {}
        rejected: list[Rejected] = []
        for index, record in enumerate(records):
            appended_ms = record.timestamp()[1]
            try:
                frame = self._read(record, appended_ms)
            except InvalidFrame as error:
                rejected.append(Rejected(index, error))
                continue
            begun, sizes = partial(self._begin, appended_ms), self.beliefs.sizes(frame.source)
            watched = not frame.replays and self.monitors.wants(frame.source, appended_ms / 1000)
            look = asyncio.wrap_future(self.sight.see(frame.jpeg, begun, sizes, watched=watched))
            sources.setdefault(frame.source, []).append(_Taken(index, frame, look, appended_ms))
        ready: Ready = asyncio.Queue(maxsize=256)
        # Their first steps run in this order and before those of later batches: so each source's turns are taken in order.
        tasks = [asyncio.ensure_future(self._finish(source, taken, ready)) for source, taken in sources.items()]
        failure: Exception | None = None
        try:
            missing = len(records) - len(rejected)
            while missing:
                item = await ready.get()
                if isinstance(item, _Failed):
                    failure = failure or item.error
                elif isinstance(item, Rejected):
                    rejected.append(item)
                else:
                    missing -= item.finished
                    yield item
                    continue
                missing -= 1
            for each in rejected:
                yield each
        finally:
            for task in tasks:
                task.cancel()
            for taken in sources.values():
                for one in taken:
                    one.look.cancel()  # also says that nobody waits for its error
            await asyncio.gather(*tasks, return_exceptions=True)
        if failure is not None:
            raise failure

    def _read(self, record: KafkaRecord, appended_ms: int) -> Frame:
        origin = Origin(
            cluster=self.cluster,
            topic=record.topic(),
            topic_uuid=self.frames_uuid,
            partition=record.partition(),
            offset=record.offset(),
            appended_at=dt.datetime.fromtimestamp(appended_ms / 1000, dt.UTC),
        )
        return read_frame(record.value(), record.key(), record.headers(), origin, max_bytes=self.config.ingress.max_frame_bytes)

    def _begin(self, appended_ms: int) -> None:
        """In the pool. Age counts when the work would begin, since what waits in a queue grows old there."""
        if not self.questions.shedding.allows("frames"):
            raise Shed
        age_s = self.clock.age_s(appended_ms)
        if age_s * 1000 > self.config.ingress.max_age_ms:
            raise Stale
        telemetry.STAGE_SECONDS.labels("wait").observe(age_s)

    async def _finish(self, source: str, taken: list[_Taken], ready: Ready) -> None:
        """Finish one source's frames of a batch in their order, after those of earlier batches. Evidence is encoded beside it, and the
        record of a clip's first frame stays open until the clip is written."""
        dropped: dict[str, list[_Taken]] = {}
        async with asyncio.TaskGroup() as beside:
            async with self._turn(source):
                for each in taken:
                    try:
                        seen = await each.look
                        rest = self._ask_unjudged(each, ready) if seen is None else await self._answer(each, seen, ready)
                    except Stale:
                        dropped.setdefault(STALE, []).append(each)
                    except Shed:
                        dropped.setdefault(REASON, []).append(each)
                    except _NobodyLooks:
                        dropped.setdefault(NO_ENGINE, []).append(each)
                    except UndecodableImage as error:
                        await ready.put(Rejected(each.index, error, str(each.frame.id)))
                    except Exception as error:  # noqa: BLE001 - handed to `work`, which raises it to delivery
                        await ready.put(_Failed(error))
                    else:
                        if rest is not None:
                            beside.create_task(rest)
            for reason, frames in dropped.items():
                await self._explain(frames, reason, ready)

    def _turn(self, source: str) -> asyncio.Lock:
        lock = self._turns.get(source)
        if lock is None:
            lock = self._turns[source] = asyncio.Lock()
        return lock

    async def _explain(self, frames: list[_Taken], reason: str, ready: Ready) -> None:
        """One drop record for the frames of each epoch; the frames count as finished with it."""
        by_stream: dict[tuple[str, str], list[_Taken]] = {}
        for each in frames:
            by_stream.setdefault((each.frame.id.source, each.frame.id.epoch), []).append(each)
        items: list[Emitted | _Failed] = []
        try:
            for (source, epoch), dropped in by_stream.items():
                ranges = Intervals((each.frame.id.sequence, each.frame.id.sequence) for each in dropped).to_ranges()
                drop = Drop(source=source, epoch=epoch, site=self.config.name, stage=STAGE, reason=reason, ranges=ranges)
                output = outputs.drop(self.drops, drop, self.now(), dropped[0].frame.source)
                told = [drift for each in dropped for drift in self.monitors.arrived(each.frame.source, each.appended_ms / 1000)]
                written = (output, *(outputs.drift(self.drift, drift) for drift in told))
                items += [*(Emitted(each.index) for each in dropped[:-1]), Emitted(dropped[-1].index, written)]
            telemetry.DROPPED.labels(reason).inc(len(frames))
        except Exception as error:  # noqa: BLE001 - handed to `work`, which raises it to delivery
            items = [_Failed(error)] * len(frames)
        for item in items:
            await ready.put(item)

    async def _answer(self, taken: _Taken, seen: Seen, ready: Ready) -> Rest | None:
        """Put a frame's alerts, verdict and pictures; returns what is to follow them, beside the frames that come next."""
        index, frame, trace = taken.index, taken.frame, taken.frame.traceparent
        belief = self.beliefs.about(frame, seen)
        detections = belief.detections
        telemetry.observe_stages({**seen.look.stages._asdict(), "look": seen.look.stages.total_s})
        alerts = self.rules.judge(frame, detections, seen.digest, age_s=self.clock.age_s(taken.appended_ms))
        if alerts:
            await ready.put(Emitted(index, tuple(outputs.alert(self.alerts, alert, trace) for alert in alerts), finished=False))
            await asyncio.sleep(0)  # they leave before anything slower is begun
            telemetry.ALERTS.labels("raised").inc(len(alerts))
        drawn = self._drawn(frame)
        wish = self.questions.about(
            frame.source,
            belief.view,
            alerts,
            again=belief.asked,
            audited=drawn is not None,
            worthless=self.audits.truths.prefers_leaf(frame.source),
        )
        verdict = self._verdict(frame, seen, belief, wish, alerted=bool(alerts))
        asked = wish.reason is not None
        if asked:
            self.beliefs.ask(frame, seen, belief, self.questions.clock())
        if drawn is not None and belief.view is not None:
            self.audits.asked(verdict, drawn, otherwise=wish.otherwise, sent=asked)
        drifts: list[Drift] = []
        if belief.view is not None:
            drifts = self.monitors.frame(frame.source, taken.appended_ms / 1000, seen.picture, detections)
        answered = (outputs.answer(self.verdicts, verdict, trace), *(outputs.drift(self.drift, each) for each in drifts))
        await ready.put(Emitted(index, answered, finished=not asked and not alerts))
        telemetry.VERDICTS.labels(verdict.status).inc()
        question = None
        if wish.reason is not None:
            rate = drawn if wish.reason is Reason.AUDIT else None
            question = Question(frame, verdict, wish.reason, ids(alerts), wish.reserved_bytes, seen.look.watched, rate)
        kept = alerts if self.questions.shedding.allows("alerts.evidence") else []
        if kept and self.config.redact:
            return self._show(taken, kept, seen, question, ready)
        if alerts:
            pictures = tuple(outputs.picture(self.pictures, alert.id, frame) for alert in kept)
            await ready.put(Emitted(index, pictures, finished=not asked))
        if question is not None:
            return self._escalate(taken, question, ready)
        telemetry.STAGE_SECONDS.labels("record").observe(self.clock.age_s(taken.appended_ms))
        return None

    def _drawn(self, frame: Frame) -> float | None:
        """The rate by which a frame is in the audit sample; None if it is not, or nobody judges it."""
        if not self.questions.asks or frame.replays:
            return None
        return self.audits.draw(frame.source, str(frame.id), self.questions.evidence_bytes)

    async def _show(self, taken: _Taken, alerts: list[Alert], seen: Seen, question: Question | None, ready: Ready) -> None:
        """Put the pictures of alerts with what may not be seen in them covered, then what is asked."""
        try:
            shown = await self.questions.shown(taken.frame, seen.look.watched)
        except Exception as error:  # noqa: BLE001 - handed to `work`, which raises it to delivery
            if question is not None:
                self.questions.drop(question)
            await ready.put(_Failed(error))
            return
        pictures = () if shown is None else tuple(outputs.picture(self.pictures, alert.id, shown) for alert in alerts)
        await ready.put(Emitted(taken.index, pictures, finished=question is None))
        if question is not None:
            await self._escalate(taken, question, ready)

    def _ask_unjudged(self, taken: _Taken, ready: Ready) -> Rest:
        """Ask about a frame that no model here could look at. Its verdict says that nobody has, so that any answer stands above it; it goes
        with the evidence, since only that shows whether the frame can be judged at all. Raises `_NobodyLooks`."""
        reserved = self.questions.unjudged(taken.frame.source)
        if reserved is None:
            raise _NobodyLooks
        question = Question(taken.frame, _unseen(taken.frame, self.config), Reason.UNJUDGED, (), reserved)
        return self._escalate(taken, question, ready)

    def _verdict(self, frame: Frame, seen: Seen, belief: Belief, wish: Wish, *, alerted: bool) -> Verdict:
        """What the leaf believes. It is final where the audit shows that the region would hardly disagree, provisional while the region's
        answer is waited for: for a frame that is asked about since the leaf is not sure, and for that of an alert always, so that a
        deadline shows that nobody has reviewed it. What it is not sure of and cannot ask is unanswered; while the region is away it is
        final, by the site's policy, and says so. Where labels have shown that the leaf is the better one, it has the last word."""
        sureness = confidence(belief.detections)
        preferred = self.audits.truths.prefers_leaf(frame.source)
        stated = self.audits.sure(frame.source, seen.digest, sureness) if self.questions.asks and not preferred else True
        sure = not wish.wanted if stated is None else stated
        waits = (wish.reason is not None and not wish.away and not sure) or (alerted and self.questions.asks and not preferred)
        away = (LATER if waits else AWAY) if wish.away and (waits or not sure) else None
        status = Status.PROVISIONAL if waits else Status.FINAL if sure or wish.away or stated is None else Status.UNANSWERED
        return Verdict(
            id=str(frame.id),
            source=frame.source,
            captured_at=frame.captured_at,
            status=status,
            detections=belief.detections,
            confidence=sureness,
            tier=Tier.LEAF,
            site=self.config.name,
            rank=leaf_rank(preferred),
            generation=self.config.detector.generation,
            model=seen.model,
            model_digest=seen.digest,
            deadline_ms=self.config.policy.deadline_ms if waits else None,
            note="; ".join(filter(None, (seen.note, away, SHED if wish.shed else None))) or None,
            seen=hashlib.sha256(seen.look.detections.to_json().encode()).hexdigest()[:32],
        )

    async def _escalate(self, taken: _Taken, question: Question, ready: Ready) -> None:
        """Put the escalation of a frame, when its evidence is encoded; no look waits for that. A frame whose clip another one's record
        writes is finished with that."""
        outgoing: list[Output] = []
        try:
            if question.reason is Reason.UNJUDGED:
                outgoing.append(outputs.answer(self.verdicts, question.verdict, taken.frame.traceparent))
            escalation = await self.questions.write(question)
            outgoing += [] if escalation is None else [escalation]
        except UndecodableImage as error:
            await ready.put(Rejected(taken.index, error, str(taken.frame.id)))
            return
        except Exception as error:  # noqa: BLE001 - handed to `work`, which raises it to delivery
            await ready.put(_Failed(error))
            return
        if question.reason is Reason.UNJUDGED:
            telemetry.VERDICTS.labels(question.verdict.status).inc()
        await ready.put(Emitted(taken.index, tuple(outgoing)))
        telemetry.STAGE_SECONDS.labels("record").observe(self.clock.age_s(taken.appended_ms))


class _NobodyLooks(Exception):
    """No model here works, and the region is not asked about this frame either."""


def _unseen(frame: Frame, config: SiteConfig) -> Verdict:
    """The verdict on a frame that nobody has looked at yet."""
    return Verdict(
        id=str(frame.id),
        source=frame.source,
        captured_at=frame.captured_at,
        status=Status.FAILED,
        detections=Detections(),
        confidence=0.0,
        tier=Tier.LEAF,
        site=config.name,
        rank=RANK[Tier.LEAF],
        generation=config.detector.generation,
        model=NO_MODEL,
        model_digest=NO_DIGEST,
        note=UNJUDGED,
    )


def confidence(detections: Detections) -> float:
    """How sure a frame's answer is: the mean of |2p - 1| over its detections' scores p, 1 where nothing was seen. Not calibrated."""
    if not detections:
        return 1.0
    return round(sum(abs(2 * d.score - 1) for d in detections) / len(detections), 4)
