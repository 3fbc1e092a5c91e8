"""The plain loop that links are held against: read from one Kafka, produce to the other, with the same compression, and nothing else. No
positions, no priorities, no budget. It runs as `python -m infra.bench.raw_copy FROM TO SOURCE=TARGET...` until SIGTERM.
"""

from __future__ import annotations

import sys

from infra.processes import ended_by_signals
from schemas.config import Kafka
from streams.clients import Clients

_AT_ONCE = 1_000


def copy(source: str, target: str, names: dict[str, str]) -> None:
    """Copy until a signal ends it; `names` are topics at the source and what they are called at the target."""
    consumer = Clients(Kafka(bootstrap_servers=source), "bench.raw").consumer(
        "bench.raw", **{"auto.offset.reset": "earliest", "fetch.message.max.bytes": 4 << 20, "queued.max.messages.kbytes": 16 << 10}
    )
    producer = Clients(Kafka(bootstrap_servers=target), "bench.raw").producer(
        linger_ms=20, **{"compression.type": "zstd", "batch.size": 256 << 10, "queue.buffering.max.messages": 20_000}
    )
    consumer.subscribe(list(names))
    try:
        while True:
            for message in consumer.consume(_AT_ONCE, 0.05):
                if message.error() is not None:
                    continue  # an outage: the client itself goes on
                while True:
                    try:
                        producer.produce(
                            names[str(message.topic())],
                            message.value(),
                            message.key(),
                            message.partition() or 0,
                            headers=message.headers(),
                        )
                        break
                    except BufferError:
                        producer.poll(0.05)
            producer.poll(0)
    finally:
        consumer.close()
        producer.purge()


if __name__ == "__main__":
    with ended_by_signals():
        copy(sys.argv[1], sys.argv[2], dict(pair.split("=", 1) for pair in sys.argv[3:]))
