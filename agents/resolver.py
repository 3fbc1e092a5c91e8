"""The resolver: joins verdicts into results and lets alerts follow the joined result of their own frame. The join itself is pure
(`schemas.resolution`); this is its memory, its deadlines, and the topics it reads and writes. One runs at the leaf, one at the region.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

from agents.memory import Memory
from schemas.config import SiteConfig
from schemas.messages import Alert, Answer, Result, Status, Tier, Verdict
from schemas.records import InvalidRecord
from schemas.resolution import clamp, judge, result_of, unanswered
from streams import outputs, telemetry
from streams.clients import Clients
from streams.delivery import Emitted, Rejected
from streams.message import KafkaRecord
from streams.restore import to_end
from streams.sink import Output
from streams.topology import RoleView, Topic

log = logging.getLogger("headwater.resolver")

# Whose verdicts each topic carries: tier and site come from the topic, whatever the payload claims.
_TIERS = {"verdicts": Tier.LEAF, "region.verdicts": Tier.REGION, "up.verdicts": Tier.LEAF, "down.verdicts": Tier.REGION}


class Resolver:
    """The work of the resolver, for `streams.delivery.Delivery`; its memory is kept by partition, since all that concerns a source lives
    in one partition of every topic it reads."""

    def __init__(self, config: SiteConfig, role: RoleView, clients: Clients) -> None:
        self.config, self.clients = config, clients
        self.results, self.alerts = role.write("results"), role.write("alerts")
        self.verdicts = role.write("verdicts") if config.tier_name is Tier.LEAF else None
        self._memories: dict[int, Memory] = {}
        self._due: list[tuple[float, int, str]] = []  # (broker time in ms, partition, record)

    # ---- partitions come and go; called in the consumer's thread, before and after their records

    def restore(self, places: Iterable[tuple[str, int]]) -> None:
        """Read back what was written of the partitions that came, so that no replay is new to us."""
        partitions = {partition for _, partition in places}
        fresh = {partition: Memory() for partition in partitions}
        due: list[tuple[float, int, str]] = []
        count = 0
        for message in to_end(self.clients, [(topic.name, partition) for topic in (self.results, self.alerts) for partition in partitions]):
            count += 1
            memory, value = fresh[message.partition()], message.value()
            if value is None:
                continue
            try:
                if message.topic() == self.alerts.name:
                    memory.alert(Alert.from_bytes(value))
                elif (joined := memory.learn(Result.from_bytes(value))) is not None and joined.deadline_ms is not None:
                    due.append((message.timestamp()[1] + joined.deadline_ms, message.partition(), joined.id))
            except InvalidRecord as error:  # only we write there: an older version's value; it is joined anew if its verdicts come again
                log.warning("a result could not be read back: %s", error, extra={"topic": message.topic(), "offset": message.offset()})
        self._memories.update(fresh)
        self._due = [item for item in self._due if item[1] not in partitions] + due
        heapq.heapify(self._due)
        log.info("memory restored", extra={"partitions": len(partitions), "records": count, "open": len(due)})

    def forget(self, places: Iterable[tuple[str, int]]) -> None:
        for _, partition in places:
            self._memories.pop(partition, None)

    # ---- the work

    async def work(self, topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> AsyncIterator[Emitted | Rejected]:
        """Join the verdicts and alerts of one batch."""
        memory = self._memories.setdefault(partition, Memory())
        for index, record in enumerate(records):
            try:
                if topic.value == "Alert":
                    found = list(self._alert(memory, Alert.from_bytes(record.value() or b""), topic))
                else:
                    verdict = self._trusted(Verdict.from_bytes(record.value() or b""), topic)
                    found = list(self._verdict(memory, verdict, partition, record))
            except InvalidRecord as error:
                yield Rejected(index, error)
                continue
            yield Emitted(index, tuple(found))

    def _trusted(self, verdict: Verdict, topic: Topic) -> Verdict:
        tier = _TIERS[topic.base]
        site = topic.site or self.config.name
        if tier is Tier.REGION:
            site = self.config.link.region_name if self.config.link is not None else self.config.name
        return clamp(verdict, tier, site)

    def _verdict(self, memory: Memory, verdict: Verdict, partition: int, record: KafkaRecord) -> Iterator[Output]:
        joined = memory.learn(result_of(verdict))
        if joined is None:
            return
        trace = dict(record.headers() or ()).get("ce_traceparent")
        telemetry.RESULTS.labels(joined.tier).inc()
        yield outputs.answer(self.results, joined, trace.decode() if trace else None)
        if joined.deadline_ms is not None:
            heapq.heappush(self._due, (record.timestamp()[1] + joined.deadline_ms, partition, joined.id))
        for alert in memory.alerts_of(joined.id):
            yield from self._judged(memory, alert, joined)

    def _alert(self, memory: Memory, alert: Alert, topic: Topic) -> Iterator[Output]:
        if memory.alert(alert) is None:
            return
        if topic.name != self.alerts.name:  # the region keeps every site's alerts in one topic of its own
            yield self._write(alert)
        result = memory.result(alert.record)
        if result is not None:
            yield from self._judged(memory, alert, result)

    def _judged(self, memory: Memory, alert: Alert, result: Result) -> Iterator[Output]:
        later = judge(alert, result)
        if later is not None and memory.alert(later) is not None:
            yield self._write(later)

    def _write(self, alert: Alert) -> Output:
        telemetry.ALERTS.labels(alert.state).inc()
        return outputs.alert(self.alerts, alert)

    # ---- deadlines

    def overdue(self, now_ms: float) -> list[Output]:
        """The verdicts `unanswered` of the records whose deadline has passed by broker time and that nobody has answered."""
        found: list[Output] = []
        while self._due and self._due[0][0] <= now_ms:
            _, partition, record = heapq.heappop(self._due)
            memory = self._memories.get(partition)
            result = None if memory is None else memory.result(record)
            if self.verdicts is not None and result is not None and result.status is Status.PROVISIONAL:
                found.append(outputs.answer(self.verdicts, unanswered(_as_verdict(result))))
                telemetry.VERDICTS.labels(Status.UNANSWERED).inc()
        return found


def _as_verdict(result: Result) -> Verdict:
    return Verdict(**{name: getattr(result, name) for name in Answer.__struct_fields__})
