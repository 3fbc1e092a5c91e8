"""What a model sees in a video, kept: a look of a large model takes a tenth of a second, and a comparison asks for the same looks again.

An entry is a folder of parts, each of some consecutive frames, written whole or not at all, with a digest that is checked when it is read.
What is damaged is looked at again. An interrupted run keeps what it has seen; two processes that fill one entry at a time write the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from infra.paths import cache_dir
from schemas.detections import Detection, Detections

Picture = TypeVar("Picture", bytes, NDArray[np.uint8])

PART = 32  # frames in a file: what a kill may cost
MAX_PART_BYTES = 8 << 20
REVISION = 1  # of the files
_DIGEST = 16  # bytes


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides what is seen.

    Attributes
    ----------
    video
        `file_digest` of the video.
    frames
        Which of its frames, such as `all` or `every 6th from 0`.
    evidence
        What the model is shown of them, with all settings, such as `jpeg 416x416 q20`.
    model
        The model's digest, such as `Detector.digest`.
    """

    video: str
    frames: str
    evidence: str
    model: str

    @property
    def name(self) -> str:
        """The folder's."""
        return hashlib.blake2b(msgspec.json.encode((REVISION, self)), digest_size=_DIGEST).hexdigest()


class _Part(msgspec.Struct, frozen=True, array_like=True):
    """Frames from `first` on: the digest of each picture, and what was seen in it."""

    key: Key
    first: int
    seen: list[tuple[bytes, tuple[Detection, ...]]]
    last: bool  # the video ends here


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Part)


def folder(cache: Path | None = None) -> Path:
    """Where looks are kept."""
    return (cache or cache_dir()) / "looks"


def file_digest(path: Path) -> str:
    """A digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def looks(
    key: Key,
    pictures: Callable[[], Iterable[Picture]],
    look: Callable[[Picture], Detections],
    *,
    what: str,
    count: int | None = None,
    cache: Path | None = None,
    console: Console | None = None,
) -> list[Detections]:
    """What a model sees in each frame; only frames that are not in the cache are looked at.

    Parameters
    ----------
    key
        What decides the answers. Pictures that are asked for are also held against the digests of those that were looked at before.
    pictures
        The frames in order, as JPEG bytes or pixels; not called if the entry is complete.
    look
        The model, such as `lambda jpeg: detector.look(jpeg).detections`.
    what
        What is looked at, for people.
    count
        How many frames there are, if it is known.
    console
        Where progress is shown: a bar on a terminal, else one line. None: standard error.

    Raises
    ------
    KeyboardInterrupt
        And whatever `pictures` and `look` raise; what was seen until then is kept.
    """
    console = console or Console(stderr=True, highlight=False)
    entry = folder(cache) / key.name
    known, complete = _known(entry, key)
    if complete:
        return [seen for _, seen in known]
    if not console.is_terminal:
        console.print(f"looking at {what} ({len(known)} of {'its' if count is None else count} frames are known)", soft_wrap=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    keep = _Keeper(entry, key, console)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"looking at {what}", total=count)
        answers: list[Detections] = []
        with keep:
            for index, picture in enumerate(pictures()):
                digest = _digest(picture)
                fresh = index >= len(known) or known[index][0] != digest
                answers.append(look(picture) if fresh else known[index][1])
                keep.put(digest, answers[-1], fresh=fresh)
                progress.advance(task)
            keep.complete = True
    return answers


class _Keeper:
    """Writes parts as they become full, and what there is at the end, whatever ends it. Without room nothing is kept, and that is said."""

    def __init__(self, entry: Path, key: Key, console: Console) -> None:
        self._entry, self._key, self._console = entry, key, console
        self._first = 0
        self._seen: list[tuple[bytes, tuple[Detection, ...]]] = []
        self._fresh = False
        self._failed = False
        self.complete = False

    def __enter__(self) -> _Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        self._write(last=self.complete)

    def put(self, digest: bytes, seen: Detections, *, fresh: bool) -> None:
        if len(self._seen) == PART:
            self._write(last=False)
        self._seen.append((digest, tuple(seen)))
        self._fresh |= fresh

    def _write(self, *, last: bool) -> None:
        """What was only read is not written again: an interruption early in a second run would put a short part over a whole one."""
        part, wanted = _Part(self._key, self._first, self._seen, last), self._fresh or last
        self._first += len(self._seen)
        self._seen, self._fresh = [], False
        if self._failed or not wanted:
            return
        try:
            _store(self._entry, part)
        except OSError as error:
            self._failed = True
            self._console.print(
                f"looks cannot be kept in {self._entry}: {error}; they are made again next time", soft_wrap=True, markup=False
            )


def _known(entry: Path, key: Key) -> tuple[list[tuple[bytes, Detections]], bool]:
    """What the cache has of the first frames without a gap, and whether that is all of them."""
    known: list[tuple[bytes, Detections]] = []
    while (loaded := _load(entry, key, len(known))) is not None:
        seen, last = loaded
        known += seen
        if last:
            return known, True
        if len(seen) < PART:  # an interrupted run's last
            break
    return known, False


def _load(entry: Path, key: Key, first: int) -> tuple[list[tuple[bytes, Detections]], bool] | None:
    """One part; None if there is none, or it is not what was written."""
    try:
        with _path(entry, first).open("rb") as file:
            data = file.read(MAX_PART_BYTES + 1)
    except OSError:
        return None
    if len(data) > MAX_PART_BYTES or _digest(data[_DIGEST:]) != data[:_DIGEST]:
        return None
    try:
        part = _decoder.decode(data[_DIGEST:])
        seen = [(digest, Detections(found)) for digest, found in part.seen]
    except ValueError:  # of another version
        return None
    return (seen, part.last) if (part.key, part.first) == (key, first) and len(seen) <= PART else None


def _store(entry: Path, part: _Part) -> None:
    """Write a part under another name, then give it its own."""
    entry.mkdir(parents=True, exist_ok=True)
    body = _encoder.encode(part)
    handle, name = tempfile.mkstemp(prefix=".part-", dir=entry)
    try:
        with open(handle, "wb") as file:
            file.write(_digest(body) + body)
        os.replace(name, _path(entry, part.first))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _path(entry: Path, first: int) -> Path:
    return entry / f"{first:08d}"


def _digest(data: bytes | NDArray[np.uint8]) -> bytes:
    """Of bytes, or of pixels with their shape."""
    found = hashlib.blake2b(digest_size=_DIGEST)
    if isinstance(data, np.ndarray):
        found.update(repr(data.shape).encode())
        data = np.ascontiguousarray(data).tobytes()
    found.update(data)
    return found.digest()
