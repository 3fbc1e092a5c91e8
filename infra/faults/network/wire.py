"""A wire between two namespaces, and its handles: what it does to packets can be changed while it carries them.

Two sites in two networks, on one machine:

    with Wire(delay_ms=40, loss=0.01) as wire:
        with wire.far.inside():
            broker.start()
        wire.cut()
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, Self

import msgspec

from infra.faults.network import NetworkUnavailable, namespaces
from infra.faults.network.bridge import DEVICE, MTU, Counters, Line, Order, Traffic
from infra.faults.network.namespaces import Namespace, ip
from infra.processes import Child

__all__ = ["Counters", "Line", "Traffic", "Wire"]

log = logging.getLogger("headwater.network")

NEAR, FAR = "198.18.0.1", "198.18.0.2"  # of the range for benchmarks (RFC 2544): they exist in the namespaces only
ANSWER_S = 10.0
Way = Literal["up", "down"]  # up: from near to far; down: from far to near


class Wire:
    """Two namespaces and the wire between them: `start` and `stop`, or a `with` block.

    Parameters
    ----------
    seed
        Where the wire's chance begins.
    **line
        Fields of `Line`, for both directions; `set` changes them.

    Attributes
    ----------
    near, far
        The namespaces: the leaf's side and the region's.

    Raises
    ------
    NetworkUnavailable
        When it is started where networks cannot be made: not root, no `ip`, no `/dev/net/tun`.
    """

    def __init__(self, *, seed: int = 1, **line: Any) -> None:
        self.up = self.down = msgspec.convert(line, Line, strict=True)
        if unknown := set(line) - set(Line.__struct_fields__):
            raise ValueError(f"a line has no {', '.join(sorted(unknown))}")
        self.near: Namespace
        self.far: Namespace
        self._seed = seed
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._control: socket.socket | None = None

    def start(self) -> Self:
        """Make the namespaces and the wire; sweeps up first what killed processes of ours left behind."""
        namespaces.check()
        namespaces.sweep()
        self.near, self.far = namespaces.pair(NEAR, FAR)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._control = ours
            ours.settimeout(ANSWER_S)
            with theirs:
                argv = [
                    sys.executable,
                    "-m",
                    "infra.faults.network.bridge",
                    str(theirs.fileno()),
                    self.near.name,
                    self.far.name,
                    str(self._seed),
                ]
                self._child = Child("wire", argv, nice=-5, grace_s=1.0, pass_fds=[theirs.fileno()]).start()
            if self._receive() != b"ready":
                raise NetworkUnavailable("the wire did not start: what it said is above")
            for here, there in ((self.near, self.far), (self.far, self.near)):
                ip("addr", "add", here.address, "peer", there.address, "dev", DEVICE, namespace=here.name)
                ip("link", "set", DEVICE, "mtu", str(MTU), "txqueuelen", "2000", "up", namespace=here.name)
            self._order(Order(up=self.up, down=self.down))
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the wire and remove the namespaces, with whatever still runs in them."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._child is not None:
            self._child.stop(2.0)
            self._child = None
        with contextlib.ExitStack() as stack:
            for space in (getattr(self, "far", None), getattr(self, "near", None)):
                if space is not None:
                    stack.callback(namespaces.remove, space.name)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def set(self, way: Way | None = None, **changes: Any) -> None:
        """Change fields of `Line`, in one direction or both, from now on; packets on their way keep their time."""
        with self._lock:
            if way in ("up", None):
                self.up = _changed(self.up, changes)
            if way in ("down", None):
                self.down = _changed(self.down, changes)
            self._order(Order(up=self.up, down=self.down))

    def cut(self, way: Way | None = None) -> None:
        """Let nothing pass any more; nothing is closed and nobody is told."""
        self.set(way, cut=True)

    def restore(self) -> None:
        """Let everything pass again, and take the interface up."""
        self.interface_up()
        self.set(cut=False)

    def interface_down(self) -> None:
        """Take the near end's interface down, as when a modem loses its network: senders are told at once."""
        ip("link", "set", DEVICE, "down", namespace=self.near.name)

    def interface_up(self) -> None:
        ip("link", "set", DEVICE, "up", namespace=self.near.name)

    def flap(self, *, down_s: float, up_s: float, for_s: float, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Take the near end's interface down and up again and again; returns how often. `meanwhile` is called several times a second."""
        end, times = time.monotonic() + for_s, 0
        try:
            while time.monotonic() < end:
                self.interface_down()
                times += 1
                _wait(down_s, meanwhile)
                self.interface_up()
                _wait(min(up_s, max(0.0, end - time.monotonic())), meanwhile)
        finally:
            self.interface_up()
        return times

    def counters(self) -> Counters:
        """What has passed, and what has not, since the start."""
        with self._lock:
            return self._order(Order())

    def _order(self, order: Order) -> Counters:
        if self._control is None:
            raise NetworkUnavailable("the wire is not there: it was not started, or has been stopped")
        self._control.send(msgspec.json.encode(order))
        return msgspec.json.decode(self._receive(), type=Counters)

    def _receive(self) -> bytes:
        assert self._control is not None
        try:
            message = self._control.recv(65_536)
        except TimeoutError:
            raise NetworkUnavailable(f"the wire does not answer within {ANSWER_S:g} s") from None
        if not message:
            raise NetworkUnavailable(f"the wire has ended (exit code {self._child.poll() if self._child else None}): what it said is above")
        return message


def _changed(line: Line, changes: dict[str, Any]) -> Line:
    return msgspec.convert(msgspec.structs.asdict(msgspec.structs.replace(line, **changes)), Line, strict=True)


def _wait(seconds: float, meanwhile: Callable[[], None]) -> None:
    end, pause = time.monotonic() + seconds, threading.Event()
    while (left := end - time.monotonic()) > 0:
        pause.wait(min(0.2, left))
        meanwhile()
