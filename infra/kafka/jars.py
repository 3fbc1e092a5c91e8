"""Apache Kafka's jars: fetched once from the Maven repository by jgo, checked by digest, kept in the cache, then used without a network.

`broker.sha256` (the form of `sha256sum`) is the lock file: every jar with its path in a Maven repository, as Maven itself resolves
`kafka_2.13:4.3.1` with `log4j-slf4j-impl:2.25.3`. `connect.sha256` is what Kafka Connect and MirrorMaker 2 need beside those:
`connect-runtime`, `-json`, `-file`, `-transforms`, `-mirror` and `-mirror-client`, resolved together with the broker. Nothing is resolved
here: jgo's own resolver takes kafka-clients 3.9.1 from a parent of log4j, which does not belong to this broker.
HEADWATER_MAVEN names another repository, such as a company's mirror; the digests hold whatever the source.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.resources import files
from pathlib import Path, PurePosixPath

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from infra.kafka import KafkaFailed, locks

log = logging.getLogger("headwater.kafka.jars")

KAFKA_VERSION = "4.3.1"
FETCHES_AT_ONCE = 4
FETCH_TIMEOUT_S = 20
TRIES, PAUSE_S = 3, 1.0
LOCK_TIMEOUT_S = 600.0


class JarsUnavailable(KafkaFailed):
    """Kafka's jars are not here and cannot be fetched, or are not what they must be; the message says what to do."""


class Jar(msgspec.Struct, frozen=True):
    """One jar: its path in a Maven repository and its SHA-256 in hexadecimal."""

    path: str
    sha256: str

    @property
    def coordinates(self) -> tuple[str, str, str]:
        """Group, artifact and version."""
        *group, artifact, version, _ = PurePosixPath(self.path).parts
        return ".".join(group), artifact, version


def locked_jars(text: str | None = None) -> tuple[Jar, ...]:
    """The jars of a lock file in the form of `sha256sum`; by default the broker's, in class path order."""
    lines = (text if text is not None else files("infra.kafka").joinpath("broker.sha256").read_text()).splitlines()
    return tuple(Jar(path.strip(), digest) for digest, path in (line.split(maxsplit=1) for line in lines if line.strip()))


def connect_jars() -> tuple[Jar, ...]:
    """What Kafka Connect and MirrorMaker 2 need, the broker's jars included, in class path order."""
    return (*locked_jars(), *locked_jars(files("infra.kafka").joinpath("connect.sha256").read_text()))


def fetch_jars(
    cache: Path,
    jars: tuple[Jar, ...] | None = None,
    *,
    console: Console | None = None,
    repository: str | None = None,
    what: str = "Apache Kafka",
) -> tuple[Path, ...]:
    """The jars' paths under `cache/maven`; fetches what is missing, checks all of them (about 0.1 s).

    Parameters
    ----------
    jars
        Those of a lock file; None: the broker's.
    console
        Where progress is shown: a bar on a terminal, else one line. None: standard error.
    repository
        Address of a Maven repository; None: HEADWATER_MAVEN, else the one that Maven uses.
    what
        What the jars are, for people.

    Raises
    ------
    JarsUnavailable
        If the network, the disk or a digest fails.
    """
    jars = locked_jars() if jars is None else jars
    console = console or Console(stderr=True, highlight=False)
    repository = repository or os.environ.get("HEADWATER_MAVEN")
    folder = cache / "maven"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(_missing(folder, jars)):
            with locks.held(folder / ".lock", timeout_s=LOCK_TIMEOUT_S):
                # asked again: another process may have fetched them meanwhile
                _fetch(folder, tuple(_missing(folder, jars)), console, repository, f"{what} {KAFKA_VERSION}")
    except locks.Locked:
        raise JarsUnavailable(f"another process has been fetching into {folder} for {LOCK_TIMEOUT_S:g} s: wait for it, or end it") from None
    except OSError as error:
        raise JarsUnavailable(
            f"Kafka's jars cannot be kept in {folder}: {error}. Free it, or set HEADWATER_CACHE to another folder"
        ) from None
    return tuple(folder / jar.path for jar in jars)


def _missing(folder: Path, jars: tuple[Jar, ...]) -> Iterator[Jar]:
    """Jars that are not there, or are not what they must be."""
    for jar in jars:
        try:
            whole = _sha256(folder / jar.path) == jar.sha256
        except FileNotFoundError:
            whole = False
        if not whole:
            yield jar


def _fetch(folder: Path, jars: tuple[Jar, ...], console: Console, repository: str | None, what: str) -> None:
    if not jars:
        return
    if not console.is_terminal:
        console.print(f"fetching {what} ({len(jars)} jars, once)")
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("jars, {task.fields[mb]:.1f} MB"),
    )
    staging = folder / ".incoming"
    shutil.rmtree(staging, ignore_errors=True)  # what a killed fetch left
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"fetching {what}", total=len(jars), mb=0.0)
        fetched_bytes = 0
        with ThreadPoolExecutor(FETCHES_AT_ONCE) as pool:
            futures = [pool.submit(_fetch_one, folder, staging, jar, repository) for jar in jars]
            try:
                for future in as_completed(futures):
                    fetched_bytes += future.result()
                    progress.update(task, advance=1, mb=fetched_bytes / 1e6)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    shutil.rmtree(staging, ignore_errors=True)


def _fetch_one(folder: Path, staging: Path, jar: Jar, repository: str | None) -> int:
    """Fetch, check, and only then put in place; returns its size in bytes."""
    try:
        from jgo.maven import MavenContext
    except ImportError:
        raise JarsUnavailable("fetching Kafka's jars needs the package jgo: `pip install 'headwater[kafka]'`") from None
    group, artifact, version = jar.coordinates
    remotes = {"repository": repository.rstrip("/")} if repository else None
    context = MavenContext(repo_cache=staging, remote_repos=remotes, timeout=FETCH_TIMEOUT_S)
    damaged = (folder / jar.path).exists()
    if damaged:
        log.warning("a jar in the cache is damaged, fetching it again", extra={"jar": jar.path})
    for attempt in range(1, TRIES + 1):
        try:
            fetched = context.project(group, artifact).at_version(version).artifact().resolve()
            break
        except (RuntimeError, OSError) as error:  # the HTTP client's errors are OSErrors without a number
            if isinstance(error, OSError) and error.errno is not None:
                raise
            (staging / jar.path).unlink(missing_ok=True)  # half of it, else it counts as fetched
            if attempt == TRIES:
                raise JarsUnavailable(
                    f"{artifact}-{version}.jar {'in the cache is damaged and ' if damaged else ''}cannot be fetched ({_short(error)}). "
                    "Only the first start needs the network: check the connection, the proxy (HTTPS_PROXY) or the mirror "
                    "(HEADWATER_MAVEN), and try again"
                ) from None
            time.sleep(attempt * PAUSE_S)
    digest = _sha256(fetched)
    if digest != jar.sha256:
        fetched.unlink()
        raise JarsUnavailable(
            f"{artifact}-{version}.jar as fetched has the SHA-256 {digest}, but {jar.sha256} is expected: it was refused. "
            "Something between here and the Maven repository changed it (a proxy, a mirror)"
        )
    target = folder / jar.path
    target.parent.mkdir(parents=True, exist_ok=True)
    fetched.replace(target)
    return target.stat().st_size


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _short(error: BaseException) -> str:
    """The cause in a few words: requests' messages carry whole addresses."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None and inner is not cause:
        cause = inner
    text = str(cause).split("://")[0]
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__
