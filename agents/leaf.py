"""The leaf: a verdict for every frame at once, alerts for what the rules want, and a question to the region where it is worth one.

A frame's outputs leave in the order of their urgency: alerts, the verdict, then pictures and evidence, which cost an encoding. Frames of
one source are finished in their order; no source waits for another.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from agents.alerts import AlertRules
from agents.cascade.budgets import Budgets
from agents.cascade.evidence import encode_frame, escalate
from agents.cascade.policy import Policy
from agents.inference.detector import Detector, Look
from agents.inference.images import UndecodableImage
from schemas.config import SiteConfig
from schemas.detections import Detections
from schemas.frames import Frame, InvalidFrame, Origin, read_frame
from schemas.intervals import Intervals
from schemas.messages import RANK, Alert, Control, Drop, Reason, Status, Tier, Verdict
from streams import outputs, telemetry
from streams.delivery import Emitted, Rejected
from streams.message import KafkaRecord
from streams.sink import BrokerClock, Output
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
        self.config, self.detector, self.policy, self.budgets = config, detector, policy, budgets
        self.cluster, self.frames_uuid, self.clock, self.now = cluster, frames_uuid, clock, now
        self.verdicts, self.alerts, self.pictures = role.write("verdicts"), role.write("alerts"), role.write("alerts.evidence")
        self.escalations, self.drops = role.write("escalations"), role.write("drops")
        self.rules = AlertRules(config.rules, site=config.name, model_digest=detector.digest, deadline_ms=config.policy.deadline_ms)
        self.name = config.detector.name or detector.name
        self.evidence_bytes = 16_000.0  # expected size of one look's evidence; follows what is measured
        self._pool = ThreadPoolExecutor(config.engine.workers, thread_name_prefix="look")
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def heed(self, control: Control) -> None:
        """What the region announced: how many looks a second it can afford for us."""
        if control.inferences_per_s != self.budgets.inferences.rate:
            log.info("the region announced its capacity", extra={"region": control.region, "inferences_per_s": control.inferences_per_s})
        self.budgets.inferences.rate = control.inferences_per_s

    async def work(self, topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> AsyncIterator[Emitted | Rejected]:
        """Answer the frames of one batch."""
        loop = asyncio.get_running_loop()
        sources: dict[str, list[_Taken]] = {}
        for index, record in enumerate(records):
            appended_ms = record.timestamp()[1]
            try:
                frame = self._read(record, appended_ms)
            except InvalidFrame as error:
                yield Rejected(index, error)
                continue
            look = loop.run_in_executor(self._pool, self._look, frame, appended_ms)
            sources.setdefault(frame.source, []).append(_Taken(index, frame, look, appended_ms))
        ready: asyncio.Queue[Emitted | Rejected | Exception] = asyncio.Queue(maxsize=256)
        tasks = [asyncio.ensure_future(self._finish(source, taken, ready)) for source, taken in sources.items()]
        try:
            missing = sum(map(len, sources.values()))
            while missing:
                item = await ready.get()
                if isinstance(item, Exception):
                    raise item
                missing -= 1 if isinstance(item, Rejected) or item.finished else 0
                yield item
        finally:
            for task in tasks:
                task.cancel()
            for taken in sources.values():
                for each in taken:
                    each.look.cancel()

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

    async def _finish(self, source: str, taken: list[_Taken], ready: asyncio.Queue[Emitted | Rejected | Exception]) -> None:
        """Finish one source's frames of a batch in their order, after those of earlier batches."""
        stale: list[_Taken] = []
        try:
            async with self._turns[source]:
                for each in taken:
                    try:
                        look = await each.look
                    except Stale:
                        stale.append(each)
                    except UndecodableImage as error:
                        await ready.put(Rejected(each.index, error, str(each.frame.id)))
                    else:
                        async for item in self._answer(each, look):
                            await ready.put(item)
                await self._explain(stale, ready)
        except Exception as error:  # noqa: BLE001 - handed to `work`, which raises it to delivery
            await ready.put(error)

    async def _explain(self, stale: list[_Taken], ready: asyncio.Queue[Emitted | Rejected | Exception]) -> None:
        """One drop record for the stale frames of each epoch; the frames count as finished with it."""
        by_stream: dict[tuple[str, str], list[_Taken]] = {}
        for each in stale:
            by_stream.setdefault((each.frame.id.source, each.frame.id.epoch), []).append(each)
        for (source, epoch), dropped in by_stream.items():
            ranges = Intervals((each.frame.id.sequence, each.frame.id.sequence) for each in dropped).to_ranges()
            drop = Drop(source=source, epoch=epoch, site=self.config.name, stage=STAGE, reason=STALE, ranges=ranges)
            telemetry.DROPPED.labels(STALE).inc(len(dropped))
            for each in dropped[:-1]:
                await ready.put(Emitted(each.index))
            await ready.put(Emitted(dropped[-1].index, (outputs.drop(self.drops, drop, self.now(), dropped[0].frame.source),)))

    async def _answer(self, taken: _Taken, look: Look) -> AsyncIterator[Emitted]:
        frame, trace = taken.frame, taken.frame.traceparent
        alerts = self.rules.judge(frame, look.detections)
        reason = self._ask(frame, look, alerts)
        if alerts:
            yield Emitted(taken.index, tuple(outputs.alert(self.alerts, alert, trace) for alert in alerts), finished=False)
            telemetry.ALERTS.labels("raised").inc(len(alerts))
        waits = reason is not None or (bool(alerts) and self.config.policy.mode != "off")
        verdict = self._verdict(frame, look, Status.PROVISIONAL if waits else Status.FINAL)
        more = reason is not None or bool(alerts)
        yield Emitted(taken.index, (outputs.answer(self.verdicts, verdict, trace),), finished=not more)
        telemetry.VERDICTS.labels(verdict.status).inc()
        if more:
            followers = [outputs.picture(self.pictures, alert.id, frame) for alert in alerts]
            if reason is not None:
                followers.append(await self._evidence(frame, verdict, reason, alerts))
            yield Emitted(taken.index, tuple(followers))
        telemetry.STAGE_SECONDS.labels("record").observe(self.clock.age_s(taken.appended_ms))

    def _ask(self, frame: Frame, look: Look, alerts: list[Alert]) -> Reason | None:
        """Why the region is asked, if the policy wants it and both budgets allow it; charges them."""
        reason = self.policy.reason(frame.source, look.detections, alerts)
        if reason is None:
            return None
        forbidding = self.budgets.forbids(reason, self.evidence_bytes)
        if forbidding is not None:
            telemetry.DECLINED.labels(forbidding).inc()
            return None
        self.budgets.inferences.spend(1.0)
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

    async def _evidence(self, frame: Frame, verdict: Verdict, reason: Reason, alerts: list[Alert]) -> Output:
        policy = self.config.policy
        start = time.perf_counter()
        evidence = await asyncio.get_running_loop().run_in_executor(
            self._pool, lambda: encode_frame(frame.jpeg, side=policy.evidence_side, quality=policy.evidence_quality)
        )
        telemetry.STAGE_SECONDS.labels("evidence").observe(time.perf_counter() - start)
        self.budgets.bytes.spend(len(evidence))
        self.evidence_bytes += 0.1 * (len(evidence) - self.evidence_bytes)
        telemetry.ESCALATIONS.labels(reason).inc()
        telemetry.ESCALATION_BYTES.inc(len(evidence))
        question = escalate(
            frame,
            evidence,
            verdict,
            reason=reason,
            deadline_ms=policy.deadline_ms,
            ttl_s=policy.ttl_s,
            alerts=tuple(alert.id for alert in alerts),
        )
        return outputs.escalation(self.escalations, question, evidence, frame.traceparent)


def confidence(detections: Detections) -> float:
    """How sure a frame's answer is: the mean of |2p - 1| over its detections' scores p, 1 where nothing was seen. Not calibrated."""
    if not detections:
        return 1.0
    return round(sum(abs(2 * d.score - 1) for d in detections) / len(detections), 4)
