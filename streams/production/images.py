"""Pictures from a folder of images: a JPEG is sent as its own bytes, whatever they are; another image is decoded and encoded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from streams.production.pictures import JPEG_START, CaptureFailed, Look, Picture, decode, encode, jpeg_size

log = logging.getLogger("headwater.produce")

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
DEFAULT_FPS = 10.0


class ImageFolder:
    """The images in a folder, in the order of their names; other files, and folders in it, are left alone.

    Raises
    ------
    CaptureFailed
        If there is no such folder, or no image in it.
    """

    width = 0  # the images may differ
    height = 0
    fps = DEFAULT_FPS

    def __init__(self, path: Path, look: Look) -> None:
        self.path = path
        self.look = look
        if not path.is_dir():
            raise CaptureFailed(f"{path}: there is no such folder" if not path.exists() else f"{path} is not a folder")
        try:
            self.files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        except OSError as error:
            raise CaptureFailed(f"{path}: {error.strerror}") from None
        if not self.files:
            raise CaptureFailed(f"{path}: there is no image in it (looked for {', '.join(sorted(SUFFIXES))})")
        self.unreadable: set[Path] = set()

    @property
    def estimate(self) -> int:
        return len(self.files)

    def pictures(self, *, start_s: float = 0.0, loop: bool = False) -> Iterator[Picture]:
        """The pictures, from a position (at the default rate) on. An image that cannot be read is passed over and said, once.

        Raises
        ------
        CaptureFailed
            If not one image can be read.
        """
        skip = round(start_s * self.fps) % len(self.files)
        while True:
            sent = 0
            for file in self.files[skip:]:
                picture = self._read(file)
                if picture is not None:
                    sent += 1
                    yield picture
            if sent == 0 and skip == 0:
                raise CaptureFailed(f"{self.path}: not one of its {len(self.files)} images can be read")
            if not loop:
                return
            skip = 0

    def _read(self, file: Path) -> Picture | None:
        try:
            data = file.read_bytes()
        except OSError as error:
            self._pass_over(file, error.strerror or str(error))
            return None
        if data.startswith(JPEG_START) and self.look.width is None:
            return Picture(data, *jpeg_size(data))
        pixels = decode(data)
        if pixels is None:
            self._pass_over(file, "it is not an image that can be decoded")
            return None
        try:
            return encode(pixels, self.look, "BGR")
        except CaptureFailed as error:
            self._pass_over(file, str(error))
            return None

    def _pass_over(self, file: Path, why: str) -> None:
        if file not in self.unreadable:
            self.unreadable.add(file)
            log.warning("%s is passed over: %s", file, why, extra={"file": str(file), "reason": why})
