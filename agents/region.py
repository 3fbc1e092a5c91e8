"""The region: judges the evidence that leaves sent, with a better model, and writes its verdicts once, for the leaf that asked.

Site and tier come from the topic's name, never from the payload: a site cannot speak for another. A verdict is a pure function of the
evidence's bytes, whose digest travels with it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from agents.alerts import OnlySeen
from agents.inference.detector import Detector, Look
from agents.inference.images import UndecodableImage
from agents.leaf import confidence
from schemas.alerts import lateness_s
from schemas.config import SiteConfig
from schemas.detections import Detections
from schemas.envelope import Envelope, InvalidEnvelope, waited_ms
from schemas.identity import RecordId, content_digest
from schemas.messages import RANK, Alert, Asked, Control, Escalation, Status, Tier, Verdict
from schemas.records import InvalidRecord
from schemas.replays import read_replay
from streams import outputs, telemetry
from streams.delivery import Emitted, Rejected
from streams.message import KafkaRecord
from streams.outputs import escalation_of
from streams.sink import BrokerClock, Output
from streams.topology import RoleView, Topic

Place = tuple[str, int, int]  # topic, partition, offset

ANSWERED = 20_000  # questions that are known again


class InvalidEvidence(ValueError):
    """Evidence that cannot be judged: empty, not what its digest says, or of another source."""


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

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def work(self, topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> AsyncIterator[Emitted | Rejected]:
        """Judge the escalations of one batch, each as soon as it is judged. One that fails holds nothing up: its error is raised when all
        others are answered."""
        tasks = {asyncio.ensure_future(self._judge(topic, index, record)) for index, record in enumerate(records)}
        failure: Exception | None = None
        try:
            for task in asyncio.as_completed(tasks):
                try:
                    item = await task
                except Exception as error:  # noqa: BLE001 - raised to delivery below
                    failure = failure or error
                else:
                    yield item
        finally:
            for left in tasks:
                left.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if failure is not None:
            raise failure

    async def _judge(self, topic: Topic, index: int, record: KafkaRecord) -> Emitted | Rejected:
        try:
            head = Envelope.from_headers(record.headers())
            asked = escalation_of(record.headers())
            evidence = check_evidence(record.value(), asked)
        except (InvalidRecord, InvalidEnvelope, InvalidEvidence) as error:
            return Rejected(index, error)
        # Links repeat what they are not certain of; the same record comes again only if its answer could not be written.
        question = topic.site or asked.site, asked.id, asked.evidence
        place = record.topic(), record.partition(), record.offset()
        if self._answered.get(question, place) != place and not read_replay(record.headers()).count:
            telemetry.REPEATED.inc()
            return Emitted(index)
        try:
            look = await asyncio.get_running_loop().run_in_executor(self._pool, self._look, evidence)
        except UndecodableImage as error:
            return Rejected(index, error, asked.id)
        self._answered[question] = place
        if len(self._answered) > ANSWERED:
            self._answered.popitem(last=False)
        target = self.role.write("down.verdicts", topic.site)
        trace = head.traceparent if head is not None else None
        answers = tuple(outputs.answer(target, self._verdict(asked, each, look), trace) for each in asked.records)
        telemetry.VERDICTS.labels(Status.FINAL).inc(len(answers))
        age_s = self.clock.age_s(record.timestamp()[1]) if self.clock is not None else 0.0
        late_by_s = lateness_s(age_s + waited_ms(head, record.timestamp()[1]) / 1000, replayed=read_replay(record.headers()).count > 0)
        alerts = [outputs.alert(self.alerts, alert, trace) for alert in self._alerts(asked, look, topic.site or asked.site, late_by_s)]
        telemetry.ALERTS.labels("raised").inc(len(alerts))
        return Emitted(index, (*answers, *alerts))

    def _alerts(self, asked: Escalation, look: Look, site: str, late_by_s: float) -> Iterator[Alert]:
        """What only the region sees. Evidence of several records says nothing of each: none of them is judged so."""
        if len(asked.records) == 1:
            (record,) = asked.records
            leaf = Detections.from_json(record.detections)
            yield from self.only_seen.judge(
                record.id, asked.source, site, record.captured_at, leaf=leaf, seen=look.detections, late_by_s=late_by_s
            )

    def _look(self, evidence: bytes) -> Look:
        look = self.detector.look(evidence)
        telemetry.observe_stages({**look.stages._asdict(), "look": look.stages.total_s})
        return look

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


def check_evidence(value: bytes | None, asked: Escalation) -> bytes:
    """The evidence of an escalation, if it is what its digest says, and its records belong to its source; raises `InvalidEvidence`."""
    if not value:
        raise InvalidEvidence(f"escalation {asked.id} has no evidence: its value is empty")
    if (found := content_digest(value)) != asked.evidence:
        raise InvalidEvidence(f"escalation {asked.id}: the evidence has digest {found[:16]}…, its header says {asked.evidence[:16]}…")
    for record in asked.records:
        name = RecordId.parse(record.id)
        if not name.foreign and name.source != asked.source:
            raise InvalidEvidence(f"escalation {asked.id} of source {asked.source} asks about {record.id}, which is another's")
    return value
