"""The resolver: joins verdicts into results and lets alerts follow the joined result of their own frame. The join itself is pure
(`schemas.resolution`); this is its memory, its deadlines, and the topics it reads and writes. One runs at the leaf, one at the region.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Sequence

import msgspec

from agents.memory import Memory
from schemas.config import SiteConfig
from schemas.envelope import Envelope, InvalidEnvelope
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

    # ---- partitions come and go; called in the consumer's thread, before and after their records

    def restore(self, places: Iterable[tuple[str, int]]) -> None:
        """Read back what was written of the partitions that came, so that no replay is new to us.

        None of their records is in work meanwhile. A memory is handed over as a whole, so that the event loop never sees half of one.
        """
        partitions = {partition for _, partition in places}
        fresh = {partition: self._memory() for partition in partitions}
        count = 0
        for message in to_end(self.clients, [(topic.name, partition) for topic in (self.results, self.alerts) for partition in partitions]):
            count += 1
            memory, value = fresh[message.partition()], message.value()
            if value is None:
                continue
            try:
                if message.topic() == self.alerts.name:
                    memory.alert(Alert.from_bytes(value))
                else:
                    memory.learn(Result.from_bytes(value), message.timestamp()[1])
            except InvalidRecord as error:  # only we write there: an older version's value; it is joined anew if its verdicts come again
                log.warning("a result could not be read back: %s", error, extra={"topic": message.topic(), "offset": message.offset()})
        self._memories.update(fresh)
        log.info(
            "memory restored",
            extra={"partitions": len(partitions), "records": count, "open": sum(memory.open for memory in fresh.values())},
        )

    def forget(self, places: Iterable[tuple[str, int]]) -> None:
        for _, partition in places:
            self._memories.pop(partition, None)

    def _memory(self) -> Memory:
        return Memory(keep_s=2 * self.config.topics.outbox_retention_s)  # a record may be a dead letter and then be replayed

    # ---- the work

    async def work(self, topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> AsyncIterator[Emitted | Rejected]:
        """Join the verdicts and alerts of one batch."""
        memory = self._memories.get(partition)
        if memory is None:
            memory = self._memories[partition] = self._memory()
        for index, record in enumerate(records):
            try:
                if topic.value == "Alert":
                    found = self._alert(memory, self._placed(Alert.from_bytes(record.value()), topic), topic)
                else:
                    found = self._verdict(memory, self._trusted(Verdict.from_bytes(record.value()), topic), record)
            except (InvalidRecord, InvalidEnvelope) as error:
                yield Rejected(index, error)
                continue
            yield Emitted(index, tuple(found))

    def _trusted(self, verdict: Verdict, topic: Topic) -> Verdict:
        tier = _TIERS[topic.base]
        site = topic.site or self.config.name
        if tier is Tier.REGION:
            site = self.config.link.region_name if self.config.link is not None else self.config.name
        return clamp(verdict, tier, site)

    def _placed(self, alert: Alert, topic: Topic) -> Alert:
        if topic.site in (None, alert.site):
            return alert
        return msgspec.structs.replace(alert, site=topic.site)

    def _verdict(self, memory: Memory, verdict: Verdict, record: KafkaRecord) -> list[Output]:
        """What a verdict changes. Nothing is remembered before all of it could be made: what fails is tried again as if it were new."""
        joined = memory.improved(result_of(verdict))
        if joined is None:
            return []
        head = Envelope.from_headers(record.headers())
        later = [alert for known in memory.alerts_of(joined.id) if (alert := judge(known, joined)) is not None]
        found = [outputs.answer(self.results, joined, head.traceparent if head is not None else None), *map(self._write, later)]
        memory.keep(joined, record.timestamp()[1])
        for alert in later:
            memory.alert(alert)
        telemetry.RESULTS.labels(joined.tier).inc()
        return found

    def _alert(self, memory: Memory, alert: Alert, topic: Topic) -> list[Output]:
        if memory.alert(alert) is None:
            return []
        found = [alert] if topic.name != self.alerts.name else []  # the region keeps every site's alerts in one topic of its own
        result = memory.result(alert.record)
        later = None if result is None else judge(alert, result)
        if later is not None and memory.alert(later) is not None:
            found.append(later)
        return [*map(self._write, found)]

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
