"""What is truly in a video's frames: boxes to be found, boxes that count neither way, and frames about which nothing is known."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from schemas.detections import MAX_LABEL
from schemas.errors import Fault

MAX_BOXES = 1000  # in one frame


class UnusableLabels(Fault, ValueError):
    """Labels that cannot be used; the message says where, what is there, and what to do."""


class Video(msgspec.Struct, frozen=True, kw_only=True):
    """What must be known of a video to read its labels: how many frames it has, and their size in pixels."""

    frames: int
    width: int
    height: int


class Truth(msgspec.Struct, frozen=True, array_like=True):
    """One labelled box, in shares of the image's width and height (0 to 1), as `schemas.detections.Detection` has them.

    Attributes
    ----------
    ignored
        It need not be found, and what finds it is neither right nor wrong.
    crowd
        An ignored region of many objects: it is found by every box that lies within it, however small.
    """

    label: str
    x0: float
    y0: float
    x1: float
    y1: float
    ignored: bool = False
    crowd: bool = False


class Truths(msgspec.Struct, frozen=True, kw_only=True):
    """The truth about a video.

    Attributes
    ----------
    frames
        For each frame its boxes; None where nothing is known. Only frames that are known are scored.
    origin
        Where it is from, for people.
    notes
        What was assumed or left out when it was read, for people.
    """

    frames: tuple[tuple[Truth, ...] | None, ...]
    origin: str
    notes: tuple[str, ...] = ()

    @property
    def known(self) -> list[int]:
        """The frames that can be scored, from 0."""
        return [index for index, boxes in enumerate(self.frames) if boxes is not None]

    @property
    def labels(self) -> list[str]:
        """The labels of boxes that must be found."""
        return sorted({box.label for boxes in self.frames if boxes for box in boxes if not box.ignored})

    def only(self, frames: Iterable[int]) -> Truths:
        """The same with nothing known about the other frames, such as those that constants were chosen on."""
        kept = set(frames)
        return msgspec.structs.replace(self, frames=tuple(boxes if index in kept else None for index, boxes in enumerate(self.frames)))


def clipped(label: str, x0: float, y0: float, x1: float, y1: float, *, ignored: bool = False, crowd: bool = False) -> Truth | None:
    """A truth cut at the image's edges, since no detector's box passes them; None if nothing is left of it."""
    x0, y0, x1, y1 = max(0.0, x0), max(0.0, y0), min(1.0, x1), min(1.0, y1)
    return Truth(label, x0, y0, x1, y1, ignored, crowd) if x1 > x0 and y1 > y0 else None


def collected(boxes: Iterable[tuple[int, Truth]], known: Iterable[int], total: int, *, where: str) -> tuple[tuple[Truth, ...] | None, ...]:
    """Boxes by frame, for a video of `total` frames. A frame that is known and has none is one in which nothing must be found.

    Raises
    ------
    UnusableLabels
        If a frame has more than `MAX_BOXES`, or a label is longer than detections may have.
    """
    found: list[list[Truth] | None] = [None] * total
    for index in known:
        found[index] = []
    for index, box in boxes:
        here = found[index]
        if here is None:
            continue
        here.append(box)
        if len(here) > MAX_BOXES:
            raise UnusableLabels(f"{where}: more than {MAX_BOXES} boxes in frame {index} (from 0): are these the labels of one video?")
        if not 0 < len(box.label) <= MAX_LABEL:
            raise UnusableLabels(f"{where}: a label is {box.label!r:.100}: expected a name of 1 to {MAX_LABEL} characters")
    return tuple(None if boxes is None else tuple(boxes) for boxes in found)


def within(numbered: Iterable[int], video: Video, *, where: str, first: int) -> tuple[set[int], str | None]:
    """Frames (from 0) of labels that lie within the video, and a note on those that do not: a decoder may give a frame less than the labels
    were made with.

    Raises
    ------
    UnusableLabels
        If more than one in a hundred, and more than one frame, lies beyond the video's end.
    """
    frames = set(numbered)
    beyond = sorted(index for index in frames if index >= video.frames)
    if len(beyond) > max(1, len(frames) // 100):
        raise UnusableLabels(
            f"{where}: frame {beyond[-1] + first} (counted from {first}) is labelled, and {len(beyond)} of {len(frames)} labelled frames "
            f"lie beyond the video's {video.frames}: are these the labels of this video?"
        )
    note = f"labels of {len(beyond)} frame beyond the video's end were left out" if beyond else None
    return frames - set(beyond), note
