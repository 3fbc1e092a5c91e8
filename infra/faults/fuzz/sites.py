"""Harnesses on what a person or another process gives a site: its file, addresses of cameras, video, network streams, lists of labels."""

from __future__ import annotations

import functools
import io
import re
import socket
import threading
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np

from agents.models.labels import read_labels
from infra.faults.fuzz.harness import GAP, harness, must, refusing, text_of
from infra.faults.fuzz.images import jpegs, scratch
from schemas.config import InvalidConfig, SiteConfig, parse
from schemas.config_file import document
from schemas.errors import Fault
from streams.production.address import InvalidAddress, default_name, kind_of, redact
from streams.production.capture import VideoFile
from streams.production.live import NetworkCamera
from streams.production.pictures import CaptureFailed, Look

FRAMES = 8  # that are read of one video


def _configs() -> list[bytes]:
    return [
        document({"name": "leaf-1", "tier": "leaf"}).encode(),
        document({"name": "region-1", "tier": "region", "region": {"sites": ["leaf-1"]}}).encode(),
        b'name = "a"\ntier = "leaf"\n[[rules]]\nname = "r"\nzone = [[0,0],[1,0],[1,1]]\n[link.region]\nproperties = {"a" = "${HOME}"}\n',
        b'name = "a"\ntier = "leaf"\n[metrics.ports]\nagent = 99999\n',
        b"a = 1e999\nb = 0001-01-01T00:00:00-23:59\n",
    ]


@harness("config", _configs, cost=1.0)
def config(data: bytes) -> None:
    with refusing(InvalidConfig):
        must(isinstance(parse(text_of(data), {"HOME": "/x"}), SiteConfig), "not a site")


@harness(
    "camera-address",
    [
        b"rtsp://joe:s3cret-word@10.0.0.7:554/stream1?token=another",
        b"0",
        b"/videos/Gate 3.mp4",
        b"http://[::1",
        b"rtsp://a:b@c@d/?x#y",
        b"x://y",
    ],
    cost=0.2,
)
def camera_address(data: bytes) -> None:
    text = text_of(data)
    with refusing(InvalidAddress):
        kind_of(text)
        must(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", default_name(text)), f"not the name of a source: {default_name(text)!r}")
    hidden = re.sub(r"[\s'\"@?#/]", "", text)[:24] or "x"
    address = f"rtsp://joe:{hidden}zq@cam/1"
    must(f"{hidden}zq" not in redact(f"cannot open {address}: {address}", address), "a password is shown")
    must(f"{hidden}zq" not in redact(f"refused: {address}."), "a password in a text is shown")
    redact(text), redact(text, text)


def videos() -> list[bytes]:
    """Small videos in several containers, and files that only look like some."""
    import av

    found = []
    for container, codec in (
        ("mp4", "mpeg4"),
        ("matroska", "mpeg4"),
        ("mpegts", "mpeg2video"),
        ("avi", "mjpeg"),
        ("mjpeg", "mjpeg"),
        ("gif", "gif"),
    ):
        file = io.BytesIO()
        with av.open(file, "w", format=container) as output:
            stream: Any = output.add_stream(codec, rate=Fraction(10))
            stream.width, stream.height = 64, 48
            stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
            for number in range(4):
                pixels = np.full((48, 64, 3), number * 50, np.uint8)
                pixels[number * 8 : number * 8 + 8, :32] = 255
                output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            output.mux(stream.encode(None))
        found.append(file.getvalue())
    return [
        *found,
        jpegs()[0],
        b"YUV4MPEG2 W16 H16 F10:1\nFRAME\n" + b"\x80" * 384,
        b"only text\n" * 20,
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"",
    ]


@harness("video", videos, cost=4.0)
def video(data: bytes) -> None:
    path = scratch() / "video.bin"
    path.write_bytes(data)
    with refusing(CaptureFailed):
        for picture in islice(VideoFile(path, Look(width=64)).pictures(), FRAMES):
            must(picture.jpeg and picture.width == 64, "not the picture that was asked for")


class _Server:
    """Answers every connection with the parts of an input: one a request, and closes after the last."""

    def __init__(self) -> None:
        self.replies: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(0.5)
                try:
                    for reply in self.replies:
                        if not connection.recv(65_536):
                            break
                        connection.sendall(reply)
                except OSError:
                    continue


@functools.cache
def _server() -> _Server:
    return _Server()


def _streams() -> list[bytes]:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n"
    shot = jpegs()[0]
    part = b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(shot), shot)
    sdp = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nm=video 0 RTP/AVP 26\r\na=control:track1\r\n"
    describe = b"RTSP/1.0 200 OK\r\nCSeq: 2\r\nContent-Type: application/sdp\r\nContent-Length: %d\r\n\r\n%s" % (len(sdp), sdp)
    setup = b"RTSP/1.0 200 OK\r\nCSeq: 3\r\nSession: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n"
    options = b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nPublic: OPTIONS, DESCRIBE, SETUP, PLAY\r\n\r\n"
    play = b"RTSP/1.0 200 OK\r\nCSeq: 4\r\nSession: 1\r\n\r\n$\0\0\x20" + b"\x80\x1a" + b"\0" * 30
    videos_found = videos()
    return [
        GAP.join((b"http", head + part * 3)),
        GAP.join((b"http", b"HTTP/1.0 200 OK\r\n\r\n" + videos_found[2])),
        GAP.join((b"http", b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n" + videos_found[0])),
        GAP.join((b"http", b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n")),
        GAP.join((b"http", b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=x\r\n\r\n")),
        GAP.join((b"rtsp", options, describe, setup, play)),
        GAP.join((b"rtsp", b"RTSP/1.0 404 Not Found\r\nCSeq: 1\r\n\r\n")),
    ]


@harness("camera-stream", _streams, cost=25.0)
def camera_stream(data: bytes) -> None:
    scheme, *replies = data.split(GAP)
    server = _server()
    server.replies = replies or [scheme]
    url = f"{'rtsp' if scheme == b'rtsp' else 'http'}://joe:s3cret-word@127.0.0.1:{server.port}/1?token=another-word"
    try:
        connection = NetworkCamera(url, Look(width=64), timeout_s=0.5).connect()
        try:
            for frame in islice(connection.frames(), 3):
                connection.picture(frame)
        finally:
            connection.close()
    except CaptureFailed as error:
        must("s3cret-word" not in str(error) and "another-word" not in str(error), f"a secret is shown: {error}")


@harness("labels", [b"person\ncar\n", b"\xef\xbb\xbfa\r\n\r\nb", b"", b"\xff"])
def labels(data: bytes) -> None:
    path = scratch() / "labels.txt"
    path.write_bytes(data)
    with refusing(Fault):
        must(all(isinstance(name, str) for name in read_labels(path)), "a label that is no text")
