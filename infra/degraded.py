"""A recording whose pictures are spoiled on purpose while it is played, to see what notices it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import cv2
import numpy as np

from infra.degrade import Degradation, Degrader
from streams.production.feed import Recorded
from streams.production.pictures import Look, Picture, encode

_COLOURS: Literal["BGR"] = "BGR"


class DegradedRecording:
    """Gives the pictures of another recording, those spoiled that are played while the fault holds.

    Parameters
    ----------
    fps
        Pictures a second as it is played; by that the fault's times are counted, from the first picture on.
    quality
        JPEG quality of the pictures that are made anew.
    """

    def __init__(self, recording: Recorded, degradation: Degradation, *, fps: float | None, quality: int) -> None:
        self._recording, self._degradation, self._look = recording, degradation, Look(None, quality)
        self.width, self.height, self.fps = recording.width, recording.height, recording.fps
        self._played_fps = fps or recording.fps

    def pictures(self, *, start_s: float = 0.0, loop: bool = False) -> Iterator[Picture]:
        """As the recording's own."""
        degrader = Degrader(self._degradation)
        for number, picture in enumerate(self._recording.pictures(start_s=start_s, loop=loop)):
            at_s = number / self._played_fps
            if not self._degradation.holds(at_s):
                yield picture
                continue
            pixels = cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR)
            yield encode(degrader(np.asarray(pixels, np.uint8), at_s), self._look, _COLOURS)
