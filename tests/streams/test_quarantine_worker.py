"""A worker process whose work truly dies of a record, or never ends: who is found guilty, what becomes of the others, how many starts that
takes. The supervisor here is the one of `headwater run`.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.processes import Child, Group
from schemas.config import Kafka, SiteConfig, Topics
from streams.clients import Clients
from streams.cluster import create_topics
from streams.quarantine import HUNG
from streams.topology import Role, Topology

LIMIT_S = 100.0
ROOT = str(Path(__file__).parents[2])

# A leaf's agent without models: `frames` are echoed to `verdicts` from a pool, as the leaf's looks are; values say what kills it.
WORKER = """
import asyncio, concurrent.futures, ctypes, logging, os, pathlib, re, sys, time
from schemas.config import Kafka, SiteConfig, Topics
from streams.app import hot_agent, make_app, run_worker
from streams.batches import BatchSource
from streams.clients import Clients
from streams.delivery import Delivery, Emitted
from streams.quarantine import Quarantine
from streams.sink import Output, Sink
from streams.topology import Role, Topology

logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
servers, prefix, folder, limit_s, work_ms, instance = sys.argv[1:7]
config = SiteConfig(name="leaf-1", tier="leaf", kafka=Kafka(bootstrap_servers=servers), topics=Topics(prefix=prefix, partitions=2))
role = Topology(config).role(Role.LEAF)
clients = Clients(config.kafka, "worker")
sink = Sink(clients)
# Faust's own group is new at each start: it would wait for the dead member's session (10 s), which is not what is looked at here.
other = SiteConfig(name=f"w{os.getpid()}", tier="leaf", kafka=config.kafka, topics=config.topics)
app = make_app(config, Topology(other).role(Role.LEAF), pathlib.Path(folder))
pool = concurrent.futures.ThreadPoolExecutor(2)

def look(value):
    time.sleep(float(work_ms) / 1000)
    if value == b"segfault":
        ctypes.string_at(0)
    if value == b"abort":
        os.abort()
    if value == b"loop":
        while True:
            pass
    if value == b"hold":  # native code that never gives the interpreter back: it matches in exponential time
        re.match(r"(a+)+$", "a" * 64 + "b")
    if value == b"exit":
        os.kill(os.getpid(), 9)
    return value

async def work(topic, partition, records):
    loop = asyncio.get_running_loop()
    looks = [loop.run_in_executor(pool, look, record.value()) for record in records]
    for index, each in enumerate(looks):
        value = await each
        yield Emitted(index, (Output(role.write("verdicts"), "", records[index].key(), value, []),))

quarantine = Quarantine(pathlib.Path(folder), role.role, work_limit_s=float(limit_s))
delivery = Delivery(sink, work, lambda topic: role.write(f"{topic.base}.dlq"), "test", quarantine=quarantine)
settings = {"group.instance.id": instance} if instance else {"session.timeout.ms": 6000}
hot = hot_agent(app, "hot", delivery, concurrency=4)
source = BatchSource(clients, [role.read("frames")], role.group(), hot, max_records=8, in_flight=4, settings=settings)
print("up", os.getpid(), flush=True)
code = run_worker(app, quarantine, source)
sink.close()
print("ended", code, flush=True)
sys.exit(code)
"""


class Site:
    """A leaf's topics, and workers of one folder under a supervisor."""

    def __init__(self, rig: Any, kafka: Kafka, folder: Path) -> None:
        self.rig, self.folder = rig, folder
        config = SiteConfig(name="leaf-1", tier="leaf", kafka=kafka, topics=Topics(prefix=rig.prefix, partitions=2))
        topology = Topology(config)
        create_topics(topology, Clients(kafka, "test"))
        role = topology.role(Role.LEAF)
        self.frames, self.verdicts, self.dead = role.read("frames"), role.write("verdicts"), role.write("frames.dlq")
        self.group_name = role.group()
        self.script = folder / "worker.py"
        self.script.write_text(WORKER)
        self.group = Group(restarts=5, crashes=30, crashed=frozenset({HUNG}), backoff_s=0.05)
        self.ended: Any = None
        self._halt = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def worker(self, name: str = "worker", *, limit_s: float = 60.0, work_ms: float = 2.0, static: bool = True) -> Child:
        """`static`: a start takes up the partitions of the last one at once; else they move to whoever is there, after 6 s."""
        settings = [self.rig.servers, self.rig.prefix, self.folder / "data", limit_s, work_ms, name if static else ""]
        argv = [sys.executable, str(self.script), *map(str, settings)]
        child = Child(name, argv, env={**os.environ, "PYTHONPATH": ROOT}, log_path=self.folder / f"{name}.log")
        self.group.start(child)
        if not self._watcher.is_alive():
            self._watcher.start()
        return child

    def _watch(self) -> None:
        while not self._halt.is_set() and self.ended is None:
            self.ended = self.group.watch(0.2, self._halt.is_set, every_s=0.02)

    def put(self, values: list[bytes], partition: int = 0) -> None:
        self.rig.put(self.frames, [(b"cam-1", value, [("ce_id", b"cam-1/e/%d" % at)]) for at, value in enumerate(values)], partition)

    def until_committed(self, ends: dict[int, int]) -> None:
        self.rig.until(
            lambda: self.ended or self.rig.committed(self.group_name, self.frames) == ends, "the commit of every record", LIMIT_S
        )
        assert self.ended is None, self.log()

    def starts(self, name: str = "worker") -> int:
        return sum(line.startswith("up ") for line in self.log(name).splitlines())

    def log(self, name: str = "worker") -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def answered(self) -> Counter[bytes]:
        return Counter(row.value() for row in self.rig.rows(self.verdicts))

    def written(self) -> int:
        return sum(self.rig.end(self.verdicts, partition) for partition in range(2))

    def letters(self) -> list[tuple[bytes, dict[str, str]]]:
        rows = self.rig.rows(self.dead)
        return [(row.value(), {name: value.decode() for name, value in row.headers()}) for row in rows]

    def close(self) -> None:
        self._halt.set()
        if self._watcher.is_alive():
            self._watcher.join(10)
        self.group.stop(20)


@pytest.fixture
def site(rig: Any, kafka: Kafka, tmp_path: Path) -> Iterator[Site]:
    found = Site(rig, kafka, tmp_path)
    try:
        yield found
    finally:
        found.close()


NUMBERS = [b"%d" % number for number in range(60)]


@pytest.mark.parametrize(
    ("poison", "name", "starts"),
    [(b"segfault", "Crashed", 4), (b"abort", "Crashed", 4), (b"exit", "Killed", 6), (b"loop", "Hung", 3), (b"hold", "Hung", 4)],
)
def test_a_record_that_kills_the_worker_is_found_and_the_others_are_answered(site: Site, poison: bytes, name: str, starts: int) -> None:
    site.put([*NUMBERS[:21], poison, *NUMBERS[21:]])
    began = time.monotonic()
    site.worker(limit_s=1.5 if name == "Hung" else 60.0)
    site.until_committed({0: 61})
    print(f"{poison.decode()}: {site.starts()} starts, {time.monotonic() - began:.1f} s")  # noqa: T201
    assert set(site.answered()) == set(NUMBERS)
    ((value, headers),) = site.letters()
    assert value == poison
    assert headers["__connect.errors.exception.class.name"] == f"streams.suspects.{name}"
    assert headers["__connect.errors.offset"] == "21"
    assert headers["headwater.record"] == "cam-1/e/21"
    if name != "Killed":
        assert "in look" in headers["__connect.errors.exception.stacktrace"]  # where it happened
    assert site.starts() <= starts


def test_two_of_them_in_one_batch_do_not_use_up_the_restarts(site: Site) -> None:
    site.put([*NUMBERS[:10], b"segfault", NUMBERS[10], b"exit", *NUMBERS[11:]])
    site.worker()
    site.until_committed({0: 62})
    assert set(site.answered()) == set(NUMBERS)
    assert sorted(value for value, _ in site.letters()) == [b"exit", b"segfault"]
    assert site.starts() <= 9


def test_whoever_gets_the_partition_next_is_told_of_the_suspects(site: Site, rig: Any) -> None:
    """Two workers in one folder: what kills one kills the other too, and their deaths are added up."""
    site.group.restarts = 30
    site.put([b"before"], 0)
    site.put([b"before"], 1)
    site.worker("first", static=False)
    site.worker("second", static=False)
    site.until_committed({0: 1, 1: 1})
    site.put([*NUMBERS[:30], b"segfault", *NUMBERS[30:]], 0)
    site.put(NUMBERS, 1)
    site.until_committed({0: 62, 1: 61})
    assert set(site.answered()) == {*NUMBERS, b"before"}
    assert [value for value, _ in site.letters()] == [b"segfault"]
    assert site.starts("first") + site.starts("second") <= 6


def test_kills_from_outside_condemn_nobody(site: Site, rig: Any) -> None:
    """Many rounds of `kill -9` at random moments while records are in work, some of them right after a start."""
    values = [b"%d" % number for number in range(3000)]
    site.put(values)
    random.seed(3)
    child = site.worker(work_ms=3.0)
    site.group.crashes = 1000
    rounds = met = 0
    until = time.monotonic() + 15
    while time.monotonic() < until and rounds < 30:
        count = site.starts()
        rig.until(lambda count=count: site.starts() >= count and child.poll() is None, "a start")
        before = site.written()
        rig.until(lambda before=before: site.written() > before or time.monotonic() > until, "work")
        threading.Event().wait(random.choice([0.0, 0.0, random.uniform(0, 0.3)]))
        pid = child.pid
        assert pid is not None
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it had ended by itself; the supervisor starts it again
            continue
        rounds += 1
        rig.until(lambda count=count: site.starts() > count, "the next start")
        met += site.log().count("a worker died with records in work") > met
    site.until_committed({0: 3000})
    print(f"{rounds} kills, {met} of them with records in work")  # noqa: T201
    assert rounds >= 2
    assert met >= 1
    assert set(site.answered()) == set(values)
    assert not site.letters()
