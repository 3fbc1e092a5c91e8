"""The wire itself, a process of its own: packets from one namespace's TUN device to the other's, late, slowly, or not at all.

`python -m infra.faults.network.bridge CONTROL NEAR FAR SEED`: CONTROL is a descriptor of a socket that brings `Order`s and takes
`Counters`; when it closes, the wire ends. Each direction is a queue in front of a rate, then a delay, as in tc-netem(8).
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import select
import socket
import struct
import sys
import time
from random import Random
from typing import Annotated

import msgspec
from msgspec import Meta

DEVICE = "wire0"
MTU = 1500
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_BURST = 64  # packets of one direction before the other is looked at

Share = Annotated[float, Meta(ge=0, le=1)]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What one direction does to packets.

    `loss` and `reorder` are shares of packets; a reordered one overtakes those that are delayed. Jitter is added to the delay, uniformly
    from -jitter to +jitter, and does not reorder. `rate_bytes_per_s` counts IP packets; what does not fit into a queue of `queue_bytes`
    before it is lost. `cut`: nothing passes, and nobody is told.
    """

    delay_ms: Annotated[float, Meta(ge=0, le=60_000)] = 0.0
    jitter_ms: Annotated[float, Meta(ge=0, le=60_000)] = 0.0
    loss: Share = 0.0
    reorder: Share = 0.0
    rate_bytes_per_s: Annotated[int, Meta(ge=1)] | None = None
    queue_bytes: Annotated[int, Meta(ge=MTU)] = 256 << 10
    cut: bool = False


class Traffic(msgspec.Struct, kw_only=True):
    """What passed in one direction since the start, and what did not: `lost` by chance, `overflowed` the queue, `cut` off, `refused` by a
    device that is down."""

    packets: int = 0
    bytes: int = 0
    lost: int = 0
    overflowed: int = 0
    cut: int = 0
    reordered: int = 0
    refused: int = 0


class Counters(msgspec.Struct, kw_only=True):
    """Both directions: `up` from near to far, `down` from far to near."""

    up: Traffic
    down: Traffic


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """How the wire is to be from now on; None leaves a direction as it is. Every order is answered by the counters."""

    up: Line | None = None
    down: Line | None = None


class Direction:
    """One direction: packets come in by `take`, and go out by `give` when they are due."""

    def __init__(self, target: int, random: Random) -> None:
        self.line = Line()
        self.traffic = Traffic()
        self._target, self._random = target, random
        self._queue: list[tuple[float, int, bytes]] = []
        self._number = 0
        self._free_at = 0.0  # when the rate has let everything pass
        self._last_due = 0.0

    def take(self, packet: bytes, now: float) -> None:
        line, traffic = self.line, self.traffic
        if line.cut:
            traffic.cut += 1
            return
        if line.loss and self._random.random() < line.loss:
            traffic.lost += 1
            return
        due = now
        if line.rate_bytes_per_s is not None:
            start = max(now, self._free_at)
            if (start - now) * line.rate_bytes_per_s > line.queue_bytes:
                traffic.overflowed += 1
                return
            due = self._free_at = start + len(packet) / line.rate_bytes_per_s
        if line.reorder and self._random.random() < line.reorder:
            traffic.reordered += 1
        else:
            due += line.delay_ms / 1000
            if line.jitter_ms:
                due += self._random.uniform(-line.jitter_ms, line.jitter_ms) / 1000
            due = self._last_due = max(due, self._last_due, now)
        self._number += 1
        heapq.heappush(self._queue, (due, self._number, packet))

    def give(self, now: float) -> float | None:
        """Send what is due; returns when the next is."""
        queue = self._queue
        while queue and queue[0][0] <= now:
            packet = heapq.heappop(queue)[2]
            if self.line.cut:  # it was on its way when the wire was cut
                self.traffic.cut += 1
                continue
            try:
                os.write(self._target, packet)
            except OSError:  # the device is down (EIO), or its queue is full
                self.traffic.refused += 1
                continue
            self.traffic.packets += 1
            self.traffic.bytes += len(packet)
        return queue[0][0] if queue else None

    def change(self, line: Line) -> None:
        self.line = line
        self._last_due = 0.0


def open_device(namespace: str) -> int:
    """A TUN device in a namespace, read and written without waiting; it is gone when its descriptor is closed."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}", "rb") as there:
        if libc.setns(there.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"namespace {namespace} cannot be entered")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def run(control: socket.socket, near: int, far: int, seed: int) -> None:
    """Carry packets until the control socket closes."""
    up, down = Direction(far, Random(f"{seed}/up")), Direction(near, Random(f"{seed}/down"))  # noqa: S311 - to be repeated
    decoder, encoder = msgspec.json.Decoder(Order), msgspec.json.Encoder()
    poll = select.epoll()
    for descriptor in (near, far, control.fileno()):
        poll.register(descriptor, select.EPOLLIN)
    ways = {near: up, far: down}
    next_due: float | None = None
    while True:
        wait_s = -1.0 if next_due is None else max(0.0, next_due - time.monotonic())
        for descriptor, _ in poll.poll(wait_s):
            way = ways.get(descriptor)
            if way is None:
                if not (message := control.recv(65_536)):
                    return
                order = decoder.decode(message)
                for direction, line in ((up, order.up), (down, order.down)):
                    if line is not None:
                        direction.change(line)
                control.send(encoder.encode(Counters(up=up.traffic, down=down.traffic)))
                continue
            now = time.monotonic()
            try:
                for _ in range(_BURST):
                    way.take(os.read(descriptor, MTU + 64), now)
            except BlockingIOError:
                pass
            except OSError:  # the device was taken down while it was read
                time.sleep(0.001)
        now = time.monotonic()
        dues = [due for direction in (up, down) if (due := direction.give(now)) is not None]
        next_due = min(dues, default=None)


def main(control: str, near: str, far: str, seed: str) -> None:
    devices = open_device(near), open_device(far)
    with socket.socket(fileno=int(control)) as channel:
        channel.send(b"ready")
        run(channel, *devices, int(seed))


if __name__ == "__main__":
    main(*sys.argv[1:])
