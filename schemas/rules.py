"""Alert rules: what to look for, where, for how long, coming or going, and which way. Judging one frame is pure, so that every tier judges
alike; what takes several frames is judged at the leaf (`agents.paths`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

import msgspec
from msgspec import Meta

from schemas.detections import Detection, Detections
from schemas.records import InvalidRecord, Json, shown

Point = tuple[float, float]

MAX_POINTS = 64
DIGITS = 4
HEADING_TOLERANCE_DEG = 45.0
_ON_BORDER = 1e-9  # coordinates are whole ten-thousandths, feet halves of them: who is off a border is off by five times this, or more


class Zone(Json):
    """A polygon in shares of the image's width and height; empty means the whole image. On the wire: a JSON string of `[x, y]` pairs."""

    __slots__ = ("points",)

    def __init__(self, points: tuple[Point, ...] | list[Point] = ()) -> None:
        if len(points) > MAX_POINTS or 0 < len(points) < 3:
            raise InvalidRecord(f"Zone has {len(points)} points: expected 3 to {MAX_POINTS}, or none for the whole image")
        self.points = tuple(map(_point, points))

    def __contains__(self, point: Point) -> bool:
        """Whether a point lies within, by the even-odd rule, or on the border: who is cut off by the image's lower edge stands there."""
        if not self.points:
            return True
        x, y = point
        inside = False
        previous = self.points[-1]
        for current in self.points:
            (x0, y0), (x1, y1) = previous, current
            if (
                abs((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) <= _ON_BORDER
                and min(x0, x1) - _ON_BORDER <= x <= max(x0, x1) + _ON_BORDER
                and min(y0, y1) - _ON_BORDER <= y <= max(y0, y1) + _ON_BORDER
            ):
                return True
            if (y0 > y) != (y1 > y) and x < (x1 - x0) * (y - y0) / (y1 - y0) + x0:
                inside = not inside
            previous = current
        return inside

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Zone) and self.points == other.points

    def __hash__(self) -> int:
        return hash(self.points)

    def __repr__(self) -> str:
        return f"Zone({list(self.points)!r})"

    def to_json(self) -> str:
        return msgspec.json.encode(self.points).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            points = _points.decode(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidRecord(f"a zone is not a JSON array of [x, y] pairs: {error}") from None
        return cls(points)


_points = msgspec.json.Decoder(tuple[Point, ...])


def _point(point: Point) -> Point:
    match point:
        case (int() | float() as x, int() | float() as y) if 0 <= x <= 1 and 0 <= y <= 1:
            return round(float(x), DIGITS), round(float(y), DIGITS)
        case _:
            raise InvalidRecord(f"Zone holds {shown(point)}: expected [x, y], both from 0 to 1 (shares of the image)")


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When to raise an alert: an object of a class, with a score, that stands in a zone for a time, comes into it or leaves it, going some
    way. Objects are told apart by their tracks, which take a few frames a second; without them (a replay) only
    presence is judged, and all objects count as one."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z", description="name of the rule, part of its alerts' ids")]
    label: Annotated[str, Meta(min_length=1, max_length=64, description="class of object, as the model names it")] = "person"
    min_score: Annotated[float, Meta(gt=0, le=1, description="lowest score that counts")] = 0.5
    zone: Annotated[
        tuple[Point, ...],
        Meta(
            max_length=64,
            description="polygon of [x, y] in shares of width and height; where the object stands (foot point); empty: anywhere",
        ),
    ] = ()
    on: Annotated[
        Literal["presence", "entry", "exit"],
        Meta(
            description="presence: an object stands in the zone; entry: it comes in, after half a second outside; exit: it leaves, after "
            "half a second inside; once for each crossing, none for one that first appears on the other side"
        ),
    ] = "presence"
    heading: Annotated[
        tuple[Annotated[float, Meta(ge=-1e6, le=1e6)], ...],
        Meta(
            max_length=2,
            title="[dx, dy] or []",
            description="only objects that go this way, as it looks in the picture: [1, 0] to the right, [0, 1] down; who stands, or moves "
            "by less than a quarter of its box's height in 2 s, goes no way; for entry and exit: the way at the crossing; empty: any",
        ),
    ] = ()
    heading_tolerance_deg: Annotated[
        float, Meta(gt=0, le=180, description="how far to either side of heading, as the angle looks in the picture")
    ] = HEADING_TOLERANCE_DEG
    min_duration_s: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="how long one object must stay in the zone (for exit: outside of it) without a gap of over 1 s; several that pass "
            "one after the other do not add up",
        ),
    ] = 0.0
    cooldown_s: Annotated[float, Meta(ge=0, le=86_400, description="least time between two alerts of this rule on one source")] = 10.0
    sources: Annotated[tuple[str, ...], Meta(description="names of the sources it applies to; empty: all")] = ()

    @property
    def needs_past(self) -> bool:
        """Whether one frame does not tell: such a rule is judged on the frames of a source in their order, and object by object."""
        return self.min_duration_s > 0 or self.on != "presence" or bool(self.heading)

    def wrong(self, path: str) -> Iterator[str]:
        """What is wrong between fields that are right by themselves."""
        try:
            Zone(self.zone)
        except ValueError as error:
            yield f"{path}.zone is {shown(self.zone)}: {error}"
        if self.on != "presence" and not self.zone:
            yield (
                f"{path}.zone is empty: expected a polygon, since {path}.on is {self.on!r} and nobody enters or leaves the whole image; "
                "set zone, or on = 'presence'"
            )
        if self.heading and (len(self.heading) != 2 or not any(self.heading)):
            yield f"{path}.heading is {list(self.heading)}: expected [dx, dy], not both 0, such as [1, 0] for to the right; or [] for any"
        if not self.heading and self.heading_tolerance_deg != HEADING_TOLERANCE_DEG:
            yield (
                f"{path}.heading_tolerance_deg is {self.heading_tolerance_deg:g} without a heading: expected {path}.heading to be set too, "
                "such as [1, 0]; else leave the tolerance out"
            )


def best_match(detections: Detections, label: str, min_score: float, zone: Zone) -> Detection | None:
    """The best detection that a rule's class, score and zone accept, or None."""
    fitting = (d for d in detections if d.label == label and d.score >= min_score and d.foot in zone)
    return max(fitting, key=lambda d: d.score, default=None)
