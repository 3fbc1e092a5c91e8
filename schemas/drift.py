"""What is said when a stream is no longer what it was: a drift alarm, opened and closed, with what moved and by how much.

How drift is noticed does not live here (`agents.drift`).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Self

import msgspec
from msgspec import Meta

from schemas.identity import Site, Source, content_digest
from schemas.messages import Name, Utc
from schemas.records import InvalidRecord, Json, Record, shown, text_fault

MAX_EVIDENCE = 32
MAX_EVIDENCE_NAME = 96  # characters: a class label and a word


class Cause(enum.StrEnum):
    """What moved. Of a picture: `blur` (its sharpness), `brightness`, `noise`, `view` (the camera was moved), `frozen`, `silent` (no frame
    comes). Of the answers: `confidence`, `count` of detections, `classes` (their mix), `agreement` of the audits with the next tier."""

    BLUR = "blur"
    BRIGHTNESS = "brightness"
    NOISE = "noise"
    VIEW = "view"
    FROZEN = "frozen"
    SILENT = "silent"
    CONFIDENCE = "confidence"
    COUNT = "count"
    CLASSES = "classes"
    AGREEMENT = "agreement"


class DriftState(enum.StrEnum):
    """States form a chain. `version` in an alarm is the state's height."""

    OPENED = "opened"
    CLOSED = "closed"

    @property
    def height(self) -> int:
        return list(DriftState).index(self)


class Evidence(Json):
    """Figures that show what happened, by name. On the wire: a JSON string of names to numbers."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, float] | None = None) -> None:
        self._items = dict(sorted((items or {}).items()))
        if len(self._items) > MAX_EVIDENCE:
            raise InvalidRecord(f"{len(self._items)} figures of evidence: at most {MAX_EVIDENCE} travel")
        for name, value in self._items.items():
            if not isinstance(name, str) or not 0 < len(name) <= MAX_EVIDENCE_NAME or text_fault(name):
                raise InvalidRecord(f"evidence is named {shown(name)}: expected 1 to {MAX_EVIDENCE_NAME} characters that may travel")
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InvalidRecord(f"evidence {name!r} is {shown(value)}: expected a finite number")
            self._items[name] = float(value)

    def __getitem__(self, name: str) -> float:
        return self._items[name]

    def __contains__(self, name: str) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> Iterator[tuple[str, float]]:
        """Names and figures, in the order of the names."""
        yield from self._items.items()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Evidence) and self._items == other._items

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __repr__(self) -> str:
        return f"Evidence({self._items!r})"

    def to_json(self) -> str:
        return msgspec.json.encode(self._items).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            return cls(_evidence.decode(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidRecord(f"evidence is not a JSON object of names with numbers: {error}") from None


_evidence = msgspec.json.Decoder(dict[str, float])


class Drift(Record, frozen=True, kw_only=True):
    """A stream is no longer what it was. Of two records of one alarm the one with the greater `version` holds.

    `before` and `after` are levels of what moved, in its own unit: shares of the light that falls on one pixel (0 to 255) for
    `brightness` and `noise`, a ratio for `blur` (edges against contrast), a correlation for `view`, grey levels of change from frame to
    frame for `frozen`, seconds between frames for `silent`, means for the answers. When it is closed, `after` is the level that it has come
    to, and `recovered` in the evidence tells whether that is the old one (1) or a new one at which the stream is stable (0).
    """

    id: Name
    source: Source
    site: Site
    cause: Cause
    state: DriftState
    version: Annotated[int, Meta(ge=0, le=1)]
    opened_at: Utc
    at: Utc
    before: float
    after: float
    evidence: Evidence = Evidence()

    def check(self) -> None:
        if self.version != self.state.height:
            raise InvalidRecord(f"Drift.version is {self.version}: expected {self.state.height}, the height of state '{self.state}'")
        if self.state is DriftState.OPENED and self.at != self.opened_at:
            raise InvalidRecord(
                f"Drift.at is {self.at.isoformat()}: expected its opened_at, {self.opened_at.isoformat()}, in state 'opened'"
            )


def drift_id(source: str, cause: Cause, opened_at: Utc) -> str:
    """The id of an alarm, the same for what opens and what closes it, whoever computes it and however often."""
    return "drift-" + content_digest(f"{source}\n{cause}\n{opened_at.isoformat()}".encode())[:32]
