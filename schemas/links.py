"""What a link says of itself, and what people tell it: both are compacted topics of the leaf's cluster."""

from __future__ import annotations

import enum

from schemas.identity import Site
from schemas.messages import Count, Name, Text, Utc
from schemas.records import Record


class Breaker(enum.StrEnum):
    """A breaker between a stage and what it depends on: `closed` lets work through, `open` spares it, `half-open` tries once."""

    CLOSED = "closed"
    HALF_OPEN = "half-open"
    OPEN = "open"


class LinkState(Record, frozen=True, kw_only=True):
    """How the link of a site stands: whether its region answers (`breaker`), since when, and who runs it. Written when it changes, and
    every few seconds; key `link`."""

    site: Site
    region: Site
    breaker: Breaker
    since: Utc
    writer: Name
    generation: Count
    paused: bool = False
    note: Text | None = None


class LinkOrder(Record, frozen=True, kw_only=True):
    """What a person wants of the link; it holds until the next order, over restarts. `lanes` are topics as code calls them; none: all."""

    site: Site
    paused: bool
    lanes: tuple[Name, ...] = ()
    by: Name
    reason: Text | None = None
