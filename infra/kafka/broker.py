"""One Apache Kafka broker in KRaft mode on this machine: its start, its readiness, its end.

A broker is ready when it answers a client. It never outlives us unless it is started detached (`infra.processes`). Its folder is locked
for as long as its process lives: two brokers never share one, and a killed broker leaves no lock behind.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Self

import msgspec
import psutil
from rich.console import Console

from infra import paths
from infra.kafka import KafkaFailed
from infra.kafka.folder import STATE, BrokerState, formatted_cluster, open_folder, read_state, write_state
from infra.kafka.jvm import ENVIRONMENT, MAIN, write_arguments
from infra.kafka.ports import PortUnusable, check_port, free_port, in_use
from infra.kafka.prepare import prepare
from infra.kafka.ready import wait_ready
from infra.kafka.settings import BrokerSettings, server_properties
from infra.processes import Child, ProcessFailed
from schemas.config import Kafka

log = logging.getLogger("headwater.kafka.broker")

READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
TAIL_LINES = 12
NO_SPACE = "No space left on device"
FULL_BYTES = 8 << 20


class BrokerFailed(KafkaFailed):
    """A broker did not start or does not answer; the message says why and what to do."""


class Broker:
    """One broker: `start` and `stop`, or a `with` block.

    Parameters
    ----------
    settings
        What to run; once it runs, ports that were 0 are filled in.
    cache
        Where the jars are kept; None: Headwater's cache.
    detached
        Let it live on when we end; `stop_broker` ends it.
    console
        Where the first start's downloads are shown; None: standard error.
    """

    def __init__(
        self, settings: BrokerSettings, *, cache: Path | None = None, detached: bool = False, console: Console | None = None
    ) -> None:
        self.settings = self._asked = msgspec.structs.replace(settings, folder=settings.folder.absolute())
        self.detached = detached
        self._cache = (cache or paths.cache_dir()).absolute()
        self._console = console
        self._child: Child | None = None
        self._state: BrokerState | None = None
        self._log_starts_at = 0

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def log_path(self) -> Path:
        """What Kafka logs: warnings and errors."""
        return self.settings.folder / "broker.log"

    @property
    def kafka(self) -> Kafka:
        """The configuration of a client of it."""
        return self.settings.client()

    @property
    def bootstrap_servers(self) -> str:
        return self.kafka.bootstrap_servers

    @property
    def pid(self) -> int | None:
        """Of the JVM, while it runs."""
        return self._child.pid if self._child is not None and self.poll() is None else None

    @property
    def cluster_id(self) -> str:
        """Known once it was started."""
        return self._state.cluster_id if self._state else ""

    @property
    def wan_address(self) -> tuple[str, int]:
        """Host and port where the WAN listener is bound: what a proxy dials."""
        if self.settings.wan is None:
            raise ValueError(f"broker {self.name} has no WAN listener")
        return self.settings.wan.host, self.settings.wan.port

    def resident_bytes(self) -> int:
        """Memory of its process; raises `ProcessLookupError` if it does not run."""
        if (pid := self.pid) is None:
            raise ProcessLookupError(f"broker {self.name} does not run")
        return int(psutil.Process(pid).memory_info().rss)

    def poll(self) -> int | None:
        """Exit code if its process has ended, else None."""
        return self._child.poll() if self._child else None

    def restart(self, timeout_s: float = READY_TIMEOUT_S) -> Self:
        """Start it again after it has ended, at the address that it had; raises as `start` does."""
        self._asked = self.settings
        return self.start(timeout_s)

    def ended_of_full_disk(self) -> bool:
        """Whether it has ended because its disk was full: Kafka says so in its log, if there was room for that."""
        if self.poll() in (None, 0):
            return False
        text = _new_text(self.settings.folder / "console.log", 0) + _new_text(self.log_path, self._log_starts_at)
        return NO_SPACE in text or shutil.disk_usage(self.settings.folder).free < full_bytes(self.settings)

    def start(self, timeout_s: float = READY_TIMEOUT_S) -> Self:
        """Start it and wait until it answers; raises `KafkaFailed` and leaves nothing running."""
        return self.spawn().wait_ready(timeout_s)

    def spawn(self) -> Self:
        """Start its process only, so that several brokers can start side by side; `wait_ready` comes next.

        Raises
        ------
        KafkaFailed
            If it cannot be started: Java, jars, folder, disk space, ports.
        """
        if self.pid is not None:
            raise BrokerFailed(f"broker {self.name} is running already (pid {self.pid})")
        lock = open_folder(self._asked.folder, self.name, min_free_bytes=self._asked.min_free_bytes)
        try:
            _with_ports(self._asked)  # a port in use is told before anything is fetched
            prepared = prepare(self._cache, console=self._console)
            self.settings = settings = _with_ports(self._asked)
            cluster_id = formatted_cluster(settings.folder, prepared.seed)
            properties, console = settings.folder / "server.properties", settings.folder / "console.log"
            properties.write_text(server_properties(settings), encoding="utf-8")
            console.unlink(missing_ok=True)
            options = write_arguments(
                settings.folder / "java.args", prepared.jvm.arguments(heap_mb=settings.heap_mb, log_path=self.log_path)
            )
            self._log_starts_at = self.log_path.stat().st_size if self.log_path.exists() else 0
            self._child = Child(
                f"broker {self.name}",
                prepared.jvm.command(options, MAIN, str(properties)),
                {**os.environ, **ENVIRONMENT},
                console,
                grace_s=STOP_TIMEOUT_S,
                pass_fds=[lock],
                detached=self.detached,
            ).start()
            self._announce(cluster_id, ready=False)
        except PortUnusable as error:
            raise BrokerFailed(f"broker {self.name} cannot start: {error}") from None
        except (OSError, ProcessFailed) as error:
            self.stop()
            raise BrokerFailed(f"broker {self.name} cannot start in {self._asked.folder}: {error}") from None
        finally:
            os.close(lock)  # the broker's process has it now, for as long as it lives
        return self

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> Self:
        """Wait until it answers; raises `BrokerFailed` with the reason, and stops it, if it does not."""
        try:
            info = wait_ready(self.settings.host, self.settings.port, alive=lambda: self.poll() is None, timeout_s=timeout_s)
        except (TimeoutError, ChildProcessError) as error:
            reason = self._reason(error)
            self.stop()
            raise BrokerFailed(reason) from None
        except BaseException:  # Ctrl-C while it starts
            self.stop()
            raise
        self._announce(info.id, ready=True)
        log.info("broker is ready", extra={"broker": self.name, "servers": self.bootstrap_servers, "pid": self.pid})
        return self

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int | None:
        """Stop it in order (SIGTERM), by force after the time. Its data stays. Returns its exit code; None: it never ran."""
        if self._child is None:
            return None
        code = self._child.stop(timeout_s)
        (self.settings.folder / STATE).unlink(missing_ok=True)
        return code

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _announce(self, cluster_id: str, *, ready: bool) -> None:
        if (pid := self.pid) is None:
            return  # it ended at once: wait_ready says why
        wan = self.settings.wan
        try:
            created = psutil.Process(pid).create_time()
        except psutil.NoSuchProcess:
            return
        self._state = BrokerState(
            name=self.name,
            pid=pid,
            created=created,
            ready=ready,
            bootstrap_servers=self.bootstrap_servers,
            wan=f"{wan.advertised_host}:{wan.advertised_port}" if wan else None,
            cluster_id=cluster_id,
            heap_mb=self.settings.heap_mb,
        )
        write_state(self.settings.folder, self._state)

    def _reason(self, error: Exception) -> str:
        """Why it did not come up, from its log, with the fix where the cause is known."""
        text = _new_text(self.settings.folder / "console.log", 0) + _new_text(self.log_path, self._log_starts_at)
        name, folder = self.name, self.settings.folder
        if NO_SPACE in text:
            return f"broker {name} did not start: the disk of {folder} is full. Free some space, or give it another folder (--data-dir)"
        if "Address already in use" in text:
            return f"broker {name} did not start: {in_use(self.settings.host, self.settings.port)}"
        if "OutOfMemoryError" in text:
            return f"broker {name} did not start: a heap of {self.settings.heap_mb} MB is too small for its data. Give it more (--heap-mb)"
        code = self.poll()
        what = f"did not start (it ended with code {code})" if code is not None else f"does not answer: {error}"
        tail = "\n".join(text.splitlines()[-TAIL_LINES:]) or "(nothing was logged)"
        return f"broker {name} {what}. Its log, {self.log_path}, ends with:\n{tail}"


def full_bytes(settings: BrokerSettings) -> int:
    """Free bytes below which a disk counts as full: Kafka may end before the last of them is taken."""
    return min(FULL_BYTES, settings.min_free_bytes)


def stop_broker(folder: Path, timeout_s: float = STOP_TIMEOUT_S) -> BrokerState | None:
    """Stop the broker that runs in a folder, whoever started it; returns what it was, None if none ran."""
    state = read_state(folder)
    process = state.process() if state else None
    if process is None:
        return None
    process.terminate()
    try:
        process.wait(timeout_s)
    except psutil.TimeoutExpired:
        log.warning("broker does not stop, killing it", extra={"pid": process.pid, "after_s": timeout_s})
        process.kill()
        process.wait(timeout_s)
    (folder / STATE).unlink(missing_ok=True)
    return state


def _with_ports(settings: BrokerSettings) -> BrokerSettings:
    """Fill in ports that are 0; raises `PortUnusable` if one that was asked for is in use."""
    wan = settings.wan
    taken = {settings.port, settings.controller_port, wan.port if wan else 0, wan.advertised_port if wan else 0}

    def choose(host: str, port: int) -> int:
        if port:
            check_port(host, port)
            return port
        chosen = free_port(host, taken=frozenset(taken))
        taken.add(chosen)
        return chosen

    port = choose(settings.host, settings.port)
    controller_port = choose("127.0.0.1", settings.controller_port)
    if wan is not None:
        wan = msgspec.structs.replace(wan, port=choose(wan.host, wan.port))
    return msgspec.structs.replace(settings, port=port, controller_port=controller_port, wan=wan)


def _new_text(path: Path, start: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(start if path.stat().st_size >= start else 0)
            return file.read(256 << 10).decode(errors="replace")
    except OSError:
        return ""
