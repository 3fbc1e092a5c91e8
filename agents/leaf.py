"""The leaf: a verdict for every frame at once, alerts for what the rules want, and a question to the region where it is worth one.

A frame's outputs leave in the order of their urgency: alerts, the verdict, pictures, then evidence, which costs an encoding. Frames of
one source are answered in their order; no source waits for another, and no answer for evidence or a dead letter.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakValueDictionary

import msgspec

from agents.alerts import AlertRules
from agents.cascade.budgets import Budgets
from agents.cascade.evidence import encode_frame, escalate
from agents.cascade.policy import Never, Policy
from agents.inference.detector import Detector, Look
from agents.inference.images import UndecodableImage
from agents.pools import patient_pool
from schemas.config import SiteConfig
from schemas.detections import Detections
from schemas.frames import Frame, InvalidFrame, Origin, read_frame
from schemas.intervals import Intervals
from schemas.messages import RANK, Alert, Control, Drop, Reason, Status, Tier, Verdict
from streams import outputs, telemetry
from streams.delivery import Emitted, Rejected
from streams.message import KafkaRecord
from streams.sink import BrokerClock
from streams.topology import RoleView, Topic

log = logging.getLogger("headwater.leaf")

STALE = "stale"
STAGE = "leaf"


class Stale(Exception):
    """A frame that waited too long: it is dropped, with an explanation."""


class _Taken(msgspec.Struct, frozen=True):
    """A frame in work: its place in the batch, and the look that is being taken."""

    index: int
    frame: Frame
    look: asyncio.Future[Look]
    appended_ms: int


class _Question(msgspec.Struct, frozen=True):
    """What the region is to be asked about a frame, and what of the byte budget is set aside for it."""

    taken: _Taken
    verdict: Verdict
    reason: Reason
    alerts: list[Alert]
    reserved_bytes: float


class _Failed(msgspec.Struct, frozen=True):
    """A record whose work raised an unexpected error; it is not finished."""

    error: Exception


Ready = asyncio.Queue[Emitted | Rejected | _Failed]


class Leaf:
    """The work of the leaf agent, for `streams.delivery.Delivery`.

    Parameters
    ----------
    role
        The leaf's view of the topology.
    origin
        Cluster id and topic uuid of `frames`, for the ids of foreign records.
    clock
        The broker's clock, by which the age of a frame is measured.
    now
        The time, in UTC; for what is stamped, never for what is decided.

    A site without a region decides everything alone, whatever its policy.
    """

    def __init__(
        self,
        config: SiteConfig,
        role: RoleView,
        detector: Detector,
        policy: Policy,
        budgets: Budgets,
        *,
        cluster: str,
        frames_uuid: str,
        clock: BrokerClock,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self.config, self.detector, self.budgets = config, detector, budgets
        self.asks = config.link is not None and config.policy.mode != "off"
        self.policy = policy if self.asks else Never()
        self.cluster, self.frames_uuid, self.clock, self.now = cluster, frames_uuid, clock, now
        self.verdicts, self.alerts, self.pictures = role.write("verdicts"), role.write("alerts"), role.write("alerts.evidence")
        self.escalations, self.urgent, self.drops = role.write("escalations"), role.write("escalations.alerts"), role.write("drops")
        self.rules = AlertRules(config.rules, site=config.name, model_digest=detector.digest, deadline_ms=config.policy.deadline_ms)
        self.name = config.detector.name or detector.name
        self.evidence_bytes = 16_000.0  # expected size of one look's evidence; follows what is measured
        self._pool = ThreadPoolExecutor(config.engine.workers, thread_name_prefix="look")
        self._encoder = patient_pool("evidence")
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # of the sources in work

    def close(self) -> None:
        for pool in (self._pool, self._encoder):
            pool.shutdown(wait=True, cancel_futures=True)

    def heed(self, control: Control) -> None:
        """What the region announced: how many looks a second it can afford for us."""
        if control.inferences_per_s != self.budgets.inferences.rate:
            log.info("the region announced its capacity", extra={"region": control.region, "inferences_per_s": control.inferences_per_s})
        self.budgets.inferences.rate = control.inferences_per_s

    def recall(self, alerts: Iterable[Alert]) -> None:
        """Take in the site's latest alerts, so that frames that are read again after a restart raise no second alert on one event."""
        self.rules.recall(alerts)

    async def work(self, topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> AsyncIterator[Emitted | Rejected]:
        """Answer the frames of one batch. A record that fails holds nothing up: the error is raised when all others are answered, and
        what cannot be a frame is rejected last, since a dead letter takes the time of a round trip."""
        loop = asyncio.get_running_loop()
        sources: dict[str, list[_Taken]] = {}
        rejected: list[Rejected] = []
        for index, record in enumerate(records):
            appended_ms = record.timestamp()[1]
            try:
                frame = self._read(record, appended_ms)
            except InvalidFrame as error:
                rejected.append(Rejected(index, error))
                continue
            look = loop.run_in_executor(self._pool, self._look, frame, appended_ms)
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

    def _look(self, frame: Frame, appended_ms: int) -> Look:
        """In the pool. Age counts when the work would begin, since what waits in a queue grows old there."""
        age_s = self.clock.age_s(appended_ms)
        if age_s * 1000 > self.config.ingress.max_age_ms:
            raise Stale
        telemetry.STAGE_SECONDS.labels("wait").observe(age_s)
        look = self.detector.look(frame.jpeg)
        telemetry.observe_stages({**look.stages._asdict(), "look": look.stages.total_s})
        return look

    async def _finish(self, source: str, taken: list[_Taken], ready: Ready) -> None:
        """Finish one source's frames of a batch in their order, after those of earlier batches. Evidence is encoded beside it."""
        stale: list[_Taken] = []
        async with asyncio.TaskGroup() as questions:
            async with self._turn(source):
                for each in taken:
                    try:
                        look = await each.look
                        question = await self._answer(each, look, ready)
                    except Stale:
                        stale.append(each)
                    except UndecodableImage as error:
                        await ready.put(Rejected(each.index, error, str(each.frame.id)))
                    except Exception as error:  # noqa: BLE001 - handed to `work`, which raises it to delivery
                        await ready.put(_Failed(error))
                    else:
                        if question is not None:
                            questions.create_task(self._escalate(question, ready))
            if stale:
                await self._explain(stale, ready)

    def _turn(self, source: str) -> asyncio.Lock:
        lock = self._turns.get(source)
        if lock is None:
            lock = self._turns[source] = asyncio.Lock()
        return lock

    async def _explain(self, stale: list[_Taken], ready: Ready) -> None:
        """One drop record for the stale frames of each epoch; the frames count as finished with it."""
        by_stream: dict[tuple[str, str], list[_Taken]] = {}
        for each in stale:
            by_stream.setdefault((each.frame.id.source, each.frame.id.epoch), []).append(each)
        items: list[Emitted | _Failed] = []
        try:
            for (source, epoch), dropped in by_stream.items():
                ranges = Intervals((each.frame.id.sequence, each.frame.id.sequence) for each in dropped).to_ranges()
                drop = Drop(source=source, epoch=epoch, site=self.config.name, stage=STAGE, reason=STALE, ranges=ranges)
                output = outputs.drop(self.drops, drop, self.now(), dropped[0].frame.source)
                items += [*(Emitted(each.index) for each in dropped[:-1]), Emitted(dropped[-1].index, (output,))]
            telemetry.DROPPED.labels(STALE).inc(len(stale))
        except Exception as error:  # noqa: BLE001 - handed to `work`, which raises it to delivery
            items = [_Failed(error)] * len(stale)
        for item in items:
            await ready.put(item)

    async def _answer(self, taken: _Taken, look: Look, ready: Ready) -> _Question | None:
        """Put a frame's alerts, verdict and pictures; returns the question that is to follow them, if one is asked."""
        index, frame, trace = taken.index, taken.frame, taken.frame.traceparent
        alerts = self.rules.judge(frame, look.detections)
        if alerts:
            await ready.put(Emitted(index, tuple(outputs.alert(self.alerts, alert, trace) for alert in alerts), finished=False))
            await asyncio.sleep(0)  # they leave before anything slower is begun
            telemetry.ALERTS.labels("raised").inc(len(alerts))
        size = self.evidence_bytes
        reason = self._ask(frame, look, alerts, size)
        waits = reason is not None or (bool(alerts) and self.asks)
        verdict = self._verdict(frame, look, Status.PROVISIONAL if waits else Status.FINAL)
        await ready.put(Emitted(index, (outputs.answer(self.verdicts, verdict, trace),), finished=reason is None and not alerts))
        telemetry.VERDICTS.labels(verdict.status).inc()
        if alerts:
            pictures = tuple(outputs.picture(self.pictures, alert.id, frame) for alert in alerts)
            await ready.put(Emitted(index, pictures, finished=reason is None))
        if reason is not None:
            return _Question(taken, verdict, reason, alerts, size)
        telemetry.STAGE_SECONDS.labels("record").observe(self.clock.age_s(taken.appended_ms))
        return None

    def _ask(self, frame: Frame, look: Look, alerts: list[Alert], size: float) -> Reason | None:
        """Why the region is asked, if the policy wants it and both budgets allow it; charges them."""
        reason = self.policy.reason(frame.source, look.detections, alerts)
        if reason is None:
            return None
        forbidding = self.budgets.forbids(reason, size)
        if forbidding is not None:
            telemetry.DECLINED.labels(forbidding).inc()
            return None
        self.budgets.spend(size)
        return reason

    def _verdict(self, frame: Frame, look: Look, status: Status) -> Verdict:
        return Verdict(
            id=str(frame.id),
            source=frame.source,
            captured_at=frame.captured_at,
            status=status,
            detections=look.detections,
            confidence=confidence(look.detections),
            tier=Tier.LEAF,
            site=self.config.name,
            rank=RANK[Tier.LEAF],
            generation=self.config.detector.generation,
            model=self.name,
            model_digest=self.detector.digest,
            deadline_ms=self.config.policy.deadline_ms if status is Status.PROVISIONAL else None,
        )

    async def _escalate(self, question: _Question, ready: Ready) -> None:
        """Encode a frame's evidence and put the escalation. It waits in the pool behind the looks, and no look waits for it."""
        policy, frame, start = self.config.policy, question.taken.frame, time.perf_counter()
        try:
            evidence = await asyncio.get_running_loop().run_in_executor(
                self._encoder, lambda: encode_frame(frame.jpeg, side=policy.evidence_side, quality=policy.evidence_quality)
            )
            asked = escalate(
                frame,
                evidence,
                question.verdict,
                reason=question.reason,
                deadline_ms=policy.deadline_ms,
                ttl_s=policy.ttl_s,
                alerts=tuple(alert.id for alert in question.alerts),
            )
            topic = self.urgent if question.reason is Reason.ALERT else self.escalations
            output = outputs.escalation(topic, asked, evidence, frame.traceparent)
        except Exception as error:  # noqa: BLE001 - handed to `work`, which raises it to delivery
            self.budgets.refund(question.reserved_bytes)
            await ready.put(_Failed(error))
            return
        telemetry.STAGE_SECONDS.labels("evidence").observe(time.perf_counter() - start)
        self.budgets.bytes.spend(len(evidence) - question.reserved_bytes)
        self.evidence_bytes += 0.1 * (len(evidence) - self.evidence_bytes)
        telemetry.ESCALATIONS.labels(question.reason).inc()
        telemetry.ESCALATION_BYTES.inc(len(evidence))
        await ready.put(Emitted(question.taken.index, (output,)))
        telemetry.STAGE_SECONDS.labels("record").observe(self.clock.age_s(question.taken.appended_ms))


def confidence(detections: Detections) -> float:
    """How sure a frame's answer is: the mean of |2p - 1| over its detections' scores p, 1 where nothing was seen. Not calibrated."""
    if not detections:
        return 1.0
    return round(sum(abs(2 * d.score - 1) for d in detections) / len(detections), 4)
