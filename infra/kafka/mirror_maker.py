"""MirrorMaker 2 in a link's place: its settings, made from a leaf's own file, and its process (dedicated mode, beside the leaf).

The alias of the leaf is `up.<site>`, so that MirrorMaker's own policy of names gives what the region reads: `verdicts` becomes
`up.<site>.verdicts`. Downwards no policy gives the leaf's names; there a stock transformation renames the records.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec

from infra.kafka import KafkaFailed
from infra.kafka.java import Java
from infra.kafka.jvm import ENVIRONMENT, LOGGING, write_arguments
from infra.processes import Child
from schemas.config import SiteConfig
from streams.topology import Mirror, Topology, mirrors, region_view

MAIN = "org.apache.kafka.connect.mirror.MirrorMaker"
REGION = "region"
HEAP_MB = 512
# As Kafka's own start script has them, the collector included.
FLAGS = (
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-XX:+ExitOnOutOfMemoryError",
    "-Xlog:disable",
    "-Djava.awt.headless=true",
)


class Setting(msgspec.Struct, frozen=True):
    """One line of the file; `why` stands above it where it is not plain."""

    name: str
    value: str
    why: str = ""


def settings(leaf: SiteConfig, *, down: bool = True) -> list[Setting]:
    """What MirrorMaker 2 is told to do the work of a leaf's link.

    Parameters
    ----------
    leaf
        The leaf's configuration, with `[link]`.
    down
        Whether the region's answers are carried too.

    Raises
    ------
    KafkaFailed
        If names cannot be made: with a prefix of topics.
    """
    if leaf.link is None:
        raise KafkaFailed(f"site {leaf.name} has no [link]: there is nothing to mirror")
    if leaf.topics.prefix:
        raise KafkaFailed(f"topics.prefix is {leaf.topics.prefix!r}: MirrorMaker's names (alias, dot, topic) cannot hold one in front")
    carried = mirrors(Topology(leaf), region_view(leaf))
    return [*_settings(leaf, carried, down)]


def properties(found: list[Setting]) -> str:
    """The text of the file."""
    lines: list[str] = []
    for setting in found:
        if setting.why:
            lines += ["", f"# {setting.why}"]
        value = setting.value.replace("\\", "\\\\")
        lines.append(f"{setting.name}={value}")
    return "\n".join(lines).lstrip() + "\n"


def _settings(leaf: SiteConfig, carried: list[Mirror], down: bool) -> Iterator[Setting]:
    assert leaf.link is not None
    here, copies = f"up.{leaf.name}", str(leaf.topics.replication)
    up, back = f"{here}->{REGION}", f"{REGION}->{here}"
    upward = [mirror for mirror in carried if mirror.direction == "up"]
    downward = [mirror for mirror in carried if mirror.direction == "down"]
    yield Setting(
        "clusters", f"{here},{REGION}", "the leaf's alias is what its topics are called by at the region: verdicts -> up.SITE.verdicts"
    )
    yield Setting(f"{here}.bootstrap.servers", leaf.kafka.bootstrap_servers)
    yield Setting(f"{REGION}.bootstrap.servers", leaf.link.region.bootstrap_servers)

    yield Setting(f"{up}.enabled", "true", "upwards; names are regular expressions")
    yield Setting(f"{up}.topics", ",".join(mirror.source.name.replace(".", "\\.") for mirror in upward))
    partitions = sum(mirror.source.partitions for mirror in upward)
    yield Setting(
        f"{up}.tasks.max",
        str(partitions),
        "a task for each partition: with fewer, a task's producer sends alerts behind the backlog of verdicts that shares it",
    )
    yield Setting(f"{back}.enabled", "true" if down else "false", "downwards: a transformation gives the records the leaf's names")
    if down:
        yield Setting(f"{back}.topics", ",".join(mirror.source.name.replace(".", "\\.") for mirror in downward))
        yield Setting(f"{back}.tasks.max", str(len(downward)))
        yield Setting(f"{back}.transforms", ",".join(f"name{number}" for number in range(len(downward))))
        for number, mirror in enumerate(downward):
            prefix = f"{back}.transforms.name{number}"
            yield Setting(f"{prefix}.type", "org.apache.kafka.connect.transforms.RegexRouter")
            yield Setting(f"{prefix}.regex", f"{REGION}.{mirror.source.name}".replace(".", "\\."))
            yield Setting(f"{prefix}.replacement", mirror.target.name)

    yield Setting("replication.factor", copies, "the topics are Headwater's own: their settings stay, and nothing else is made")
    for name in ("config.storage", "offset.storage", "status.storage", "heartbeats.topic", "checkpoints.topic"):
        yield Setting(f"{name}.replication.factor", copies)
    for name in ("sync.topic.configs", "sync.topic.acls", "emit.heartbeats", "emit.checkpoints", "emit.offset-syncs"):
        yield Setting(f"{name}.enabled", "false")
    yield Setting("refresh.topics.interval.seconds", "60")

    yield Setting("plugin.discovery", "service_load", "MirrorMaker looks for plugins itself before its workers do: a third of the start")
    targets = (REGION, here) if down else (REGION,)
    why = "worker settings count only with the alias of the flow's target before them; without it they are ignored, and nothing says so"
    yield from _with_aliases(why, targets, "", _WORKER)
    why = "well filled requests, several under way: by default each waits for the one before, and nothing is compressed"
    yield from _with_aliases(why, targets[:1], "producer.", _PRODUCER)
    if down:  # what was compressed over the link is not, on the way to the leaf's own broker
        yield from _with_aliases("", targets[1:], "producer.", tuple(each for each in _PRODUCER if each.name != "compression.type"))
    yield from _with_aliases("read in large steps", (here, REGION) if down else (here,), "consumer.", _CONSUMER)


def _with_aliases(heading: str, aliases: tuple[str, ...], prefix: str, found: tuple[Setting, ...]) -> Iterator[Setting]:
    """The settings for each alias; the reasons are said once."""
    for alias in aliases:
        for setting in found:
            yield Setting(f"{alias}.{prefix}{setting.name}", setting.value, ": ".join(part for part in (heading, setting.why) if part))
            heading = ""
        found = tuple(Setting(each.name, each.value) for each in found)


_WORKER = (
    Setting("plugin.discovery", "service_load"),
    Setting("session.timeout.ms", "60000", "a shorter outage is no rebalance, and so no records twice"),
    Setting("heartbeat.interval.ms", "3000"),
    Setting("scheduled.rebalance.max.delay.ms", "0", "for so long the tasks of a lost worker wait; 5 minutes by default"),
    Setting("offset.flush.interval.ms", "1000"),
    Setting("offset.flush.timeout.ms", "60000", "with 5 s, the default, every flush in an outage fails"),
    Setting("request.timeout.ms", "120000"),
    Setting("offset.storage.partitions", "1"),
    Setting("status.storage.partitions", "1"),
    Setting("reconnect.backoff.ms", "100"),
    Setting("reconnect.backoff.max.ms", "2000"),
)
_PRODUCER = (
    Setting("compression.type", "zstd"),
    Setting("enable.idempotence", "true"),
    Setting("acks", "all"),
    Setting("max.in.flight.requests.per.connection", "5"),
    Setting("batch.size", "262144"),
    Setting("linger.ms", "20"),
    Setting("request.timeout.ms", "120000", "an outage, and then what waits behind a thin link, last longer than the default of 30 s"),
    Setting("buffer.memory", "8388608", "of each task: in a long outage all of them must fit the heap"),
    Setting("max.request.size", "20971520"),
    Setting("reconnect.backoff.ms", "100"),
    Setting("reconnect.backoff.max.ms", "2000"),
)
_CONSUMER = (
    Setting("max.poll.records", "2000"),
    Setting("max.partition.fetch.bytes", "4194304"),
    Setting("fetch.max.bytes", "16777216"),
    Setting("receive.buffer.bytes", "262144"),
)


class MirrorMaker:
    """One MirrorMaker 2 process: `start`, `stop`.

    Parameters
    ----------
    jars
        Class path: `infra.kafka.jars.connect_jars`, fetched.
    folder
        Its file of settings and its logs.
    loglevel
        `warn`, or `info` to see every setting as each client took it.
    """

    def __init__(
        self, java: Java, jars: tuple[Path, ...], folder: Path, found: list[Setting], *, heap_mb: int = HEAP_MB, loglevel: str = "warn"
    ) -> None:
        self.name = "MirrorMaker 2"
        self.folder = folder
        self.log_path = folder / "mirror-maker.log"
        self._settings = found
        self._options = [*FLAGS, f"-Xms{min(256, heap_mb)}m", f"-Xmx{heap_mb}m"]
        if java.major >= 22:
            self._options.append("--enable-native-access=ALL-UNNAMED")
        if java.major >= 23:
            self._options.append("--sun-misc-unsafe-memory-access=allow")
        self._options += [f"-Dlog4j2.configurationFile={LOGGING}", f"-Dheadwater.log={self.log_path}", f"-Dheadwater.loglevel={loglevel}"]
        self._options += ["-cp", os.pathsep.join(map(str, jars))]
        self._java = java
        self._child: Child | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    def start(self) -> Self:
        """Start it; raises `ProcessFailed`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "mm2.properties"
        file.write_text(properties(self._settings), encoding="utf-8")
        options = write_arguments(self.folder / "java.args", self._options)
        argv = [str(self._java.program), f"@{options}", MAIN, str(file)]
        self._child = Child(self.name, argv, {**os.environ, **ENVIRONMENT}, self.folder / "console.log", grace_s=20.0).start()
        return self

    def poll(self) -> int | None:
        return self._child.poll() if self._child is not None else None

    def stop(self, timeout_s: float = 20.0) -> int | None:
        return self._child.stop(timeout_s) if self._child is not None else None
