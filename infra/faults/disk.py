"""Disks that other files fill until there is room again: a region's broker has no byte left and ends; a leaf's runs low, and the leaf sheds
what it can do without, down to frames. Each is a small file system in memory; mounting it takes root.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from infra.faults.fleet import Fleet
from infra.faults.rounds import Fault, Setting
from infra.faults.service import FaultDidNotHappen

SIZE_MB = 768
LOW = {"low": "320 MiB", "very_low": "160 MiB"}  # of a leaf's `[disk]`
LEFT_BYTES = 100 << 20  # what the other files leave: frames are dropped, and Kafka lives on


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of `SIZE_MB` in memory, as long as the block lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    subprocess.run([*as_root, "mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=0777", "tmpfs", str(folder)], check=True, timeout=20)
    try:
        yield folder
    finally:
        subprocess.run([*as_root, "umount", "-l", str(folder)], check=True, timeout=20)


def full(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """Fill the disk of the region's broker until it ends, keep it so for a while, then make room."""
    setting.moment()
    broker = fleet["region broker"]
    disk = fleet.region_broker.settings.folder.parent
    ballast = disk / "ballast"
    filled = _fill(ballast)
    deaths = len(broker.deaths)
    end = time.monotonic() + 60
    while len(broker.deaths) == deaths and time.monotonic() < end:
        _fill(ballast)  # what the broker deleted meanwhile
        time.sleep(0.2)
    ended = [death.code for death in broker.deaths[deaths:]]
    if not ended:
        raise FaultDidNotHappen(f"the region's broker lives on with {_free(disk)} bytes free")
    time.sleep(setting.length_s)
    ballast.unlink()
    fleet.wait("the region's broker to be back", lambda: broker.alive)
    fleet.wait_ready()
    yield (
        f"{filled >> 20} MiB of other files filled the disk, the region's broker ended with code {ended[0]}; "
        f"{setting.length_s:.0f} s later there was room"
    )


def low(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """Fill the disk of the leaf's broker until frames are dropped, keep it so for a while, then make room until they are answered again."""

    def shed() -> float:
        found = fleet.metrics("leaf agent")
        return found.total("headwater_dropped_total", reason="disk") if found is not None else 0.0

    def answered() -> float:
        found = fleet.metrics("leaf agent")
        return found.total("headwater_verdicts_total") if found is not None else 0.0

    setting.moment()
    disk = fleet.leaf_broker.settings.folder.parent
    ballast = disk / "ballast"
    before = shed()
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, _free(disk) - LEFT_BYTES)
    fleet.wait("frames to be dropped for the disk", lambda: shed() > before)
    time.sleep(setting.length_s)
    ballast.unlink()
    emptied = time.monotonic()
    found = fleet.metrics("leaf agent")
    level = 0.0 if found is None else found.total("headwater_disk_level")
    at = answered()
    fleet.wait("frames to be answered again", lambda: answered() > at)
    yield (
        f"with {LEFT_BYTES >> 20} MiB left the leaf went through the levels up to {level:g}: "
        f"{shed() - before:g} frames were dropped for it; {time.monotonic() - emptied:.0f} s after there was room they were answered again"
    )


def _free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def _fill(path: Path) -> int:
    """Write until nothing more goes onto the disk; returns the bytes of the file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for piece in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while os.write(file, bytes(piece)) == piece:
                    continue
        return os.fstat(file).st_size
    finally:
        os.close(file)


DISK = Fault("region broker's disk full", full, outage=True, length_s=6.0)
LOW_DISK = Fault("leaf's disk low", low, length_s=6.0)
