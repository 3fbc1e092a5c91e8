"""Live cameras: a real RTSP server (MPEG-TS over RTP over TCP, Basic authentication) that breaks off; secrets stay hidden."""

from __future__ import annotations

import base64
import io
import json
import logging
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np
import pytest
from confluent_kafka import Consumer, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import Kafka, SiteConfig, Topics
from schemas.identity import RecordId
from streams.clients import Clients
from streams.cluster import create_topics
from streams.production.feed import LiveFeed, Until, backoff_s
from streams.production.live import AttachedCamera, Connection, NetworkCamera, Newest
from streams.production.pictures import CaptureFailed, Look, jpeg_size
from streams.production.publisher import FramePublisher
from streams.topology import Topology

USER, PASSWORD = "joe", "s3cret-pass"


def transport_stream(frames: int, fps: int = 25) -> bytes:
    """A short MPEG transport stream."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 160, 120, "yuv420p", 5
        for number in range(frames):
            pixels = np.full((120, 160, 3), number * 5 % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


class RtspServer:
    """Serves one stream to whoever knows the password, and breaks off at its end without a word, as a camera does that loses power."""

    def __init__(self, video: bytes, seconds: float) -> None:
        self.video = video
        self.seconds = seconds
        self.plays = 0
        self.refused = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, user: str = USER, password: str = PASSWORD) -> str:
        return f"rtsp://{user}:{password}@127.0.0.1:{self.port}/stream1?token=abcdef"

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        right = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        with client, client.makefile("rb") as lines:
            while request := lines.readline().split():
                headers = {}
                while line := lines.readline().strip():
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                verb = request[0].decode()
                answer = {"CSeq": headers.get("cseq", "0"), "Session": "1"}
                body, status = b"", "200 OK"
                if verb == "OPTIONS":
                    answer["Public"] = "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"
                elif headers.get("authorization") != right:
                    status, answer["WWW-Authenticate"] = "401 Unauthorized", 'Basic realm="camera"'
                    self.refused += 1
                elif verb == "DESCRIBE":
                    body = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=t\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track0\r\n"
                    answer |= {"Content-Type": "application/sdp", "Content-Length": str(len(body))}
                elif verb == "SETUP":
                    answer["Transport"] = "RTP/AVP/TCP;unicast;interleaved=0-1"
                head = "".join(f"{name}: {value}\r\n" for name, value in answer.items())
                client.sendall(f"RTSP/1.0 {status}\r\n{head}\r\n".encode() + body)
                if verb == "PLAY" and status == "200 OK":
                    self.plays += 1
                    self._play(client)
                    return

    def _play(self, client: socket.socket) -> None:
        packets = [self.video[at : at + 7 * 188] for at in range(0, len(self.video), 7 * 188)]
        began = time.monotonic()
        try:
            for number, payload in enumerate(packets):
                due = began + self.seconds * number / len(packets)
                time.sleep(max(0.0, due - time.monotonic()))
                rtp = struct.pack(">BBHII", 0x80, 33, number & 0xFFFF, int((due - began) * 90_000), 7) + payload
                client.sendall(b"$\x00" + struct.pack(">H", len(rtp)) + rtp)
        except OSError:
            pass


@pytest.fixture(scope="module")
def server() -> Iterator[RtspServer]:
    server = RtspServer(transport_stream(75), seconds=2.0)
    yield server
    server.close()


@pytest.fixture
def publisher(kafka: Kafka, prefix: str) -> Iterator[FramePublisher]:
    config = SiteConfig(name="hall", tier="leaf", kafka=kafka, topics=Topics(prefix=prefix, partitions=1))
    create_topics(Topology(config), Clients(kafka, "test"))
    with FramePublisher(Clients(kafka, "test"), Topology(config)) as publisher:
        yield publisher


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


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.02)


def feed_of(publisher: FramePublisher, camera: Any, **options: Any) -> LiveFeed:
    feed = LiveFeed(publisher.source("gate"), camera, options.pop("until", Until()), **options)
    feed.start()
    return feed


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_a_stream_that_breaks_off_is_connected_to_again_as_a_new_epoch(
    server: RtspServer, publisher: FramePublisher, kafka: Kafka, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    plays = server.plays
    feed = feed_of(publisher, NetworkCamera(server.url(), Look(width=80), timeout_s=5.0))
    wait_for(lambda: server.plays - plays >= 2 and feed.producer.counters().epochs >= 2)
    feed.stop()
    assert feed.join(5.0)
    assert feed.error is None
    assert publisher.close() == []
    ids = [RecordId.parse(dict(record.headers())["ce_id"].decode()) for record in read_all(kafka, f"{prefix}frames")]
    epochs = list(dict.fromkeys(name.epoch for name in ids))
    assert len(epochs) >= 2
    for epoch in epochs:
        numbers = [name.sequence for name in ids if name.epoch == epoch]
        assert numbers == list(range(len(numbers)))
        told = [mark for mark in (json.loads(record.value()) for record in read_all(kafka, f"{prefix}epochs")) if mark["epoch"] == epoch]
        assert told[0]["state"] == "started"
        assert (told[0]["width"], told[0]["height"]) == (80, 60)
        assert (told[-1]["state"], told[-1]["acknowledged"]) == ("ended", len(numbers))
    assert all(jpeg_size(record.value()) == (80, 60) for record in read_all(kafka, f"{prefix}frames"))
    assert "rtsp://***@127.0.0.1" in caplog.text
    assert PASSWORD not in caplog.text
    assert "abcdef" not in caplog.text


def test_once_ends_when_the_stream_does(server: RtspServer, publisher: FramePublisher) -> None:
    feed = feed_of(publisher, NetworkCamera(server.url(), Look(), timeout_s=5.0), once=True)
    assert feed.join(20.0)
    assert feed.producer.counters().epochs == 1
    assert feed.producer.counters().assigned > 10


def test_a_rate_is_a_limit(server: RtspServer, publisher: FramePublisher) -> None:
    feed = feed_of(publisher, NetworkCamera(server.url(), Look(), timeout_s=5.0), once=True, fps=5.0)
    assert feed.join(20.0)
    assert 1 <= feed.producer.counters().assigned <= 25  # of 75 frames in 2 s and a little
    assert feed.skipped > 40


def test_a_wrong_password_is_told_without_it(server: RtspServer) -> None:
    refused = server.refused
    with pytest.raises(CaptureFailed) as caught:
        NetworkCamera(server.url(password="wrong-secret"), Look(), timeout_s=5.0).connect()
    assert server.refused > refused
    assert "401" in str(caught.value)
    assert "wrong-secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_once_fails_where_nothing_answers(publisher: FramePublisher) -> None:
    feed = feed_of(publisher, NetworkCamera(f"rtsp://{USER}:{PASSWORD}@127.0.0.1:{closed_port()}/x", Look()), once=True)
    assert feed.join(10.0)
    assert isinstance(feed.error, CaptureFailed)
    assert "refused" in str(feed.error)
    assert PASSWORD not in str(feed.error)


class Counted:
    """A camera that counts how often it is connected to."""

    def __init__(self, camera: NetworkCamera) -> None:
        self.camera, self.shown, self.attached, self.attempts = camera, camera.shown, camera.attached, 0

    def connect(self) -> Connection:
        self.attempts += 1
        return self.camera.connect()


def test_it_keeps_trying_and_says_so_once(publisher: FramePublisher, caplog: pytest.LogCaptureFixture) -> None:
    camera = Counted(NetworkCamera(f"rtsp://{USER}:{PASSWORD}@127.0.0.1:{closed_port()}/x", Look()))
    feed = feed_of(publisher, camera)
    wait_for(lambda: camera.attempts >= 3)
    feed.stop()
    assert feed.join(5.0)
    assert feed.error is None
    assert caplog.text.count("trying again") == 1


def test_a_camera_that_is_not_there_fails_at_once(publisher: FramePublisher, capfd: pytest.CaptureFixture[str]) -> None:
    feed = feed_of(publisher, AttachedCamera(97, Look()))
    assert feed.join(10.0)
    assert isinstance(feed.error, CaptureFailed)
    assert "camera 97: there is no such camera" in str(feed.error)
    assert capfd.readouterr().err == ""


class Paced:
    """A camera whose frames are numbers, handed out when the test says so."""

    fps = 0.0

    def __init__(self) -> None:
        self.ready = threading.Semaphore(0)
        self.number = 0
        self.over = False
        self.closed = False

    def frames(self) -> Iterator[int]:
        while True:
            self.ready.acquire()
            if self.over:
                return
            self.number += 1
            yield self.number

    def close(self) -> None:
        self.closed = True


def test_a_camera_that_falls_silent_is_given_up_and_connected_to_again(publisher: FramePublisher, caplog: pytest.LogCaptureFixture) -> None:
    connections: list[Paced] = []

    class Silent:
        shown, attached = "the silent one", False

        def connect(self) -> Paced:
            connections.append(Paced())
            return connections[-1]

    feed = feed_of(publisher, Silent(), silent_s=0.2)
    wait_for(lambda: len(connections) >= 2)
    feed.stop()
    assert feed.join(5.0)
    assert "the silent one: no frame came for 0.2 s; trying again" in caplog.text
    for connection in connections:
        connection.over = True
        connection.ready.release()
    wait_for(lambda: all(connection.closed for connection in connections))
    assert feed.producer.counters().epochs == 0


def test_only_the_newest_frame_is_kept() -> None:
    camera = Paced()
    newest = Newest(camera, "gate")  # type: ignore[arg-type]
    for _ in range(5):
        camera.ready.release()
    wait_for(lambda: newest.overwritten == 4)
    taken = newest.take(1.0)
    assert taken is not None
    assert taken[1] == 5
    assert newest.take(0.0) is None
    camera.over = True
    camera.ready.release()
    wait_for(lambda: newest.ended and camera.closed)


@given(attempt=st.integers(0, 10_000), chance=st.floats(0, 1))
def test_backoff_grows_to_a_limit_and_is_spread(attempt: int, chance: float) -> None:
    full = backoff_s(attempt, 1.0)
    assert full / 2 <= backoff_s(attempt, chance) <= full <= 15.0
    assert backoff_s(attempt + 1, chance) >= backoff_s(attempt, chance)
