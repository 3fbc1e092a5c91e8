"""Locks between processes: an advisory lock on a file, freed by the kernel when its last holder dies, so that none is ever stale."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path


class Locked(TimeoutError):
    """Another process holds the lock."""


def acquire(path: Path, *, timeout_s: float = 0.0) -> int:
    """Take the lock and return its descriptor; whoever inherits the descriptor holds the lock too.

    Raises
    ------
    Locked
        If another process holds it for all of `timeout_s`.
    OSError
        If the file cannot be made.
    """
    deadline = time.monotonic() + timeout_s
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise Locked(f"{path} is locked by another process") from None
            time.sleep(0.1)


@contextlib.contextmanager
def held(path: Path, *, timeout_s: float) -> Iterator[None]:
    """The lock for a block; raises as `acquire` does."""
    descriptor = acquire(path, timeout_s=timeout_s)
    try:
        yield
    finally:
        os.close(descriptor)
