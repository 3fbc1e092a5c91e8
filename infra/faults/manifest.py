"""The test's own list of what its producers published: a JSON line a record, on disk before it is sent; the judge reads it as it grows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One record: its id (`source/epoch/sequence`), the SHA-256 of its bytes, and when it was published: by the monotonic clock, which
    all processes of a machine share and which no fault moves."""

    id: str
    sha256: str
    at: float


class End(msgspec.Struct, frozen=True, tag_field="event", tag="ended"):
    """The producer's last line: it could say all it had to say."""

    at: float


class Writing:
    """A manifest that is being written. Its name holds the process, so that the judge knows whether it was killed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{os.getpid()}-{time.time_ns()}.jsonl"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._encoder = msgspec.json.Encoder()

    def write(self, record: str, sha256: str, at: float) -> None:
        """Put a record down: one system call, so that `kill -9` cannot come between the line and the send."""
        os.write(self._file, self._encoder.encode(Entry(record, sha256, at)) + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.end()

    def end(self) -> None:
        os.write(self._file, self._encoder.encode(End(time.monotonic())) + b"\n")
        os.close(self._file)


class Reading:
    """A manifest as its judge sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ended = False
        self.pid = int(path.name.split("-")[0])
        self._file = path.open("rb")
        self._rest = b""
        self._decoder = msgspec.json.Decoder(Entry)

    def new(self) -> Iterator[Entry]:
        """The entries that were written since the last call."""
        data = self._rest + self._file.read()
        lines = data.split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b'{"event"'):
                self.ended = True
            else:
                yield self._decoder.decode(line)

    @property
    def killed(self) -> bool:
        """Its process is gone without a last line."""
        if self.ended:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        return False
