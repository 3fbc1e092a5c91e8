"""The link: carries topics between a leaf's Kafka and its region's. The leaf dials; both directions run here. At least once; nothing is
kept on the link's own disk.

1. The destination's positions say how far each partition was carried (`streams.positions`): `up.<site>.positions` at the region,
   `positions` at the leaf. They are bound to the source's cluster id and topic uuid, name the gaps that are still to be carried, and
   the leader epoch, which tells a log that was cut.
2. On every (re)connect a lane reads them and goes on there. One link carries for a site (`hold.py`); another one stands by.
3. Loop: take records, produce them idempotently with their keys and headers; what is acknowledged is settled (`carried.py`), and once a
   second the positions say so. A failure in between repeats records, which the join makes invisible.
4. Newest first: a lane that finds itself behind goes to the end of the log and carries the gap behind it from its newest end (`lane.py`).
   Topics whose order matters (compacted ones) go in their order.
5. What fell off the source's retention before it was carried is explained exactly, as a drop of offsets by the stage `link`; so is a record
   that the destination's topic is too small for, and an escalation whose time to live has passed.
6. Lanes go by priority (`gate.py`): alerts have a connection of their own, and what is on its way of the others is held to a fifth of a
   second, by the budget and by the delay that is seen (`window.py`).
7. A token bucket holds the site's byte budget over all lanes and both directions, put right by what the clients count on the wire.
8. Names differ on both ends (`streams.topology.mirrors`), so nothing can loop.
9. The breaker follows whether the region answers (`wire.py`). A second region takes over when the first is away (`link.py`).
"""

from streams.link.link import Link

__all__ = ["Link"]
