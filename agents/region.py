"""The region: judges the evidence that leaves sent, with a better model, and writes its verdicts once, for the leaf that asked.

Site and tier come from the topic's name, never from the payload: a site cannot speak for another. A verdict is a pure function of the
evidence's bytes, whose digest travels with it, and of the frame's place in them if it is a clip.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec

from agents.alerts import OnlySeen
from agents.cascade.evidence.annexb import InvalidClip
from agents.cascade.evidence.clip import NoPyAV, pyav
from agents.cascade.evidence.playback import pictures
from agents.inference.detector import Detector, Look
from agents.inference.images import UndecodableImage
from agents.inference.tensors import Pixels
from agents.leaf import confidence
from schemas.alerts import lateness_s
from schemas.config import SiteConfig
from schemas.detections import Detections
from schemas.envelope import JPEG, Envelope, InvalidEnvelope, waited_ms
from schemas.identity import RecordId, content_digest
from schemas.messages import CLIP, RANK, Alert, Asked, Control, Escalation, Status, Tier, Verdict
from schemas.records import InvalidRecord
from schemas.replays import read_replay
from streams import outputs, telemetry
from streams.delivery import Emitted, Rejected
from streams.message import KafkaRecord
from streams.outputs import escalation_of
from streams.sink import BrokerClock, Output
from streams.topology import RoleView, Topic

log = logging.getLogger("headwater.region")

Place = tuple[str, int, int]  # topic, partition, offset

ANSWERED = 20_000  # questions that are known again


class InvalidEvidence(ValueError):
    """Evidence that cannot be judged: empty, not what its digest says, of another source, or of a kind that is not known here."""


class _Failed(msgspec.Struct, frozen=True):
    """A record whose work raised an unexpected error; it is not finished."""

    error: Exception


class Region:
    """The work of the region agent, for `streams.delivery.Delivery`. With the broker's `clock` the alerts that it raises tell how long
    their evidence waited here; without it only how long it waited at the leaf."""

    def __init__(self, config: SiteConfig, role: RoleView, detector: Detector, clock: BrokerClock | None = None) -> None:
        self.config, self.role, self.detector, self.clock = config, role, detector, clock
        self.alerts = role.write("alerts")
        self.only_seen = OnlySeen(config.rules, tier=Tier.REGION, model_digest=detector.digest)
        self.name = config.detector.name or detector.name
        self._pool = ThreadPoolExecutor(config.engine.workers, thread_name_prefix="look")
        self._answered: OrderedDict[tuple[str, str, str], Place] = OrderedDict()  # by site, question and evidence: what it came with
        try:
            pyav()
        except NoPyAV as error:
            log.warning("clips that leaves send will become dead letters: %s", error)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def work(self, topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> AsyncIterator[Emitted | Rejected]:
        """Judge the escalations of one batch, each as soon as it is judged, and each frame of a clip. One that fails holds nothing up: its
        error is raised when all others are answered."""
        ready: asyncio.Queue[Emitted | Rejected | _Failed] = asyncio.Queue()
        one_clip = asyncio.Semaphore()  # clips one after the other, so that the first is answered soon; single frames go in between

        async def judge(index: int, record: KafkaRecord) -> None:
            try:
                async for item in self._judge(topic, index, record, one_clip):
                    ready.put_nowait(item)
            except Exception as error:  # noqa: BLE001 - raised to delivery below
                ready.put_nowait(_Failed(error))

        tasks = [asyncio.ensure_future(judge(index, record)) for index, record in enumerate(records)]
        failure: Exception | None = None
        left = len(records)
        try:
            while left:
                item = await ready.get()
                if isinstance(item, _Failed):
                    failure = failure or item.error
                    left -= 1
                    continue
                left -= isinstance(item, Rejected) or item.finished
                yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if failure is not None:
            raise failure

    async def _judge(self, topic: Topic, index: int, record: KafkaRecord, one_clip: asyncio.Semaphore) -> AsyncIterator[Emitted | Rejected]:
        try:
            head = Envelope.from_headers(record.headers())
            asked = escalation_of(record.headers())
            evidence = check_evidence(record.value(), asked)
        except (InvalidRecord, InvalidEnvelope, InvalidEvidence) as error:
            yield Rejected(index, error)
            return
        # Links repeat what they are not certain of; the same record comes again only if its answer could not be written.
        question = topic.site or asked.site, asked.id, asked.evidence
        place = record.topic(), record.partition(), record.offset()
        if self._answered.get(question, place) != place and not read_replay(record.headers()).count:
            telemetry.REPEATED.inc()
            yield Emitted(index)
            return
        trace = head.traceparent if head is not None else None
        waited_s = waited_ms(head, record.timestamp()[1]) / 1000
        try:
            if asked.content_type == CLIP:
                async with one_clip:
                    frames = pictures(evidence, len(asked.records))
                    for each in asked.records:
                        look = await self._in_pool(partial(self._look_at_next, frames))
                        if last := each is asked.records[-1]:
                            self._remember(question, place)
                        yield Emitted(index, self._outputs(topic, record, asked, (each,), look, trace, waited_s), finished=last)
            else:
                look = await self._in_pool(partial(self._look, evidence))
                self._remember(question, place)
                yield Emitted(index, self._outputs(topic, record, asked, asked.records, look, trace, waited_s))
        except (UndecodableImage, InvalidClip, NoPyAV) as error:
            yield Rejected(index, error, asked.id)

    def _remember(self, question: tuple[str, str, str], place: Place) -> None:
        self._answered[question] = place
        if len(self._answered) > ANSWERED:
            self._answered.popitem(last=False)

    def _outputs(
        self, topic: Topic, record: KafkaRecord, asked: Escalation, records: Sequence[Asked], look: Look, trace: str | None, waited_s: float
    ) -> tuple[Output, ...]:
        """The verdicts on what one look was about, and the alerts that it raises."""
        target = self.role.write("down.verdicts", topic.site)
        answers = tuple(outputs.answer(target, self._verdict(asked, each, look), trace) for each in records)
        telemetry.VERDICTS.labels(Status.FINAL).inc(len(answers))
        age_s = self.clock.age_s(record.timestamp()[1]) if self.clock is not None else 0.0
        late_by_s = lateness_s(age_s + waited_s, replayed=read_replay(record.headers()).count > 0)
        found = self._alerts(asked, records, look, topic.site or asked.site, late_by_s)
        alerts = tuple(outputs.alert(self.alerts, alert, trace) for alert in found)
        telemetry.ALERTS.labels("raised").inc(len(alerts))
        return answers + alerts

    def _alerts(self, asked: Escalation, records: Sequence[Asked], look: Look, site: str, late_by_s: float) -> Iterator[Alert]:
        """What only the region sees. One look for several records says nothing of each: none of them is judged so."""
        if len(records) == 1:
            (record,) = records
            leaf = Detections.from_json(record.detections)
            yield from self.only_seen.judge(
                record.id, asked.source, site, record.captured_at, leaf=leaf, seen=look.detections, late_by_s=late_by_s
            )

    async def _in_pool(self, look: Callable[[], Look]) -> Look:
        return await asyncio.get_running_loop().run_in_executor(self._pool, look)

    def _look(self, evidence: bytes) -> Look:
        return _observed(self.detector.look(evidence))

    def _look_at_next(self, frames: Iterator[Pixels]) -> Look:
        """Decoding is the pool's too, and a clip's next frame waits undecoded for its look."""
        return _observed(self.detector.look_at(next(frames)))

    def _verdict(self, asked: Escalation, record: Asked, look: Look) -> Verdict:
        return Verdict(
            id=record.id,
            source=asked.source,
            captured_at=record.captured_at,
            status=Status.FINAL,
            detections=look.detections,
            confidence=confidence(look.detections),
            tier=Tier.REGION,
            site=self.config.name,
            rank=RANK[Tier.REGION],
            generation=self.config.detector.generation,
            model=self.name,
            model_digest=self.detector.digest,
            evidence=asked.evidence,
        )

    def announcements(self, now: dt.datetime) -> list[Output]:
        """The region's capacity, for every site: an equal share each."""
        sites = self.config.region.sites
        share = self.config.region.inferences_per_s / len(sites)
        side = max(self.config.detector.sizes)
        return [
            outputs.control(
                self.role.write("down.control", site),
                Control(site=site, region=self.config.name, inferences_per_s=share, input_side=side),
                now,
            )
            for site in sites
        ]


def _observed(look: Look) -> Look:
    telemetry.observe_stages({**look.stages._asdict(), "look": look.stages.total_s})
    return look


def check_evidence(value: bytes | None, asked: Escalation) -> bytes:
    """The evidence of an escalation, if it is what its digest says, of a kind that is known here, and its records belong to its source;
    raises `InvalidEvidence`."""
    if asked.content_type not in (JPEG, CLIP):
        raise InvalidEvidence(f"escalation {asked.id} brings {asked.content_type!r:.80}: expected {JPEG} or {CLIP}")
    if not value:
        raise InvalidEvidence(f"escalation {asked.id} has no evidence: its value is empty")
    if (found := content_digest(value)) != asked.evidence:
        raise InvalidEvidence(f"escalation {asked.id}: the evidence has digest {found[:16]}…, its header says {asked.evidence[:16]}…")
    for record in asked.records:
        name = RecordId.parse(record.id)
        if not name.foreign and name.source != asked.source:
            raise InvalidEvidence(f"escalation {asked.id} of source {asked.source} asks about {record.id}, which is another's")
    return value
