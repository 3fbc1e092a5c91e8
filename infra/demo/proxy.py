"""A TCP proxy that can black-hole its connections: during an outage nothing is forwarded, nothing is closed and nothing is refused, as when
a radio link goes away. It counts the bytes that passed, so that what was saved on the wire is measured on the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Self

_CHUNK = 64 << 10
_START_TIMEOUT_S = 10.0


class Proxy:
    """Listens on loopback and forwards to one address, in a thread of its own.

    Parameters
    ----------
    target
        Host and port to forward to.

    Attributes
    ----------
    port
        Where it listens.
    sent, received
        Bytes that passed from the clients to the target, and back.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host = host
        self._listener = socket.create_server((host, port), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.sent = self.received = 0
        self.connections = 0
        self._target: tuple[str, int] | None = None
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._started = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._main, name="proxy", daemon=True)

    def start(self, target: tuple[str, int]) -> Self:
        """Forward to the target from now on."""
        self._target = target
        self._thread.start()
        if not self._started.wait(_START_TIMEOUT_S):
            raise RuntimeError("the proxy did not start")
        return self

    def cut(self) -> None:
        """Black-hole everything from now on."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def restore(self) -> None:
        """Forward again; connections that lived through the cut go on where they were."""
        self._loop.call_soon_threadsafe(self._open.set)

    @property
    def cut_now(self) -> bool:
        return not self._open.is_set()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
        self._listener.close()

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._open.set()
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
        await self._open.wait()  # a connection attempt during an outage waits, as its packets would
        assert self._target is not None
        self.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target, limit=_CHUNK)
        except OSError:
            writer.close()
            return
        ways = [
            asyncio.ensure_future(self._forward(reader, far_writer, up=True)),
            asyncio.ensure_future(self._forward(far_reader, writer, up=False)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, far_writer):
                end.close()
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(_CHUNK):
                await self._open.wait()
                writer.write(chunk)
                await writer.drain()
                if up:
                    self.sent += len(chunk)
                else:
                    self.received += len(chunk)
