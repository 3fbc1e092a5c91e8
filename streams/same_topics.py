"""Whether the topics that a worker reads are still the ones that it began with.

A topic that is deleted and made again starts anew under its old name. A running consumer may wait for ever then (librdkafka takes the new
topic's lower leader epoch for old news: its issue 4898), and ids that hold the topic's uuid would be wrong. So the worker ends, and starts
again with what is there now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from mode import Service

from streams.clients import BrokerUnavailable, Clients

LOOK_S = 5.0


class TopicReplaced(RuntimeError):
    """A topic that is read has been made anew; a new start of the worker takes it up."""


class SameTopics(Service):
    """Compares the topics' uuids with those of the start, every few seconds; ends the worker if one differs.

    Parameters
    ----------
    uuids
        By topic name, as they were when the worker began.
    """

    def __init__(self, clients: Clients, uuids: Mapping[str, str], **kwargs: Any) -> None:
        self.clients, self.uuids = clients, dict(uuids)
        super().__init__(**kwargs)

    @Service.task
    async def _look(self) -> None:
        admin = self.clients.admin()
        while not self.should_stop:
            await self.sleep(LOOK_S)
            try:
                found = await asyncio.to_thread(self.clients.cluster, sorted(self.uuids), timeout_s=3.0, admin=admin)
            except BrokerUnavailable:
                continue  # nothing is read from it meanwhile
            for name, (uuid, _) in found.topics.items():
                if uuid != self.uuids[name]:
                    await self.crash(TopicReplaced(f"{name} was deleted and made anew while it was read: the worker starts again with it"))
                    return
