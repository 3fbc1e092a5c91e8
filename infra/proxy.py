"""A TCP proxy between a leaf and its region that does what thin networks do: black-hole everything or one direction, refuse, reset,
delay, limit the rate, and stall as a lost packet does. It counts what passed and what it held, so that a fault can be shown, and so that
what was saved on the wire is measured on the wire.

During a cut nothing is forwarded, nothing is closed and nothing is refused, as when a radio link goes away.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from typing import Literal, Self

_CHUNK = 64 << 10
_PIECE = 8 << 10  # what a limited rate is measured out in
_AHEAD = 64  # chunks that may be on their way in a delay
_START_TIMEOUT_S = 10.0
Direction = Literal["up", "down"]
_ALL: tuple[Direction, ...] = ("up", "down")


class Way:
    """One direction: `up` from the clients to the target, `down` back. Read and changed in the proxy's loop only, but for its counters.

    Attributes
    ----------
    passed, held
        Bytes that were forwarded; chunks that met a cut.
    stalls
        Chunks that were held back as if lost.
    """

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.delay_s = 0.0
        self.rate_bytes_per_s: float | None = None
        self.stall: tuple[float, float] | None = None  # share of the chunks, and for how long (s)
        self.passed = self.held = self.stalls = 0
        self._free_at = 0.0  # when the next byte may go at the limited rate

    async def pace(self, size: int) -> None:
        """Wait until so many bytes may go."""
        if self.rate_bytes_per_s is None:
            return
        now = asyncio.get_running_loop().time()
        self._free_at = max(now, self._free_at) + size / self.rate_bytes_per_s
        await asyncio.sleep(self._free_at - now)


class Proxy:
    """Listens on loopback and forwards to one address, in a thread of its own. Faults may be set from any thread, and add up.

    Parameters
    ----------
    host, port
        Where it listens; port 0 takes a free one.
    seed
        Of the stalls.

    Attributes
    ----------
    port
        Where it listens.
    sent, received
        Bytes that passed from the clients to the target, and back.
    connections, refused, reset_count, waiting
        Connections that were served, turned away, torn down by `reset`; and those that met a cut (each counted once a cut).
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, seed: int = 0) -> None:
        self.host = host
        self._listener = socket.create_server((host, port), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.connections = self.refused = self.reset_count = self.waiting = 0
        self.ways: dict[Direction, Way] = {"up": Way(), "down": Way()}
        self._refusing = False
        self._chance = random.Random(seed)  # noqa: S311 - for tests, guards nothing
        self._target: tuple[str, int] | None = None
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._main, name="proxy", daemon=True)

    @property
    def sent(self) -> int:
        return self.ways["up"].passed

    @property
    def received(self) -> int:
        return self.ways["down"].passed

    @property
    def held(self) -> int:
        """Chunks that have met a cut so far."""
        return sum(way.held for way in self.ways.values())

    def start(self, target: tuple[str, int]) -> Self:
        """Forward to the target from now on."""
        self._target = target
        self._thread.start()
        if not self._started.wait(_START_TIMEOUT_S):
            raise RuntimeError("the proxy did not start")
        return self

    # ---- faults

    def cut(self, *directions: Direction) -> None:
        """Black-hole everything, or one direction, from now on."""

        def act() -> None:
            self.waiting += len(self._writers) // 2
            for name in directions or _ALL:
                self.ways[name].open.clear()

        self._do(act)

    def restore(self) -> None:
        """Forward again as if nothing had been; connections that lived through the fault go on where they were."""

        def act() -> None:
            self._refusing = False
            for way in self.ways.values():
                way.delay_s, way.rate_bytes_per_s, way.stall = 0.0, None, None
                way.open.set()

        self._do(act)

    @property
    def cut_now(self) -> bool:
        return not all(way.open.is_set() for way in self.ways.values())

    def slow(self, bytes_per_s: float, *directions: Direction) -> None:
        """Limit the rate, all connections together."""
        self._do(lambda: self._set(directions, "rate_bytes_per_s", bytes_per_s))

    def delay(self, seconds: float, *directions: Direction) -> None:
        """Forward so much later; the rate is not changed."""
        self._do(lambda: self._set(directions, "delay_s", seconds))

    def stall(self, share: float, seconds: float, *directions: Direction) -> None:
        """Hold back a share of the chunks, and what follows on the connection, as when packets are lost and sent again."""
        self._do(lambda: self._set(directions, "stall", (share, seconds)))

    def refuse(self) -> None:
        """Turn away new connections and tear down those that there are."""

        def act() -> None:
            self._refusing = True
            self._abort()

        self._do(act)

    def reset(self) -> None:
        """Tear down every connection (RST); new ones are served."""
        self._do(self._abort)

    def stop(self) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # its loop is closed already
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
        self._listener.close()

    # ---- the loop

    def _do(self, act: Callable[[], None]) -> None:
        """Run in the loop, and wait for it: what follows is under the fault."""
        if not self._thread.is_alive():
            act()
            return
        done = threading.Event()

        def run() -> None:
            act()
            done.set()

        self._loop.call_soon_threadsafe(run)
        if not done.wait(_START_TIMEOUT_S):
            raise RuntimeError("the proxy's loop does not answer")

    def _set(self, directions: tuple[Direction, ...], name: str, value: object) -> None:
        for direction in directions or _ALL:
            setattr(self.ways[direction], name, value)

    def _abort(self) -> None:
        self.reset_count += len(self._writers) // 2
        for writer in list(self._writers):
            _reset(writer)

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, sock=self._listener, limit=_CHUNK))
        self._started.set()
        self._loop.run_forever()
        server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A plain function, so that the task is ours: asyncio would log the end of one of its own as a failure."""
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            self.refused += 1
            _reset(writer)
            return
        if self.cut_now:
            self.waiting += 1
        for way in self.ways.values():
            await way.open.wait()  # a connection attempt during an outage waits, as its packets would
        assert self._target is not None
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target, limit=_CHUNK)
        except OSError:
            self.refused += 1
            _reset(writer)
            return
        self.connections += 1
        self._writers |= {writer, far_writer}
        ends = [
            asyncio.ensure_future(self._forward(reader, far_writer, self.ways["up"])),
            asyncio.ensure_future(self._forward(far_reader, writer, self.ways["down"])),
        ]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
            self._writers -= {writer, far_writer}
            for side in (writer, far_writer):
                side.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        """Read ahead into a queue of bounded length, so that a delay costs time and not rate."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=_AHEAD)
        now = asyncio.get_running_loop().time
        writing = asyncio.ensure_future(self._write(queue, writer, way))
        try:
            with contextlib.suppress(ConnectionError):
                while chunk := await reader.read(_CHUNK):
                    await queue.put((now() + way.delay_s, chunk))
                    if writing.done():
                        return
            await queue.put((now(), b""))
            await writing
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, way: Way) -> None:
        now = asyncio.get_running_loop().time
        while True:
            due, chunk = await queue.get()
            if not chunk:
                return
            await asyncio.sleep(max(0.0, due - now()))
            if way.stall is not None and self._chance.random() < way.stall[0]:
                way.stalls += 1
                await asyncio.sleep(way.stall[1])
            if not way.open.is_set():
                way.held += 1
                await way.open.wait()
            pieces = [chunk] if way.rate_bytes_per_s is None else [chunk[at : at + _PIECE] for at in range(0, len(chunk), _PIECE)]
            for piece in pieces:
                await way.pace(len(piece))
                await way.open.wait()
                writer.write(piece)
                try:
                    await writer.drain()
                except ConnectionError:
                    return
                way.passed += len(piece)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
