"""The proxy breaks connections as it is told, and goes on as if nothing had been."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from infra.proxy import Proxy


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy before a server that sends back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    def echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65_536):
                    connection.sendall(data)
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    made = Proxy().start(server.getsockname())
    yield made
    made.stop()
    server.close()


def dial(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def silent(connection: socket.socket) -> bool:
    connection.settimeout(0.3)
    try:
        return connection.recv(100) == b"never"
    except TimeoutError:
        return True
    finally:
        connection.settimeout(10)


def ended(connection: socket.socket) -> bool:
    """Whether the other side has torn it down, or ended it in order."""
    try:
        connection.sendall(b"x")
        while connection.recv(10):
            continue
    except ConnectionError:
        return True
    return True


def test_a_cut_holds_everything_and_a_restored_way_goes_on(proxy: Proxy, eventually: Callable[..., None]) -> None:
    with dial(proxy) as one:
        one.sendall(b"a")
        assert one.recv(10) == b"a"
        proxy.cut()
        one.sendall(b"b")
        assert silent(one)
        assert proxy.held == 1
        with dial(proxy) as late:  # neither refused nor answered
            late.sendall(b"c")
            assert silent(late)
            proxy.restore()
            assert (one.recv(10), late.recv(10)) == (b"b", b"c")
        eventually(lambda: (proxy.sent, proxy.received) == (3, 3))


@pytest.mark.parametrize(("direction", "sent", "received"), [("up", 0, 0), ("down", 1, 0)])
def test_one_direction_alone(proxy: Proxy, eventually: Callable[..., None], direction: str, sent: int, received: int) -> None:
    with dial(proxy) as one:
        proxy.cut(direction)  # type: ignore[arg-type]
        one.sendall(b"a")
        eventually(lambda: proxy.held == 1 or proxy.waiting >= 1)
        assert silent(one)
        assert (proxy.sent <= sent, proxy.received) == (True, received)
        proxy.restore()
        assert one.recv(10) == b"a"


def test_connections_are_torn_down_and_turned_away(proxy: Proxy) -> None:
    with dial(proxy) as one:
        one.sendall(b"a")
        assert one.recv(10) == b"a"
        proxy.refuse()
        assert ended(one)
    with dial(proxy) as late:
        assert ended(late)
    assert proxy.refused >= 1
    proxy.restore()
    with dial(proxy) as again:
        again.sendall(b"c")
        assert again.recv(10) == b"c"


def test_a_limited_rate_is_kept(proxy: Proxy) -> None:
    size, rate = 60_000, 100_000
    with dial(proxy) as one:
        proxy.slow(rate, "up")
        start = time.monotonic()
        one.sendall(bytes(size))
        left = size
        while left:
            left -= len(one.recv(65_536))
        assert time.monotonic() - start >= 0.8 * size / rate, "no faster than the limit; slower it may be"


def test_a_delay_is_kept(proxy: Proxy) -> None:
    with dial(proxy) as one:
        proxy.delay(0.2)
        start = time.monotonic()
        one.sendall(b"a")
        assert one.recv(10) == b"a"
        assert time.monotonic() - start >= 0.4, "both ways"
