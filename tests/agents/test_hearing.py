"""What a process hears of small topics, beside its work."""

from __future__ import annotations

import asyncio
import datetime as dt
from itertools import pairwise
from types import ModuleType

from confluent_kafka import Producer

from agents.hearing import Hearing
from schemas.config import Kafka, Topics
from streams.clients import Clients
from streams.cluster import create_topics
from streams.reader import Stored
from streams.topology import Role, Topology

LIMIT_S = 30.0
COUNT = 200
WORK = "work"


def test_a_burst_is_heard_piece_by_piece(tools: ModuleType, kafka: Kafka, prefix: str) -> None:
    """Answers that come all at once, as after an outage, let everything else on the event loop have its turn after each."""
    topology = Topology(tools.leaf_site(kafka=kafka, topics=Topics(prefix=prefix, partitions=1)))
    clients = Clients(kafka, "test")
    create_topics(topology, clients)
    topic = topology.role(Role.LEAF).read("region.verdicts")
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for number in range(COUNT):
        producer.produce(topic.name, str(number).encode(), timestamp=int(dt.datetime.now(dt.UTC).timestamp() * 1000))
    assert producer.flush(LIMIT_S) == 0
    happened: list[str] = []
    all_heard = asyncio.Event()

    def hear(stored: Stored) -> None:
        happened.append((stored.value or b"").decode())
        if sum(each != WORK for each in happened) == COUNT:
            all_heard.set()

    async def other_work() -> None:
        while True:
            happened.append(WORK)
            await asyncio.sleep(0)

    async def listen() -> None:
        work = asyncio.create_task(other_work())
        hearing = Hearing(clients, {topic: hear})
        await hearing.start()
        async with asyncio.timeout(LIMIT_S):
            await all_heard.wait()
        await hearing.stop()
        work.cancel()

    asyncio.run(listen())
    at_once = [now for now, then in pairwise(happened) if WORK not in (now, then)]
    assert at_once == []
    assert {each for each in happened if each != WORK} == {str(number) for number in range(COUNT)}
