"""The values that travel between the stages: verdicts, results, alerts, escalations, drops, epochs and control.

Nothing in them is a wall-clock time of processing: what a stage computes twice is the same twice, so that a duplicate changes nothing.
When a record was written is Kafka's own timestamp (LogAppendTime); `captured_at` is when its frame was taken.
"""

from __future__ import annotations

import datetime as dt
import enum
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, ClassVar, Self

import msgspec
from msgspec import Meta

from schemas.detections import Detections
from schemas.identity import Epoch, InvalidIdentity, RecordId, RecordIdText, Site, Source
from schemas.records import InvalidRecord, Json, Record, shown
from schemas.rules import Zone

Confidence = Annotated[float, Meta(ge=0, le=1)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
Text = Annotated[str, Meta(max_length=2000)]
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Utc = Annotated[dt.datetime, Meta(tz=True)]


class Tier(enum.StrEnum):
    LEAF = "leaf"
    REGION = "region"
    CLOUD = "cloud"


class Status(enum.StrEnum):
    """How a verdict stands.

    `final`: it holds; with a leaf's final answers the region would disagree no more often than the site states (`audit.risk`).
    `provisional`: a higher tier is asked. `unanswered`: not sure enough to be final, and no higher tier was asked, or none answered in
    time. `failed`: nobody could judge the record.
    """

    FINAL = "final"
    PROVISIONAL = "provisional"
    UNANSWERED = "unanswered"
    FAILED = "failed"


RANK = {Tier.LEAF: 10, Tier.REGION: 20, Tier.CLOUD: 30}
LEAF_PREFERRED_RANK = 25  # a leaf that labels have shown to be the better one on a stream
MAX_RANK = {Tier.LEAF: LEAF_PREFERRED_RANK, Tier.REGION: 20, Tier.CLOUD: 30}  # what a verdict of a tier's topic may claim


MAX_ESCALATION_BYTES = 48 << 10  # it travels in a header, beside those of the envelope


def check_id(field: str, text: str, source: str | None = None) -> None:
    """A record id has its form and, unless it is a foreign record's, belongs to the source: partitions and rights go by the source."""
    try:
        name = RecordId.parse(text)
    except InvalidIdentity as error:
        raise InvalidRecord(f"{field}: {error}") from None
    if source is not None and not name.foreign and name.source != source:
        raise InvalidRecord(f"{field} is {text!r:.80}: expected a record of the source {source!r:.80}")


class Answer(Record, frozen=True, kw_only=True):
    """What verdicts and results have in common: one tier's answer to one record."""

    id: RecordIdText
    source: Source
    captured_at: Utc
    status: Status
    detections: Detections
    confidence: Confidence
    tier: Tier
    site: Site
    rank: Annotated[int, Meta(ge=0, le=99)]
    generation: Annotated[int, Meta(ge=0, lt=1 << 31)]
    model: Name
    model_digest: Digest
    deadline_ms: Count | None = None
    evidence: Digest | None = None
    note: Text | None = None

    def check(self) -> None:
        check_id(f"{type(self).__name__}.id", self.id, self.source)
        if (self.status is Status.PROVISIONAL) != (self.deadline_ms is not None):
            raise InvalidRecord(
                f"{type(self).__name__}.deadline_ms is {self.deadline_ms} with status '{self.status}': "
                f"expected a deadline with 'provisional', and only with it"
            )


class Verdict(Answer, frozen=True, kw_only=True):
    """One tier's answer to one record. `deadline_ms` is a duration from when the leaf took the frame; `evidence` is the digest of the
    bytes that a higher tier judged, `note` says why a verdict is not an ordinary one.

    `seen` is for a leaf, whose `detections` are what it believes after tracking and teaching: the first half of the SHA-256 of what its
    model saw in the picture itself (`Detections.to_json()`), which depends on the picture and the model alone."""

    seen: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")] | None = None


class Result(Answer, frozen=True, kw_only=True):
    """The join of all verdicts on a record so far. `order` compares as text: of two results of one record the greater holds."""

    order: Annotated[str, Meta(min_length=8, max_length=128)]


class AlertState(enum.StrEnum):
    """States form a chain. `version` in an alert is the state's height."""

    RAISED = "raised"
    UNREVIEWED = "unreviewed"
    RETRACTED = "retracted"
    CONFIRMED = "confirmed"
    JUDGED = "judged"

    @property
    def height(self) -> int:
        return list(AlertState).index(self)


LATE_S = 5.0  # an alert that comes to its reader later than this after its frame is marked, and never shown as new


class Alert(Record, frozen=True, kw_only=True):
    """A rule fired on a verdict, and what became of it. It carries the rule's class, score and zone, so that it can be judged again
    anywhere. Of an alert on exit the zone is empty: its object stands outside of the one that it left.

    `raised_by` is the tier whose verdict the rule fired on: a region where only it saw the object. `held_s` is how long the rule had held
    when it fired; on entry and exit, how long ago the crossing was. `order` compares as text: of two messages of one alert the greater
    holds; it is empty as long as nothing has decided, else it begins with the order of the result that did. `late_by_s` is how long its
    frame had waited when it was raised, and how long the alert then waited for the link: durations by brokers' clocks, so that no clock at
    the edge makes an alert late or new. `right` is what a person who judged it says of it, if anything.
    """

    id: Name
    rule: Name
    source: Source
    site: Site
    record: RecordIdText
    captured_at: Utc
    state: AlertState
    version: Annotated[int, Meta(ge=0, le=4)]
    label: Annotated[str, Meta(min_length=1, max_length=64)]
    min_score: Confidence
    zone: Zone
    seen: Detections
    score: Confidence
    held_s: Annotated[float, Meta(ge=0)]
    model_digest: Digest
    deadline_ms: Count
    decided_by: Tier | None = None
    note: Text | None = None
    raised_by: Tier = Tier.LEAF
    order: Annotated[str, Meta(max_length=300)] = ""
    late_by_s: Annotated[float, Meta(ge=0)] = 0.0
    right: bool | None = None

    @property
    def late(self) -> bool:
        """Whether it is old news."""
        return self.late_by_s >= LATE_S

    def check(self) -> None:
        check_id("Alert.record", self.record, self.source)
        if self.version != self.state.height:
            raise InvalidRecord(f"Alert.version is {self.version}: expected {self.state.height}, the height of state '{self.state}'")
        if self.right is not None and self.state is not AlertState.JUDGED:
            raise InvalidRecord(f"Alert.right is {self.right} with state '{self.state}': expected it with 'judged' only")


class Reason(enum.StrEnum):
    """Why a higher tier is asked. `unjudged`: no model of the leaf worked, so it has no opinion of its own."""

    ALERT = "alert"
    UNCERTAIN = "uncertain"
    AUDIT = "audit"
    UNJUDGED = "unjudged"


class Asked(Record, frozen=True, kw_only=True):
    """One record that an escalation asks about, with its capture time and what the leaf thought (`Detections.to_json()`)."""

    id: RecordIdText
    captured_at: Utc
    detections: Annotated[str, Meta(max_length=1 << 16)] = "[]"

    def check(self) -> None:
        check_id("Asked.id", self.id)
        try:
            Detections.from_json(self.detections)
        except InvalidRecord as error:
            raise InvalidRecord(f"Asked.detections: {error}") from None


MAX_TTL_S = 30 * 86_400.0  # how long a question may be worth sending; an audit's is so long
CLIP = "video/h264"  # content type of evidence: raw H.264 (Annex B), one frame a record. A JPEG's is `schemas.envelope.JPEG`


class Escalation(Record, frozen=True, kw_only=True):
    """What a higher tier is asked to judge, and why. It travels in the header `escalation`; the record's value is the evidence. So
    it is bound to `MAX_ESCALATION_BYTES`, and, unlike values that sinks read, nests what it asks about as plain JSON.

    `content_type` says what the evidence is: a JPEG, of one record, or a `CLIP`, whose n-th frame is that of the n-th record. Of a reader
    that knows neither it is refused. `audit_rate` is the share of all records that the sample is, which these were drawn into."""

    max_bytes: ClassVar[int] = MAX_ESCALATION_BYTES

    id: Name
    source: Source
    site: Site
    reason: Reason
    records: Annotated[tuple[Asked, ...], Meta(min_length=1, max_length=300)]
    evidence: Digest
    content_type: Name
    deadline_ms: Count
    ttl_s: Annotated[float, Meta(gt=0, le=MAX_TTL_S)]
    alerts: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()
    audit_rate: Annotated[float, Meta(gt=0, le=1)] | None = None

    def check(self) -> None:
        for asked in self.records:
            check_id("Escalation.records", asked.id, self.source)


class Ranges(Json):
    """A set of sequences as sorted, disjoint, inclusive ranges. On the wire: a JSON string of `[first, last]` pairs."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: tuple[tuple[int, int], ...] | list[tuple[int, int]] = ()) -> None:
        self.pairs = tuple(map(_range, pairs))
        for (_, last), (first, _) in pairwise(self.pairs):
            if first <= last + 1:
                raise InvalidRecord(f"Ranges hold {shown(self.pairs)}: expected sorted pairs that neither touch nor overlap")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self.pairs == other.pairs

    def __hash__(self) -> int:
        return hash(self.pairs)

    def __repr__(self) -> str:
        return f"Ranges({list(self.pairs)!r})"

    def to_json(self) -> str:
        return msgspec.json.encode(self.pairs).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            pairs = _ranges.decode(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidRecord(f"ranges are not a JSON array of [first, last] pairs: {error}") from None
        return cls(pairs)


_ranges = msgspec.json.Decoder(tuple[tuple[int, int], ...])


class RangesBySite(Json):
    """Sets of sequences by the site that they are at. On the wire: a JSON string of site names to `[first, last]` pairs."""

    __slots__ = ("_sites",)

    def __init__(self, sites: Mapping[str, Ranges] | None = None) -> None:
        self._sites = dict(sorted((sites or {}).items()))
        for site in self._sites:
            if not _site.match(site):
                raise InvalidRecord(f"ranges by site name {shown(site)}: expected a site, of lower-case letters, digits and '-'")

    def items(self) -> Iterator[tuple[str, Ranges]]:
        """Site and sequences, in the order of the sites' names."""
        yield from self._sites.items()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangesBySite) and self._sites == other._sites

    def __hash__(self) -> int:
        return hash(tuple(self._sites.items()))

    def __repr__(self) -> str:
        return f"RangesBySite({self._sites!r})"

    def to_json(self) -> str:
        return msgspec.json.encode({site: ranges.pairs for site, ranges in self._sites.items()}).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            sites = _by_site.decode(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidRecord(f"ranges by site are not a JSON object of sites with [first, last] pairs: {error}") from None
        return cls({site: Ranges(pairs) for site, pairs in sites.items()})


_by_site = msgspec.json.Decoder(dict[str, tuple[tuple[int, int], ...]])
_site = re.compile(r"[a-z0-9-]{1,64}\Z")


def _range(pair: tuple[int, int]) -> tuple[int, int]:
    match pair:
        case (int(first), int(last)) if 0 <= first <= last < 1 << 63:
            return int(first), int(last)
        case _:
            raise InvalidRecord(f"Ranges hold {shown(pair)}: expected [first, last] with 0 <= first <= last < 2**63")


class Drop(Record, frozen=True, kw_only=True):
    """Sequences of one epoch that a stage did not process, and why. For foreign records `epoch` is `cluster/topic-uuid/partition`,
    `source` is `kafka`, and the sequences are offsets."""

    source: Source
    epoch: Epoch
    site: Site
    stage: Name
    reason: Name
    ranges: Ranges


class EpochState(enum.StrEnum):
    STARTED = "started"
    MARK = "mark"
    ENDED = "ended"


class EpochMark(Record, frozen=True, kw_only=True):
    """What a producer says of one run of a source: `acknowledged` is the number of sequences (from 0) known to be on the broker or
    declared dropped; `assigned` the number given out so far.

    A source may move between sites: `acknowledged` is then over all of them, and `elsewhere` tells which sequences another site's
    broker has, or another site's `drops` names, and this site's do not."""

    source: Source
    epoch: Epoch
    site: Site
    state: EpochState
    assigned: Count
    acknowledged: Count
    started_at: Utc
    width: Annotated[int, Meta(ge=0, le=65_535)] = 0
    height: Annotated[int, Meta(ge=0, le=65_535)] = 0
    fps: Annotated[float, Meta(ge=0, le=10_000)] = 0.0
    elsewhere: RangesBySite = RangesBySite()


class Control(Record, frozen=True, kw_only=True):
    """What a region tells a leaf: how many inferences per second it can spend on that site, and the input side (pixels) it wants."""

    site: Site
    region: Site
    inferences_per_s: Annotated[float, Meta(ge=0, le=1e6)]
    input_side: Annotated[int, Meta(ge=32, le=8192)]


class Position(Record, frozen=True, kw_only=True):
    """How far a link has carried one partition: the source cluster and topic it read, the next offset, the ranges of offsets below it that
    it has not carried yet, and who wrote this. `leader_epoch` is that of the highest record that was carried."""

    cluster: Name
    topic: Name
    topic_uuid: Name
    partition: Count
    next_offset: Count
    leader_epoch: Annotated[int, Meta(ge=-1, lt=1 << 31)] = -1
    backfill: Ranges = Ranges()
    generation: Count = 0
    writer: Name
