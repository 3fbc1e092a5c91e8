"""What a detector saw: boxes with a class and a score, nested as one JSON string in the records that carry them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from numbers import Real
from typing import Self, SupportsIndex

import msgspec

from schemas.records import InvalidRecord, Json, shown, text_fault

MAX_DETECTIONS = 300
MAX_LABEL = 64  # characters
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
        shared = width * height
        if width <= 0 or height <= 0 or shared <= 0:  # a product of tiny sides can be 0
            return 0.0
        area = (self.x1 - self.x0) * (self.y1 - self.y0) + (other.x1 - other.x0) * (other.y1 - other.y0)
        return shared / (area - shared)

    @property
    def foot(self) -> tuple[float, float]:
        """Where the object stands: the middle of the box's lower edge."""
        return (self.x0 + self.x1) / 2, self.y1


class Detections(Json):
    """The detections of one frame, in the order given (detectors give the best first). On the wire: a JSON string of arrays
    `[label, score, x0, y0, x1, y1, track]`.

    Scores and coordinates are rounded when built, so that what was built equals what is read back.

    Raises
    ------
    InvalidRecord
        If a box is not within the image or turned inside out, a score is not within 0 to 1, or there are more than `MAX_DETECTIONS`.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[Detection] = ()) -> None:
        given = tuple(items)
        if len(given) > MAX_DETECTIONS:
            raise InvalidRecord(f"{len(given)} detections in one frame: at most {MAX_DETECTIONS} travel")
        self._items = tuple(map(_checked, given))

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
            items = _decoder.decode(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidRecord(f"detections are not a JSON array of [label, score, x0, y0, x1, y1, track]: {error}") from None
        return cls(items)


_decoder = msgspec.json.Decoder(tuple[Detection, ...])
_STEPS = 10**COORDINATE_DIGITS


def _checked(item: Detection) -> Detection:
    """A detection with its numbers rounded, half up: to the nearest of the floats that are written with four digits."""
    if not isinstance(item, Detection):
        raise InvalidRecord(f"detections hold {shown(item)}: expected a Detection")
    label, score, x0, y0, x1, y1, track = item.label, item.score, item.x0, item.y0, item.x1, item.y1, item.track
    for number in (score, x0, y0, x1, y1):
        if type(number) is not float and not _real(number):
            raise InvalidRecord(_explain(item))
    if not (
        isinstance(label, str)
        and 0 < len(label) <= MAX_LABEL
        and (label.isprintable() or not text_fault(label))
        and 0 <= score <= 1
        and 0 <= x0 <= x1 <= 1
        and 0 <= y0 <= y1 <= 1
        and (track is None or (type(track) is int and 0 <= track < 1 << 53))
    ):
        raise InvalidRecord(_explain(item))
    return Detection(
        label,
        int(score * _STEPS + 0.5) / _STEPS,
        int(x0 * _STEPS + 0.5) / _STEPS,
        int(y0 * _STEPS + 0.5) / _STEPS,
        int(x1 * _STEPS + 0.5) / _STEPS,
        int(y1 * _STEPS + 0.5) / _STEPS,
        track,
    )


def _real(number: object) -> bool:
    """Whether something is a number; those of NumPy are."""
    return isinstance(number, Real) and not isinstance(number, bool)


def _explain(item: Detection) -> str:
    """Which field is wrong."""
    if not (isinstance(item.label, str) and 0 < len(item.label) <= MAX_LABEL):
        return f"Detection.label is {shown(item.label)}: expected 1 to {MAX_LABEL} characters"
    if fault := text_fault(item.label):
        return f"Detection.label {fault}"
    for name in ("score", "x0", "y0", "x1", "y1"):
        value = getattr(item, name)
        if not _real(value) or not 0 <= value <= 1:
            return f"Detection.{name} of {item.label!r} is {shown(value)}: expected a number from 0 to 1"
    if item.x1 < item.x0 or item.y1 < item.y0:
        return f"Detection.x1, y1 of {item.label!r} are {item.x1}, {item.y1}: expected at least x0, y0, which are {item.x0}, {item.y0}"
    return f"Detection.track of {item.label!r} is {shown(item.track)}: expected a whole number from 0, or none"
