"""Ports of this machine: can a server listen there, why not, and which port is free."""

from __future__ import annotations

import errno
import secrets
import socket

import psutil

from infra.kafka import KafkaFailed

# Below the range that systems take the ports of outgoing connections from, so that none of those can be in the way a moment later.
FIRST, LAST = 20_000, 32_000
TRIES = 200


class PortUnusable(KafkaFailed):
    """A server cannot listen there; the message says why and what to do."""


def check_port(host: str, port: int) -> None:
    """Raises `PortUnusable` if a server could not listen there now."""
    try:
        _listen(host, port)
    except OSError as error:
        raise PortUnusable(_reason(host, port, error)) from None


def free_port(host: str = "127.0.0.1", *, taken: frozenset[int] = frozenset()) -> int:
    """A port that nobody listens on; raises `PortUnusable` if none is found."""
    for _ in range(TRIES):
        port = FIRST + secrets.randbelow(LAST - FIRST)
        if port in taken:
            continue
        try:
            _listen(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise PortUnusable(_reason(host, port, error)) from None
        else:
            return port
    raise PortUnusable(f"no free port was found on {host} between {FIRST} and {LAST}: stop something that listens there")


def in_use(host: str, port: int) -> str:
    """The message for a port that is taken: by whom, if the system tells, and what to do."""
    owner = ""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                owner = f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        owner = ""  # some systems tell root only
    return f"port {port} on {host} is in use{owner}. Stop what listens there, or take another port (--port; 0 finds a free one)"


def _listen(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a connection in TIME_WAIT is not in the way
        probe.bind((host, port))
        probe.listen(1)


def _reason(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return in_use(host, port)
    if error.errno == errno.EACCES:
        return f"port {port} on {host} is reserved for root: take one above 1023 (--port)"
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"{host} is not an address of this machine: name one that it has (--host), such as 127.0.0.1"
    return f"port {port} on {host} cannot be used: {error.strerror or error}"
