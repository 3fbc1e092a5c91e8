"""Thread pools for the engines' work and for what may wait."""

from __future__ import annotations

import logging
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger("headwater.pools")

PATIENT_NICE = 10


def patient_pool(name: str) -> ThreadPoolExecutor:
    """One thread that lets others go first: encoding what is sent later must not take a core from the frame that has just come.

    Linux has a niceness for each thread (`sched(7)`); elsewhere it is a thread like any other.
    """
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_be_patient)


def _be_patient() -> None:
    if sys.platform != "linux":
        return
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + PATIENT_NICE)
    except OSError as error:  # a sandbox may forbid it; nothing depends on it but latency
        log.info("a thread keeps its priority: %s", error.strerror)
