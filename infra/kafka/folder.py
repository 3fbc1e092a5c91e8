"""A broker's folder: may it be used, is it in use, whose data does it hold, and what its running broker says of itself."""

from __future__ import annotations

import os
import secrets
import shutil
from base64 import urlsafe_b64encode
from pathlib import Path

import msgspec
import psutil

from infra.kafka import KafkaFailed, locks

STATE, LOCK = "broker.json", "lock"
LOCK_TIMEOUT_S = 2.0


class FolderUnusable(KafkaFailed):
    """A broker cannot use its folder; the message names it and says what to do."""


class BrokerState(msgspec.Struct, frozen=True, kw_only=True):
    """What a running broker leaves in its folder for other processes.

    `created` is the process's start as the system knows it (seconds since 1970): with the pid it names the process for good.
    """

    name: str
    pid: int
    created: float
    ready: bool
    bootstrap_servers: str
    wan: str | None = None
    cluster_id: str
    heap_mb: int

    def process(self) -> psutil.Process | None:
        """The process if it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None
        return process if same else None


def read_state(folder: Path) -> BrokerState | None:
    """What the broker that runs there says of itself; None if none runs."""
    try:
        state = msgspec.json.decode((folder / STATE).read_bytes(), type=BrokerState)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None
    return state if state.process() else None


def write_state(folder: Path, state: BrokerState) -> None:
    """Replace it at once, so that no reader sees half of it."""
    new = folder / f"{STATE}.new"
    new.write_bytes(msgspec.json.encode(state))
    new.replace(folder / STATE)


def open_folder(folder: Path, name: str, *, min_free_bytes: int) -> int:
    """Make the folder if need be, check it and lock it; returns the lock's descriptor.

    Raises
    ------
    FolderUnusable
        If it cannot be written, has too little space, or another broker uses it.
    """
    try:
        (folder / "data").mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise FolderUnusable(
            f"broker {name} cannot write its folder {folder}: {error.strerror or error}. Give it another one (--data-dir, or "
            "HEADWATER_DATA for all), or make this one writable"
        ) from None
    if free < min_free_bytes:
        raise FolderUnusable(
            f"broker {name} needs {min_free_bytes:,} bytes free for its folder {folder}, and the disk has {free:,}: free some, or give it "
            "a folder on another disk (--data-dir)"
        )
    try:
        return locks.acquire(folder / LOCK, timeout_s=LOCK_TIMEOUT_S)
    except locks.Locked:
        state = read_state(folder)
        who = f"a broker at {state.bootstrap_servers} (pid {state.pid})" if state else "a broker that is just starting or stopping"
        raise FolderUnusable(
            f"{folder} is in use by {who}: use that one, stop it with `headwater broker down {name}`, or start this one under another name"
        ) from None


def formatted_cluster(folder: Path, seed: Path) -> str:
    """The id of the cluster whose data the folder holds; an empty folder is formatted for a new one, any other is left as it is."""
    data = folder / "data"
    meta = data / "meta.properties"
    if not meta.exists():
        if any(data.iterdir()):
            raise FolderUnusable(f"{data} holds files but no meta.properties of Kafka: empty it, or give the broker another folder")
        shutil.copyfile(seed, data / seed.name)
        lines = {"version": "1", "cluster.id": _uuid(), "node.id": "1", "directory.id": _uuid()}
        new = folder / "meta.properties.new"
        new.write_text("".join(f"{name}={value}\n" for name, value in lines.items()), encoding="utf-8")
        new.replace(meta)
    values = dict(line.split("=", 1) for line in meta.read_text(encoding="utf-8").splitlines() if "=" in line and line[0] != "#")
    return values.get("cluster.id", "")


def _uuid() -> str:
    """A random id as Kafka writes it: 16 bytes in base64 of URLs, not beginning with a dash."""
    while (text := urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")).startswith("-"):
        pass
    return text
