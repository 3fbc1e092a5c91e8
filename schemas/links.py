"""What a link says of itself, who runs it, and what people tell it: values of compacted topics."""

from __future__ import annotations

import enum
from typing import Annotated, Self

import msgspec
from msgspec import Meta

from schemas.identity import Site
from schemas.messages import Count, Name, Text, Utc
from schemas.records import InvalidRecord, Json, Record


class Breaker(enum.StrEnum):
    """A breaker between a stage and what it depends on: `closed` lets work through, `open` spares it, `half-open` tries once."""

    CLOSED = "closed"
    HALF_OPEN = "half-open"
    OPEN = "open"


class LaneState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one lane has still to carry: records and bytes (estimated), the age of the oldest in seconds, records carried per second
    lately, and the seconds until it is empty at the present rate (None: not known, or never)."""

    topic: str
    direction: str
    waiting: int = 0
    waiting_bytes: int = 0
    oldest_s: float = 0.0
    rate: float = 0.0
    drain_s: float | None = None
    lost: int = 0
    paused: bool = False


class Lanes(Json):
    """The lanes of a link, the most urgent first. On the wire: a JSON string."""

    __slots__ = ("lanes",)

    def __init__(self, lanes: tuple[LaneState, ...] = ()) -> None:
        self.lanes = lanes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lanes) and self.lanes == other.lanes

    def __hash__(self) -> int:
        return hash(self.lanes)

    def __repr__(self) -> str:
        return f"Lanes({list(self.lanes)!r})"

    def to_json(self) -> str:
        return msgspec.json.encode(self.lanes).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            return cls(_lanes.decode(text))
        except (ValueError, RecursionError) as error:
            raise InvalidRecord(f"lanes are not a JSON array of lane states: {error}") from None


_lanes = msgspec.json.Decoder(tuple[LaneState, ...])


class LinkState(Record, frozen=True, kw_only=True):
    """How the link of a site stands: whether its region answers (`breaker`), since when, and who runs it. Written when it changes, and
    every few seconds; key `link`. `budget_bytes_per_s` is 0 without a budget; `evidence_bytes_per_s` is what of the bytes on the wire is
    evidence for the region."""

    site: Site
    region: Site
    breaker: Breaker
    since: Utc
    writer: Name
    generation: Count
    paused: bool = False
    note: Text | None = None
    lanes: Lanes = Lanes()
    budget_bytes_per_s: Count = 0
    wire_bytes_per_s: Annotated[float, Meta(ge=0)] = 0.0
    evidence_bytes_per_s: Annotated[float, Meta(ge=0)] = 0.0


class LinkHold(Record, frozen=True, kw_only=True):
    """A beat of the link that carries for a site: `host` and `pid` say where it runs, `released` that it has ended in order."""

    site: Site
    writer: Name
    generation: Count
    host: Name
    pid: Count
    since: Utc
    released: bool = False


class LinkOrder(Record, frozen=True, kw_only=True):
    """What a person wants of the link; it holds until the next order, over restarts. `lanes` are topics as code calls them; none: all."""

    site: Site
    paused: bool
    lanes: tuple[Name, ...] = ()
    by: Name
    reason: Text | None = None
