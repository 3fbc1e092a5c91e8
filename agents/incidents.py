"""The joiner of incidents: a worker of the resolver that reads the alerts of its places and writes the incidents that they make.

Alerts lie by source, and cameras that see one place may lie in different partitions; so the resolver passes each alert on to
`incidents.alerts`, which is divided by place, and all that can be one incident meets in one worker. What an incident is, is pure
(`schemas.incidents`); here is which alerts are known, and what of them was written.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence

import msgspec

from schemas.alerts import join_alerts
from schemas.config import SiteConfig
from schemas.incidents import Incident, events, incident_id, incident_of, merged
from schemas.messages import Alert
from schemas.records import InvalidRecord
from streams import outputs
from streams.clients import Clients
from streams.delivery import Emitted, Rejected
from streams.message import KafkaRecord
from streams.restore import batches_to_end
from streams.topology import RoleView, Topic

log = logging.getLogger("headwater.incidents")

ALERTS = 10_000  # of a partition; beyond it the oldest incidents are left as they are

Group = tuple[str, str]  # rule and place


class _Written(msgspec.Struct, frozen=True):
    """Of an incident as it was last written: its group, a digest of it, and whether it has become a part of another."""

    group: Group
    digest: bytes
    merged: bool


class Gathered:
    """The alerts of one partition and the incidents that they make. Pure but for what it remembers.

    Parameters
    ----------
    config
        Says which place a source belongs to, and how far apart the alerts of one incident may lie.
    limit
        How many alerts are kept. Beyond it whole incidents are forgotten, those that ended first; an alert of one that comes later still
        begins a new one.
    """

    def __init__(self, config: SiteConfig, limit: int = ALERTS) -> None:
        self.config, self.limit = config, limit
        self._groups: dict[Group, dict[str, Alert]] = {}
        self._written: dict[str, _Written] = {}
        self._count = 0

    def take(self, alerts: Iterable[Alert]) -> set[Group]:
        """Join alerts in; returns the rules and places that they are of."""
        touched = set()
        for alert in alerts:
            group = (alert.rule, self.config.place_of(alert.rule, alert.source))
            known = self._groups.setdefault(group, {})
            self._count += alert.id not in known
            known[alert.id] = join_alerts(known.get(alert.id), alert)
            touched.add(group)
        return touched

    def note(self, incident: Incident) -> None:
        """Take in an incident as it was written before this process began."""
        self._written[incident.id] = _noted(incident)

    def changed(self, touched: Iterable[Group]) -> list[Incident]:
        """What is to be written of some rules and places: incidents that are new or differ from what was written, then those that have
        become a part of another one. Remembers nothing: `wrote` does, once it is certain to be written."""
        found: list[Incident] = []
        gone: list[Incident] = []
        for group in sorted(touched):
            into: dict[str, Incident] = {}
            live = set()
            for event in events(self._groups.get(group, {}).values(), self.config.incidents.gap_s):
                told = incident_of(event, group[1])
                live.add(told.id)
                into |= {incident_id(alert.id): told for alert in event}
                known = self._written.get(told.id)
                if known is None or known.merged or known.digest != _digest(told):
                    found.append(told)
            for name, known in self._written.items():
                if known.group == group and not known.merged and name not in live and name in into:
                    gone.append(merged(msgspec.structs.replace(into[name], id=name), into[name].id))
        return found + gone

    def wrote(self, incidents: Iterable[Incident]) -> None:
        """Remember what `changed` returned."""
        for incident in incidents:
            self.note(incident)
        self._bound()

    def _bound(self) -> None:
        """Forget the incidents that ended first, a tenth of what is kept at a time."""
        if self._count <= self.limit:
            return
        gap_s = self.config.incidents.gap_s
        known = [(group, event) for group, alerts in self._groups.items() for event in events(alerts.values(), gap_s)]
        for group, event in sorted(known, key=lambda item: item[1][-1].captured_at):
            if self._count <= self.limit * 9 // 10:
                break
            for alert in event:
                del self._groups[group][alert.id]
                self._written.pop(incident_id(alert.id), None)
            self._count -= len(event)
            if not self._groups[group]:
                del self._groups[group]


class Incidents:
    """The work of joining incidents, for `streams.delivery.Delivery`, beside the resolver's and with its partitions."""

    def __init__(self, config: SiteConfig, role: RoleView, clients: Clients) -> None:
        self.config, self.clients = config, clients
        self.alerts, self.incidents = role.read("incidents.alerts"), role.write("incidents")
        self._gathered: dict[int, Gathered] = {}
        self._turns: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    def restore(self, places: Iterable[tuple[str, int]]) -> None:
        """Read back the alerts and incidents of the partitions that came. Called in the consumer's thread; nothing is in work meanwhile."""
        partitions = {partition for _, partition in places}
        fresh = {partition: Gathered(self.config) for partition in partitions}
        topics = (self.alerts, self.incidents)
        for batch in batches_to_end(self.clients, [(topic.name, partition) for topic in topics for partition in partitions]):
            for record in batch:
                if record.value() is None:
                    continue
                try:
                    if record.topic() == self.alerts.name:
                        fresh[record.partition()].take([Alert.from_bytes(record.value())])
                    else:
                        fresh[record.partition()].note(Incident.from_bytes(record.value()))
                except InvalidRecord as error:  # only we write there: an older version's value
                    log.warning("it could not be read back: %s", error, extra={"topic": record.topic(), "offset": record.offset()})
        for gathered in fresh.values():
            gathered.wrote(())
        self._gathered.update(fresh)

    def forget(self, places: Iterable[tuple[str, int]]) -> None:
        for _, partition in places:
            self._gathered.pop(partition, None)

    async def work(self, topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> AsyncIterator[Emitted | Rejected]:
        """Join the alerts of one batch. All but the last are finished with it: their incidents are written together."""
        gathered = self._gathered.get(partition)
        if gathered is None:
            gathered = self._gathered[partition] = Gathered(self.config)
        alerts: list[Alert] = []
        good: list[int] = []
        for index, record in enumerate(records):
            try:
                alerts.append(Alert.from_bytes(record.value()))
                good.append(index)
            except InvalidRecord as error:
                yield Rejected(index, error)
        if not good:
            return
        async with self._turns[partition]:  # of two states of an incident the later must be written later
            changed = gathered.changed(gathered.take(alerts))
            written = tuple(outputs.incident(self.incidents, incident) for incident in changed)
            gathered.wrote(changed)
            for index in good[:-1]:
                yield Emitted(index)
            yield Emitted(good[-1], written)


def _digest(incident: Incident) -> bytes:
    return hashlib.sha256(incident.to_bytes()).digest()[:16]


def _noted(incident: Incident) -> _Written:
    return _Written((incident.rule, incident.place), _digest(incident), incident.merged_into is not None)
