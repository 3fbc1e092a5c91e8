"""A producer's own list of what it gave a sequence, one JSON line a frame: what fault tests are judged by."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from schemas.envelope import write_time
from schemas.frames import Frame
from schemas.identity import content_digest


class Manifest:
    """Writes `{source, epoch, sequence, captured_at, sha256}` for each frame that it is called with; `sha256` is of the JPEG's bytes.

    Raises
    ------
    OSError
        If the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._encoder = msgspec.json.Encoder()

    def __call__(self, frame: Frame) -> None:
        line = {
            "source": frame.source,
            "epoch": frame.id.epoch,
            "sequence": frame.id.sequence,
            "captured_at": write_time(frame.captured_at),
            "sha256": content_digest(frame.jpeg),
        }
        self._file.write(self._encoder.encode(line) + b"\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
