"""The resolver: joins verdicts into results and lets alerts follow the joined result of their own frame. The join itself is pure
(`schemas.resolution`, `schemas.alerts`); this is its deadlines, and the topics it reads and writes. It runs at the leaf and at the region.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence

import msgspec

from agents.memory import Memory
from agents.snapshots import Snapshots
from schemas.alerts import join_alerts, judge, lateness_s, unasked
from schemas.config import SiteConfig
from schemas.envelope import Envelope, InvalidEnvelope, waited_ms
from schemas.identity import InvalidIdentity
from schemas.messages import Alert, AlertState, Answer, Result, Status, Tier, Verdict
from schemas.records import InvalidRecord
from schemas.replays import read_replay
from schemas.resolution import clamp, result_of, unanswered
from streams import outputs, telemetry
from streams.clients import Clients
from streams.delivery import Emitted, Rejected
from streams.message import KafkaRecord
from streams.sink import Output
from streams.topology import RoleView, Topic

log = logging.getLogger("headwater.resolver")

# Whose verdicts each topic carries: tier and site come from the topic, whatever the payload claims.
_TIERS = {"verdicts": Tier.LEAF, "region.verdicts": Tier.REGION, "up.verdicts": Tier.LEAF, "down.verdicts": Tier.REGION}


class Resolver:
    """The work of the resolver, for `streams.delivery.Delivery`; its memory is kept by partition, since all that concerns a source lives
    in one partition of every topic it reads.

    `grown` counts the results and alerts of each partition that a restart would have to read beyond the last snapshot.
    """

    def __init__(self, config: SiteConfig, role: RoleView, clients: Clients) -> None:
        self.config, self.clients = config, clients
        self.results, self.alerts, self.gathered = role.write("results"), role.write("alerts"), role.write("incidents.alerts")
        self.verdicts = role.write("verdicts") if config.tier_name is Tier.LEAF else None
        self.asks = config.link is not None and config.policy.mode != "off"
        self.snapshots = Snapshots(clients, self.results, self.alerts, role.write("resolver.memory"), self._memory, config.name)
        self.grown: dict[int, int] = {}
        self._memories: dict[int, Memory] = {}
        self._turns: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    # ---- partitions come and go; called in the consumer's thread, before and after their records

    def restore(self, places: Iterable[tuple[str, int]]) -> None:
        """Read back what was written of the partitions that came, so that no replay is new to us.

        None of their records is in work meanwhile. A memory is handed over as a whole, so that the event loop never sees half of one.
        """
        restored = self.snapshots.restore({partition for _, partition in places})
        self._memories.update({partition: taken.memory for partition, taken in restored.items()})
        self.grown.update({partition: taken.records for partition, taken in restored.items()})
        log.info(
            "memory restored",
            extra={
                "partitions": len(restored),
                "records": sum(taken.records for taken in restored.values()),
                "snapshots": sum(not taken.fresh for taken in restored.values()),
                "open": sum(taken.memory.open for taken in restored.values()),
            },
        )

    def forget(self, places: Iterable[tuple[str, int]]) -> None:
        for _, partition in places:
            self._memories.pop(partition, None)
            self.grown.pop(partition, None)

    def _memory(self) -> Memory:
        return Memory(keep_s=self.results.retention_s)  # which outlives every input (`streams/laws.py`)

    # ---- the work

    async def work(self, topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> AsyncIterator[Emitted | Rejected]:
        """Join the verdicts and alerts of one batch. Of two batches of one partition one waits for the other: what is better must also be
        written later, since compaction keeps what came last."""
        memory = self._memories.get(partition)
        if memory is None:
            memory = self._memories[partition] = self._memory()
        async with self._turns[partition]:
            for index, record in enumerate(records):
                try:
                    if topic.value == "Alert":
                        found = self._alert(memory, partition, self._placed(Alert.from_bytes(record.value()), topic, record), topic)
                    else:
                        found = self._verdict(memory, partition, self._trusted(Verdict.from_bytes(record.value()), topic), record)
                except (InvalidRecord, InvalidEnvelope, InvalidIdentity) as error:
                    yield Rejected(index, error)
                    continue
                yield Emitted(index, tuple(found))

    def _trusted(self, verdict: Verdict, topic: Topic) -> Verdict:
        tier = _TIERS[topic.base]
        site = topic.site or self.config.name
        if tier is Tier.REGION:
            site = self.config.link.region_name if self.config.link is not None else self.config.name
        return clamp(verdict, tier, site)

    def _placed(self, alert: Alert, topic: Topic, record: KafkaRecord) -> Alert:
        """An alert as its topic allows it: its site is the topic's, what waited for the link is that much later, and what a replay has
        brought is old news. One that is replayed where it was written has been read there in time."""
        if topic.site is None:
            return alert
        if topic.site != alert.site or alert.raised_by is not Tier.LEAF:
            alert = msgspec.structs.replace(alert, site=topic.site, raised_by=Tier.LEAF)
        waited = waited_ms(Envelope.from_headers(record.headers()), record.timestamp()[1])
        replayed = read_replay(record.headers()).count > 0
        return msgspec.structs.replace(alert, late_by_s=lateness_s(alert.late_by_s + waited / 1000, replayed=replayed))

    def _verdict(self, memory: Memory, partition: int, verdict: Verdict, record: KafkaRecord) -> list[Output]:
        """What a verdict changes. Nothing is remembered before all of it could be made: what fails is tried again as if it were new."""
        joined = memory.improved(result_of(verdict))
        if joined is None:
            return []
        head = Envelope.from_headers(record.headers())
        later = [alert for known in memory.alerts_of(joined.id) if (alert := self._judged(known, joined)) is not None]
        found = [outputs.answer(self.results, joined, head.traceparent if head is not None else None), *map(self._write, later)]
        memory.keep(joined, record.timestamp()[1])
        for alert in later:
            memory.keep_alert(alert)
        self._count(partition, len(found))
        telemetry.RESULTS.labels(joined.tier).inc()
        return found

    def _alert(self, memory: Memory, partition: int, alert: Alert, topic: Topic) -> list[Output]:
        """What a message of an alert changes. One that was known before is still judged and passed on: it may be read again because that
        was not done, and a restored memory knows alerts that were not yet in work. As above, nothing is remembered too early."""
        known = memory.alert(alert.id)
        joined = join_alerts(known, alert)
        result = memory.result(alert.record)
        judged = joined if result is None else self._judged(joined, result) or joined
        if result is None and judged.state is AlertState.RAISED and self.asks and memory.is_final(alert.record):
            judged = unasked(judged)
        there = (known, alert) if topic.name == self.alerts.name else (known,)  # already in the topic: the region keeps all sites' in one
        new = [each for each in dict.fromkeys((joined, judged)) if each not in there]
        found = [self._write(each) for each in new]
        if topic.name == self.alerts.name:
            found.append(outputs.placed(self.gathered, judged, self.config.place_of(judged.rule, judged.source)))
        memory.keep_alert(judged)
        self._count(partition, len(new))
        return found

    def _judged(self, alert: Alert, result: Result) -> Alert | None:
        """The alert as its frame's result decides it, or None if that changes nothing. Where a region is asked about alerts, a leaf's
        result that waits for nobody means that it was not: so the alert stays unreviewed."""
        found = judge(alert, result)
        if found is None and alert.state is AlertState.RAISED and self.asks and result.status in (Status.FINAL, Status.UNANSWERED):
            return unasked(alert)
        return found

    def _count(self, partition: int, written: int) -> None:
        self.grown[partition] = self.grown.get(partition, 0) + written

    def _write(self, alert: Alert) -> Output:
        telemetry.ALERTS.labels(alert.state).inc()
        return outputs.alert(self.alerts, alert)

    # ---- deadlines

    def overdue(self, now_ms: float) -> list[Output]:
        """The verdicts `unanswered` of the records whose deadline has passed by broker time and that nobody has answered."""
        found: list[Output] = []
        for memory in list(self._memories.values()):
            for result in memory.overdue(now_ms):
                if self.verdicts is not None:
                    found.append(outputs.answer(self.verdicts, unanswered(_as_verdict(result))))
                    telemetry.VERDICTS.labels(Status.UNANSWERED).inc()
        return found


def _as_verdict(result: Result) -> Verdict:
    return Verdict(**{name: getattr(result, name) for name in Answer.__struct_fields__})
