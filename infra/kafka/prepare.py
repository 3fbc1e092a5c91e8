"""What is made once per machine, from the jars, and then kept in the cache: a formatted folder's seed and an archive of loaded classes.

Kafka's own tool writes the seed (`bootstrap.checkpoint`: the feature levels, the same for every cluster), so that a new broker's folder
costs no JVM; the archive is recorded by a broker that runs once in a temporary folder. Without the archive all works, only slower.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console

from infra.kafka import KafkaFailed, locks
from infra.kafka.jars import KAFKA_VERSION, fetch_jars
from infra.kafka.java import Java, find_java
from infra.kafka.jvm import ENVIRONMENT, FLAGS, FORMAT, MAIN, Jvm, write_arguments
from infra.kafka.ports import free_port
from infra.kafka.ready import wait_ready
from infra.kafka.settings import BrokerSettings, server_properties
from infra.processes import Child, ProcessFailed

log = logging.getLogger("headwater.kafka.prepare")

SEED, ARCHIVE = "bootstrap.checkpoint", "classes.archive"
KEPT = 3  # prepared folders, one for each Java; older ones are deleted
HEAP_MB = 192
LOCK_TIMEOUT_S, FORMAT_TIMEOUT_S, READY_TIMEOUT_S, RECORD_TIMEOUT_S = 600.0, 120.0, 120.0, 120.0
ANY_CLUSTER = "MkU3OEVBNTcwNTJENDM2Qk"  # the seed does not hold it


class Prepared(msgspec.Struct, frozen=True):
    """A JVM that is ready to run brokers, and the file that a new broker's data folder starts with."""

    jvm: Jvm
    seed: Path


def prepare(cache: Path, *, java: Java | None = None, console: Console | None = None) -> Prepared:
    """Jars, seed and archive; the first time it takes some seconds and says so, later it is a check.

    Raises
    ------
    KafkaFailed
        If there is no Java, no jars, or the tool fails.
    """
    jvm = Jvm(java=java or find_java(), jars=fetch_jars(cache, console=console))
    folder = cache / "kafka" / f"{KAFKA_VERSION}-{_key(jvm)}"
    if not (folder / SEED).exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locks.held(folder.parent / ".lock", timeout_s=LOCK_TIMEOUT_S):
                if not (folder / SEED).exists():
                    _make(jvm, folder, console or Console(stderr=True, highlight=False))
        except locks.Locked:
            raise KafkaFailed(f"another process has been preparing {folder} for {LOCK_TIMEOUT_S:g} s: wait for it, or end it") from None
        except OSError as error:
            raise KafkaFailed(f"{folder} cannot be written: {error}. Free it, or set HEADWATER_CACHE to another folder") from None
    archive = folder / ARCHIVE
    return Prepared(msgspec.structs.replace(jvm, archive=archive if archive.exists() else None), folder / SEED)


def _make(jvm: Jvm, folder: Path, console: Console) -> None:
    """Make both in a temporary folder beside it, then put that in place at once. The caller holds the lock."""
    for left in folder.parent.glob(".preparing-*"):  # by one that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".preparing-", dir=folder.parent) as name:
        work = Path(name)
        made = work / "made"
        made.mkdir()
        settings = BrokerSettings(name="preparation", folder=work, port=free_port())
        settings = msgspec.structs.replace(settings, controller_port=free_port(taken=frozenset({settings.port})))
        properties = work / "server.properties"
        properties.write_text(server_properties(settings), encoding="utf-8")
        with _working(console, f"preparing Apache Kafka {KAFKA_VERSION} (once, some seconds)"):
            _format(jvm, work, properties)
            shutil.copyfile(work / "data" / SEED, made / SEED)
            try:
                _record(jvm, work, properties, settings, made / ARCHIVE)
            except (KafkaFailed, ProcessFailed, OSError) as error:
                (made / ARCHIVE).unlink(missing_ok=True)
                log.warning("no archive of classes could be made, brokers start slower", extra={"cause": str(error)})
        made.rename(folder)
    others = sorted(folder.parent.glob(f"{KAFKA_VERSION}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in others[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def _format(jvm: Jvm, work: Path, properties: Path) -> None:
    options = write_arguments(work / "format.args", jvm.arguments(heap_mb=HEAP_MB, log_path=work / "format.log"))
    argv = [*jvm.command(options, FORMAT), "format", "-t", ANY_CLUSTER, "-c", str(properties)]
    try:
        subprocess.run(argv, capture_output=True, text=True, timeout=FORMAT_TIMEOUT_S, check=True)
    except subprocess.CalledProcessError as error:
        raise KafkaFailed(
            f"Kafka's storage tool failed under {jvm.java.program}: {(error.stderr or error.stdout)[-600:].strip()}"
        ) from None
    except subprocess.TimeoutExpired:
        raise KafkaFailed(f"Kafka's storage tool did not end within {FORMAT_TIMEOUT_S:g} s: is this machine overloaded?") from None


def _record(jvm: Jvm, work: Path, properties: Path, settings: BrokerSettings, archive: Path) -> None:
    """Run a broker until it serves clients and stop it: the JVM writes the classes that were loaded until then."""
    options = write_arguments(work / "java.args", jvm.arguments(heap_mb=HEAP_MB, log_path=work / "broker.log", record=archive))
    argv = jvm.command(options, MAIN, str(properties))
    child = Child("preparation of Kafka", argv, {**os.environ, **ENVIRONMENT}, work / "console.log")
    try:
        child.start()
        wait_ready(settings.host, settings.port, alive=lambda: child.poll() is None, timeout_s=READY_TIMEOUT_S)
    except (TimeoutError, ChildProcessError) as error:
        raise KafkaFailed(f"a first broker did not run: {error}") from None
    finally:
        child.stop(RECORD_TIMEOUT_S)
    if not archive.exists():
        raise KafkaFailed((work / "console.log").read_text(errors="replace")[-300:].strip() or "Java wrote none")


def _key(jvm: Jvm) -> str:
    """What an archive depends on: the Java, the jars as files (a JVM compares their times), the flags."""
    parts = [str(jvm.java.program.resolve()), jvm.java.version, *FLAGS]
    parts += [f"{jar} {jar.stat().st_mtime_ns}" for jar in jvm.jars]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


@contextlib.contextmanager
def _working(console: Console, text: str) -> Iterator[None]:
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        console.print(text)
        yield
