"""What carries the records in a comparison, each as a process of its own: our link, MirrorMaker 2, and a plain copying loop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import msgspec
from rich.console import Console

from infra import paths
from infra.cli.run import role_process
from infra.kafka import mirror_maker
from infra.kafka.jars import KAFKA_VERSION, connect_jars, fetch_jars
from infra.kafka.java import find_java
from infra.kafka.mirror_maker import MirrorMaker
from infra.processes import Child
from schemas.config import SiteConfig
from streams.topology import Topology, mirrors, region_view


class Process(Protocol):
    """A started contender."""

    @property
    def pid(self) -> int | None: ...
    def start(self) -> object: ...
    def poll(self) -> int | None: ...
    def stop(self, timeout_s: float) -> object: ...


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """One way to carry records. `make` takes the leaf's file, its configuration and a folder for logs."""

    name: str
    label: str
    make: Callable[[Path, SiteConfig, Path], Process]
    version: str


def contenders(names: tuple[str, ...], console: Console) -> list[Contender]:
    """The named contenders, in order; what they need is fetched.

    Raises
    ------
    KafkaFailed
        If there is no Java, or no jars.
    """
    found = {"headwater": _headwater, "mirrormaker": _mirror_maker, "raw": _raw}
    return [found[name](console) for name in names]


NAMES = ("headwater", "mirrormaker", "raw")


def _headwater(_: Console) -> Contender:
    def make(file: Path, site: SiteConfig, folder: Path) -> Process:
        return role_process(str(file), "leaf", "link", log_path=folder / "link.log")

    return Contender(name="headwater", label="Headwater link", make=make, version=version("headwater"))


def _mirror_maker(console: Console) -> Contender:
    java = find_java()
    jars = fetch_jars(paths.cache_dir(), connect_jars(), console=console, what="Kafka Connect and MirrorMaker")

    def make(file: Path, site: SiteConfig, folder: Path) -> Process:
        return MirrorMaker(java, jars, folder, mirror_maker.settings(site))

    return Contender(name="mirrormaker", label="MirrorMaker 2", make=make, version=f"{KAFKA_VERSION}, Java {java.version}")


def _raw(_: Console) -> Contender:
    def make(file: Path, site: SiteConfig, folder: Path) -> Process:
        assert site.link is not None
        pairs = [f"{each.source.name}={each.target.name}" for each in mirrors(Topology(site), region_view(site)) if each.direction == "up"]
        argv = [sys.executable, "-m", "infra.bench.raw_copy", site.kafka.bootstrap_servers, site.link.region.bootstrap_servers, *pairs]
        return Child("raw loop", argv, log_path=folder / "raw.log")

    return Contender(name="raw", label="raw produce loop", make=make, version=f"confluent-kafka {version('confluent-kafka')}")
