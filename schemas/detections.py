"""What a detector saw: boxes with a class and a score, nested as one JSON string in the records that carry them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Self, SupportsIndex

import msgspec

from schemas.records import InvalidRecord, Json

MAX_DETECTIONS = 300
COORDINATE_DIGITS = 4  # a ten-thousandth of the image's side: below a pixel on an 8K frame


class Detection(msgspec.Struct, frozen=True, array_like=True):
    """One object: its class, score, and box `x0, y0, x1, y1` as shares of the image's width and height (0 to 1)."""

    label: str
    score: float
    x0: float
    y0: float
    x1: float
    y1: float
    track: int | None = None

    def iou(self, other: Detection) -> float:
        """Intersection over union with another box, 0 to 1."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        if width <= 0 or height <= 0:
            return 0.0
        shared = width * height
        area = (self.x1 - self.x0) * (self.y1 - self.y0) + (other.x1 - other.x0) * (other.y1 - other.y0)
        return shared / (area - shared)

    @property
    def foot(self) -> tuple[float, float]:
        """Where the object stands: the middle of the box's lower edge."""
        return (self.x0 + self.x1) / 2, self.y1


class Detections(Json):
    """The detections of one frame, best first. On the wire: a JSON string of arrays `[label, score, x0, y0, x1, y1]`.

    Scores and coordinates are rounded when built, so that what was built equals what is read back.

    Raises
    ------
    InvalidRecord
        If a box is not within the image or turned inside out, a score is not within 0 to 1, or there are more than `MAX_DETECTIONS`.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[Detection] = ()) -> None:
        rounded = tuple(_checked(item) for item in items)
        if len(rounded) > MAX_DETECTIONS:
            raise InvalidRecord(f"{len(rounded)} detections in one frame: at most {MAX_DETECTIONS} travel")
        self._items = rounded

    def __iter__(self) -> Iterator[Detection]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: SupportsIndex) -> Detection:
        return self._items[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Detections) and self._items == other._items

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return f"Detections({list(self._items)!r})"

    def to_json(self) -> str:
        return msgspec.json.encode(self._items).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            return cls(_decoder.decode(text))
        except msgspec.MsgspecError as error:
            raise InvalidRecord(f"detections are not a JSON array of [label, score, x0, y0, x1, y1]: {error}") from None


_decoder = msgspec.json.Decoder(tuple[Detection, ...])


def _checked(item: Detection) -> Detection:
    if not (isinstance(item.label, str) and 0 < len(item.label) <= 64 and "\0" not in item.label):
        raise InvalidRecord(f"detection label {item.label!r:.80}: expected 1 to 64 characters")
    numbers = (item.score, item.x0, item.y0, item.x1, item.y1)
    if not all(isinstance(n, (int, float)) and math.isfinite(n) and 0 <= n <= 1 for n in numbers):
        raise InvalidRecord(f"detection of {item.label}: score and box {numbers} must be numbers from 0 to 1")
    if item.x1 < item.x0 or item.y1 < item.y0:
        raise InvalidRecord(f"detection of {item.label}: box {numbers[1:]} is turned inside out (x0 <= x1, y0 <= y1)")
    if item.track is not None and not (isinstance(item.track, int) and 0 <= item.track < 1 << 53):
        raise InvalidRecord(f"detection of {item.label}: track {item.track!r:.40} must be a whole number from 0")
    score, x0, y0, x1, y1 = (round(float(n), COORDINATE_DIGITS) for n in numbers)
    return Detection(item.label, score, x0, y0, x1, y1, item.track)
