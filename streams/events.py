"""Incidents for people: one incident as it stands now, found by its id, a beginning of it, or the id of one that was merged into it."""

from __future__ import annotations

from schemas.errors import Fault
from schemas.incidents import Incident
from streams.clients import Clients
from streams.reader import read
from streams.topology import Topology
from streams.views import decode

PREFIX = "incident-"
MAX_NAMED = 5


class IncidentUnknown(Fault, LookupError):
    """No incident, or more than one, is called that; the message says what there is."""


def find_incident(topology: Topology, clients: Clients, wanted: str) -> Incident:
    """The incident of an id, or of a beginning of one; of one that has become a part of another, that other.

    Raises
    ------
    IncidentUnknown, BrokerUnavailable, TopicMissing, ReadRefused
    """
    topic = topology.topic("incidents")
    known: dict[str, Incident] = {}
    for stored in read(clients, [topic], start="beginning"):
        value = decode(stored).value
        if isinstance(value, Incident):
            known[value.id] = value
    found = [wanted] if wanted in known else sorted(name for name in known if name.startswith(wanted))
    if not found:
        raise IncidentUnknown(f"no incident in {topic.name} begins with {wanted!r:.80}: `headwater tail incidents` lists the latest")
    ends = {_end(known, name).id: _end(known, name) for name in found}
    if len(ends) > 1:
        named = ", ".join(found[:MAX_NAMED]) + (", ..." if len(found) > MAX_NAMED else "")
        raise IncidentUnknown(f"{len(found)} incidents begin with {wanted!r:.80}: {named}: give more of the id")
    return next(iter(ends.values()))


def _end(known: dict[str, Incident], name: str) -> Incident:
    """Follow who was merged into whom; the way may be cut by retention."""
    incident, seen = known[name], {name}
    while incident.merged_into in known and incident.merged_into not in seen:
        incident = known[incident.merged_into]
        seen.add(incident.id)
    return incident
