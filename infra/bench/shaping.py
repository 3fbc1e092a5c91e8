"""A thin link: a proxy that lets pass so many bytes a second in each direction, over all its connections, and can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import msgspec

from infra.proxy import Proxy, Way

_PACKETS = 4096  # bytes that one connection sends before another has its turn
_FREE = 64 << 10
_BUFFER = 64 << 10  # what waits in front of the thin link, as in a router: the kernel would keep megabytes there on loopback
_SEGMENT = 1460  # as on Ethernet; loopback's segments of 64 KB make the sender's own buffer large


class TokenBucket(msgspec.Struct):
    """So many bytes a second, a burst of `burst_bytes` after a rest. Whoever takes more than there is waits until the debt is paid, and
    who comes next waits longer: first come, first served.

    >>> bucket = TokenBucket(rate_bytes_per_s=1000, burst_bytes=0)
    >>> bucket.take(500, now=10.0), bucket.take(500, now=10.0)
    (0.5, 1.0)
    """

    rate_bytes_per_s: float
    burst_bytes: float
    level: float = 0.0
    at: float | None = None

    def take(self, size: int, now: float) -> float:
        """Take `size` bytes; returns the seconds until they may pass. `now` is a monotonic time."""
        if self.at is None:
            self.level = self.burst_bytes
        else:
            self.level = min(self.burst_bytes, self.level + (now - self.at) * self.rate_bytes_per_s)
        self.at = now
        self.level -= size
        return max(0.0, -self.level / self.rate_bytes_per_s)


class ThinProxy(Proxy):
    """A proxy with a limit of bytes a second in each direction and a short queue before it.

    What waits in front of the limit is bounded to about 128 KB a connection, as a router's queue is. It works on TCP: after a cut,
    connections go on at once, where a real link's would first wait for a retransmission.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(host=host, port=port)
        self._buckets: dict[Way, TokenBucket] = {}
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)  # what it accepts inherits both
        with contextlib.suppress(OSError):  # not every system lets a listener set it
            self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT)

    def limit(self, bytes_per_s: float | None) -> None:
        """Let so much pass in each direction from now on; None: all."""

        def change() -> None:
            burst = max(_PACKETS, (bytes_per_s or 0) * 0.02)
            self._buckets = {way: TokenBucket(bytes_per_s, burst) for way in self.ways.values()} if bytes_per_s else {}

        self._do(change)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(_PACKETS if self._buckets else _FREE):
                await way.open.wait()
                bucket = self._buckets.get(way)
                if bucket is not None and (wait_s := bucket.take(len(chunk), loop.time())) > 0:
                    await asyncio.sleep(wait_s)
                    await way.open.wait()
                writer.write(chunk)
                await writer.drain()
                way.passed += len(chunk)
