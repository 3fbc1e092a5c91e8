"""Keeping a broker up where its disk may fill: Kafka halts when it cannot write, and nothing but room brings it back."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable

from infra.kafka import KafkaFailed
from infra.kafka.broker import Broker, full_bytes
from streams.laws import size_text

LOOK_S = 0.2
ROOM_LOOK_S = 1.0
AGAIN_S = 300.0  # between two lines about the same full disk
STARTS = 3  # in a row that fail although there is room


def keep_running(broker: Broker, say: Callable[[str], None], *, again_s: float = AGAIN_S) -> int:
    """Watch a broker that runs until it ends for another reason than a full disk; returns its exit code. While the disk is full it waits
    for room, and then starts the broker again at its address: clients go on by themselves.

    Parameters
    ----------
    say
        Told what stops and what goes on, one line a change.

    Raises
    ------
    KafkaFailed
        If it does not start again although there is room.
    """
    pause = threading.Event()
    while True:
        while (code := broker.poll()) is None:
            pause.wait(LOOK_S)
        if not broker.ended_of_full_disk():
            return code
        _await_room(broker, say, pause, again_s)
        _start_again(broker, say, pause)


def _await_room(broker: Broker, say: Callable[[str], None], pause: threading.Event, again_s: float) -> None:
    folder, wanted = broker.settings.folder, broker.settings.min_free_bytes
    quiet_s = again_s
    while (free := shutil.disk_usage(folder).free) < wanted:
        if quiet_s >= again_s:
            quiet_s = 0.0
            say(full_text(broker, free))
        pause.wait(ROOM_LOOK_S)
        quiet_s += ROOM_LOOK_S
    say(f"the disk of {folder} has room again ({size_text(free)} free): starting broker {broker.name}")


def _start_again(broker: Broker, say: Callable[[str], None], pause: threading.Event) -> None:
    for attempt in range(STARTS):
        try:
            broker.restart()
        except KafkaFailed:
            if broker.ended_of_full_disk() and shutil.disk_usage(broker.settings.folder).free < full_bytes(broker.settings):
                return  # it filled again: the watch goes on
            if attempt == STARTS - 1:
                raise
            pause.wait(ROOM_LOOK_S * 2**attempt)
        else:
            say(f"broker {broker.name} is ready again at {broker.bootstrap_servers}: what waited goes on")
            return


def full_text(broker: Broker, free: int) -> str:
    """One line for a person: which disk, what stops, and what to do."""
    folder = broker.settings.folder
    return (
        f"disk full: {folder} has {free:,} bytes free. Broker {broker.name} has stopped; what it acknowledged is safe, producers and "
        f"workers wait. Free some space: it starts again by itself when {size_text(broker.settings.min_free_bytes)} are free"
    )
