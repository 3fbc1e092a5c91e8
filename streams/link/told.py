"""What people see of a link and tell it, from the leaf's topics alone: no process is asked, so it works whether or not the link runs."""

from __future__ import annotations

import datetime as dt
import time

import msgspec

from schemas.links import LinkOrder, LinkState
from schemas.records import InvalidRecord
from streams import outputs
from streams.clients import Clients
from streams.restore import to_end
from streams.sink import Sink
from streams.topology import Role, Topology

FRESH_S = 15.0  # a link says how it stands every few seconds; older than that, it is not running


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What the link of a site said last, how long ago by the broker's clock, and the order that is in force."""

    state: LinkState | None
    age_s: float
    order: LinkOrder | None

    @property
    def running(self) -> bool:
        return self.state is not None and self.age_s < FRESH_S


def read_told(clients: Clients, leaf: Topology) -> Told:
    """Read the latest of both; raises `BrokerUnavailable`."""
    states, orders = leaf.role(Role.READER).read("link.state"), leaf.topic("link.orders")
    state, order, appended_ms = None, None, 0
    for message in to_end(clients, [(states.name, 0), (orders.name, 0)]):
        try:
            if message.topic() == states.name:
                state, appended_ms = LinkState.from_bytes(message.value()), message.timestamp()[1]
            else:
                order = LinkOrder.from_bytes(message.value())
        except InvalidRecord:
            continue  # another version's, or nobody's: `headwater tail` shows it
    return Told(state=state, age_s=max(0.0, time.time() - appended_ms / 1000) if state is not None else 0.0, order=order)


def give_order(clients: Clients, leaf: Topology, order: LinkOrder) -> None:
    """Write an order; it holds until the next one. Raises `NotDelivered`, `SinkBroken`."""
    topic = leaf.role(Role.OPERATOR).write("link.orders")
    sink = Sink(clients)
    try:
        sink.write_blocking([outputs.link_order(topic, order, dt.datetime.now(dt.UTC))])
    finally:
        sink.close()
