"""Which of the local brokers serves a site, and so on which disk of this machine its log lies."""

from __future__ import annotations

from pathlib import Path

import msgspec

from infra import paths
from infra.kafka.folder import read_state
from schemas.config import SiteConfig


def home() -> Path:
    """Where local brokers have their folders, or links to them."""
    return paths.data_dir() / "brokers"


def names() -> list[str]:
    """Names of the brokers that have ever run here; a name whose folder is gone is not one."""
    if not home().is_dir():
        return []
    return sorted(entry.name for entry in home().iterdir() if (entry / "data" / "meta.properties").exists())


def log_folder(config: SiteConfig) -> Path | None:
    """The folder of a site's Kafka log on this machine: what `disk.path` says, else that of the local broker that runs at the site's
    address; None if there is none."""
    if config.disk.path:
        return Path(config.disk.path)
    for name in names():
        folder = (home() / name).resolve()
        state = read_state(folder)
        if state is not None and state.bootstrap_servers in config.kafka.bootstrap_servers.split(","):
            return folder / "data"
    return None


def guarded(config: SiteConfig) -> SiteConfig:
    """The configuration with `disk.path` filled in where it can be known."""
    folder = log_folder(config)
    if folder is None or config.disk.path:
        return config
    return msgspec.structs.replace(config, disk=msgspec.structs.replace(config.disk, path=str(folder)))
