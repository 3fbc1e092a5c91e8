"""`headwater produce` as a person and a program see it: a process of its own, a real Kafka, its output, its exit code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from confluent_kafka import Consumer, TopicPartition

from schemas.config import Kafka, parse
from streams.clients import Clients
from streams.cluster import create_topics
from streams.topology import Topology

FRAMES, FPS = 12, 12
SECRET = "s3cret-pass"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "Gate 3.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(FRAMES):
            pixels = np.full((120, 160, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def site(kafka: Kafka, prefix: str, tmp_path: Path) -> Path:
    """A leaf's file, whose topics exist."""
    text = f"""
name = "hall"
tier = "leaf"
[kafka]
bootstrap_servers = "{kafka.bootstrap_servers}"
[topics]
prefix = "{prefix}"
partitions = 1
"""
    path = tmp_path / "site.toml"
    path.write_text(text)
    config = parse(text, {})
    create_topics(Topology(config), Clients(kafka, "test"))
    return path


def command(*arguments: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "infra.cli", "produce", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "HEADWATER_CONFIG": ""} if cwd is None else {k: v for k, v in os.environ.items() if k != "HEADWATER_CONFIG"},
    )


def run(*arguments: str | Path, cwd: Path | None = None, timeout_s: float = 60.0) -> tuple[int, str, str]:
    process = command(*arguments, cwd=cwd)
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    return process.returncode, out, err


def read_all(kafka: Kafka, topic: str) -> list[Any]:
    """Every record of a topic of one partition, with librdkafka alone."""
    reader = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": uuid.uuid4().hex, "enable.auto.commit": False})
    place = TopicPartition(topic, 0, 0)
    _, high = reader.get_watermark_offsets(place, timeout=10)
    reader.assign([place])
    records: list[Any] = []
    deadline = time.monotonic() + 30
    while len(records) < high:
        assert time.monotonic() < deadline, f"{topic} was not read to its end"
        if (message := reader.poll(1.0)) is not None:
            assert message.error() is None, message.error()
            records.append(message)
    reader.close()
    return records


def names(records: list[Any]) -> list[str]:
    return [dict(record.headers())["ce_id"].decode() for record in records]


def marks(kafka: Kafka, prefix: str) -> list[dict[str, Any]]:
    return [json.loads(record.value()) for record in read_all(kafka, f"{prefix}epochs")]


def wait_for(condition: Callable[[], bool], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.05)


def test_a_file_is_published_once_and_the_summary_tells_it(video: Path, site: Path, kafka: Kafka, prefix: str, tmp_path: Path) -> None:
    code, out, err = run("video", video, "-c", site, "--manifest", tmp_path / "m.jsonl")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].split() == ["Gate-3", str(FRAMES), str(FRAMES), "0", "0", "0.0", "1"]
    records = read_all(kafka, f"{prefix}frames")
    listed = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert names(records) == [f"{line['source']}/{line['epoch']}/{line['sequence']}" for line in listed]
    assert [hashlib.sha256(record.value()).hexdigest() for record in records] == [line["sha256"] for line in listed]
    assert [dict(record.headers())["ce_time"].decode() for record in records] == [line["captured_at"] for line in listed]
    assert [line["sequence"] for line in listed] == list(range(FRAMES))
    assert marks(kafka, prefix)[-1]["state"] == "ended"


def test_programs_get_json_lines_and_a_summary(video: Path, site: Path, kafka: Kafka, prefix: str) -> None:
    arguments = ["--loop", "--preload", "--fps", "40", "--seconds", "2.5", "--stagger", "0.5", "--name", "a", "--name", "b", "--json"]
    code, out, err = run("video", video, video, "-c", site, *arguments)
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["type"] for line in lines] == ["counters"] * (len(lines) - 1) + ["summary"]
    assert len(lines) >= 3
    summary = lines[-1]
    assert set(summary["sources"]) == {"a", "b"}
    assert summary["frames"] == summary["acknowledged"] == len(read_all(kafka, f"{prefix}frames"))
    assert (summary["dropped"], summary["open"], summary["unaccounted"]) == (0, 0, [])
    assert all(0 < source["frames"] <= 101 for source in summary["sources"].values())
    assert all(mark["fps"] == 40 for mark in marks(kafka, prefix))
    values = {name.rpartition("/")[2]: record.value() for record, name in zip(*_of("b", kafka, prefix), strict=True)}
    first = next(record.value() for record in _of("a", kafka, prefix)[0])
    assert values["6"] == first  # b began half a second in, which is six frames of twelve


def _of(source: str, kafka: Kafka, prefix: str) -> tuple[list[Any], list[str]]:
    records = [record for record in read_all(kafka, f"{prefix}frames") if record.key() == source.encode()]
    return records, names(records)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_cleanly(video: Path, site: Path, kafka: Kafka, prefix: str, number: int, code: int) -> None:
    process = command("video", video, "-c", site, "--loop", "--fps", "15", "--json")
    try:
        wait_for(lambda: len(read_all(kafka, f"{prefix}frames")) > 10)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    told = [line for line in err.splitlines() if not line.startswith("{")]  # on a slow machine frames may be dropped, and said to be
    assert told == (["interrupted"] if code else [])
    summary = json.loads(out.splitlines()[-1])
    stored = names(read_all(kafka, f"{prefix}frames"))
    assert summary["type"] == "summary"
    assert summary["frames"] == len(stored) + summary["dropped"]
    assert summary["acknowledged"] == len(stored) == len(set(stored))
    last = marks(kafka, prefix)[-1]
    assert (last["state"], last["assigned"], last["acknowledged"]) == ("ended", summary["frames"], summary["frames"])


def test_a_folder_of_images(site: Path, kafka: Kafka, prefix: str, tmp_path: Path) -> None:
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name in ("b.jpg", "a.jpg"):
        cv2.imwrite(str(folder / name), np.full((32, 32, 3), ord(name[0]), np.uint8))
    code, out, err = run("images", folder, "-c", site, "--fps", "50", "--loop", "--frames", "5")
    assert (code, err) == (0, "")
    a, b = ((folder / name).read_bytes() for name in ("a.jpg", "b.jpg"))
    assert [record.value() for record in read_all(kafka, f"{prefix}frames")] == [a, b, a, b, a]
    assert "shelf" in out


def test_bootstrap_servers_are_enough(video: Path, kafka: Kafka, tmp_path: Path) -> None:
    create_topics(Topology(parse('name = "local"\ntier = "leaf"', {})), Clients(kafka, "test"))
    code, _, err = run("video", video, "--bootstrap-servers", kafka.bootstrap_servers, "--name", "bare", "--frames", "3", cwd=tmp_path)
    assert (code, err) == (0, "")
    reader = Clients(kafka, "test").consumer(None)
    with contextlib.closing(reader):
        partitions = reader.list_topics("frames", timeout=10).topics["frames"].partitions
        assert sum(reader.get_watermark_offsets(TopicPartition("frames", number), timeout=10)[1] for number in partitions) >= 3


# ---- what goes wrong


@pytest.fixture
def refusing() -> Iterator[int]:
    """An HTTP server that knows nobody; its answer repeats what it was asked, credentials and all."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                asked = client.recv(4096)
                client.sendall(b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm="x"\r\nConnection: close\r\n\r\n' + asked)

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


@pytest.mark.parametrize("as_json", [False, True])
def test_credentials_are_never_shown(site: Path, refusing: int, *, as_json: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    urls = [f"http://joe:{SECRET}@127.0.0.1:{refusing}/live?token={SECRET}", f"rtsp://joe:{SECRET}@127.0.0.1:{closed}/1"]
    code, out, err = run("video", *urls, "-c", site, "--seconds", "1.5", *(["--json"] if as_json else []))
    assert code == 0
    assert "401" in err
    assert "refused" in err
    assert err.count("trying again") == 2
    for text in (SECRET, "joe"):
        assert text not in out + err
    code, out, err = run("video", urls[0], "-c", site, "--once")
    assert code == 1
    assert "401" in err
    assert "***@127.0.0.1" in err
    assert SECRET not in out + err


def test_bad_sources_are_told_in_one_line(site: Path, video: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, said in [
        (("video", "nope.mp4"), "nope.mp4: there is no such file"),
        (("video", tmp_path), "headwater produce images"),
        (("video", site), "not a video"),
        (("video", "97"), "camera 97: there is no such camera"),
        (("video", "file:///etc/passwd"), "file:// is not read"),
        (("images", tmp_path / "empty"), "no image in it"),
        (("images", tmp_path / "nope"), "no such folder"),
        (("video", video, "--manifest", "/nope/m.jsonl"), "--manifest /nope/m.jsonl: No such file"),
    ]:
        code, out, err = run(*arguments, "-c", site)
        assert (code, out) == (1, ""), arguments
        assert err.startswith("headwater: ")
        assert said in err
        assert len(err.splitlines()) == 1, err


def test_one_source_that_fails_does_not_stop_the_others(site: Path, video: Path, kafka: Kafka, prefix: str) -> None:
    code, out, err = run("video", video, "97", "-c", site, "--loop", "--seconds", "2")
    assert code == 1
    assert [line.partition(":")[0] for line in err.splitlines()] == ["camera-97", "headwater"]
    assert FPS < len(read_all(kafka, f"{prefix}frames")) <= 2 * FPS + 1
    assert "Gate-3" in out


@pytest.fixture(scope="module", autouse=True)
def lonely(video: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A command without a broker. It waits for one for ten seconds, so it is started beside the other tests."""
    process = command("video", video, "--bootstrap-servers", "127.0.0.1:1", cwd=tmp_path_factory.mktemp("lonely"))
    yield process
    process.kill()


def test_a_broker_that_is_not_there_is_told_in_one_line(lonely: subprocess.Popen[str]) -> None:
    out, err = lonely.communicate(timeout=60)
    assert (lonely.returncode, out) == (1, "")
    assert err.startswith("headwater: no Kafka broker answered at 127.0.0.1:1 within 10 s")
    assert len(err.splitlines()) == 1


def test_a_cluster_that_lacks_something_is_told_in_one_line(video: Path, site: Path, prefix: str, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(site.read_text().replace(prefix, "never-made."))
    code, out, err = run("video", video, "-c", other)
    assert (code, out) == (1, "")
    assert "never-made.frames" in err
    assert "headwater topology create" in err
    assert len(err.splitlines()) == 1
    region = tmp_path / "region.toml"
    region.write_text(site.read_text().replace('tier = "leaf"', 'tier = "region"') + '[region]\nsites = ["gate"]\n')
    assert "frames go to a leaf" in run("video", video, "-c", region)[2]
    assert "--bootstrap-servers HOST:PORT" in run("video", video, cwd=tmp_path)[2]


def test_wrong_usage_is_told_with_code_2(video: Path, site: Path) -> None:
    for arguments, said in [
        ((video, video, "--name", "a"), "1 --name for 2 sources"),
        ((video, video, "--name", "a", "--name", "a"), "name of its own"),
        ((video, "--name", "a b"), "letters, digits"),
        ((video, "--bootstrap-servers", "here"), "host:port"),
        ((video, "--quality", "0"), "--quality"),
        ((), "SOURCE"),
    ]:
        code, out, err = run("video", *arguments, "-c", site)
        assert (code, out) == (2, "")
        assert said in err
