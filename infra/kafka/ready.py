"""Waiting until a broker serves clients, consumer groups included, or is known never to."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

from infra.kafka.settings import address
from schemas.config import Kafka
from streams.clients import BrokerUnavailable, Clients, ClusterInfo

LOOK_S = 0.03
ASK_S = 10.0
GROUP = "headwater.ready"  # a group that never has members: asking for it wakes the coordinator


def wait_answer(host: str, port: int, *, alive: Callable[[], bool] = lambda: True, timeout_s: float) -> ClusterInfo:
    """Wait for the port, then for an answer.

    Raises
    ------
    TimeoutError
        If it does not answer in time.
    ChildProcessError
        If `alive()` turns false.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if not alive():
            raise ChildProcessError("it ended")
        # a plain connection first: a Kafka client that meets a closed port waits longer and longer between its tries
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            break
        if time.monotonic() >= deadline:
            raise TimeoutError(f"nothing listens on {host}:{port} after {timeout_s:g} s")
        time.sleep(LOOK_S)
    while True:
        left_s = max(1.0, deadline - time.monotonic())
        try:
            return _clients(host, port).cluster([], timeout_s=min(ASK_S, left_s))
        except BrokerUnavailable as error:
            if not alive():
                raise ChildProcessError("it ended") from None
            if time.monotonic() >= deadline:
                raise TimeoutError(str(error)) from None


def wait_ready(host: str, port: int, *, alive: Callable[[], bool], timeout_s: float) -> ClusterInfo:
    """Wait for an answer, then for the group coordinator; raises as `wait_answer` does.

    A new broker makes its own topics when the first client asks. A consumer that comes in those milliseconds is told "not coordinator"
    and tries again 3 s later: here they pass before anyone comes.
    """
    deadline = time.monotonic() + timeout_s
    info = wait_answer(host, port, alive=alive, timeout_s=timeout_s)
    admin = _clients(host, port).admin()
    while True:
        try:
            error = admin.describe_consumer_groups([GROUP], request_timeout=ASK_S)[GROUP].exception(ASK_S)
        except TimeoutError as late:
            error = late
        if error is None or _name(error) == "GROUP_ID_NOT_FOUND":
            return info
        if not alive():
            raise ChildProcessError("it ended")
        if time.monotonic() >= deadline:
            raise TimeoutError(f"its group coordinator is not ready after {timeout_s:g} s: {error}")
        time.sleep(LOOK_S)


def _clients(host: str, port: int) -> Clients:
    return Clients(Kafka(bootstrap_servers=address(host, port)), "headwater.broker")


def _name(error: BaseException) -> str:
    """The name of the Kafka error in a client's exception."""
    name = getattr(error.args[0], "name", None) if error.args else None
    return str(name()) if callable(name) else ""
