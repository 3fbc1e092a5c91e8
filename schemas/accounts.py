"""What an accountant has counted of one epoch: interval sets that outlive the records they were counted from, and travel up the link.

Sets only grow, and each record of `accounts` is true by itself: a reader unites whatever it finds. So a set that is old, repeated or split
says less than there is, never more.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

from schemas.identity import Epoch, Site, Source
from schemas.intervals import Pair
from schemas.messages import Count, EpochMark, EpochState, Name, Ranges, Utc
from schemas.records import InvalidRecord, Record, shown

MAX_PAIRS = 512  # in one record: some 12 KB, since the part that grows is written again and again
_BITS = 63  # of a sequence


class Outcome(enum.StrEnum):
    """What is said of the sequences: `produced` (the producer's acknowledged mark), how they ended, or that another site has them."""

    PRODUCED = "produced"
    RESULT = "result"
    DEAD = "dead"
    DROPPED = "dropped"
    ELSEWHERE = "elsewhere"


class AccountSet(Record, frozen=True, kw_only=True):
    """Sequences of one epoch of which the accountant of a site knows the same.

    `stage` and `reason` are those of the drops; with `elsewhere` the reason is the site's name. `part` names the piece of a set that is too
    long for one record. `assigned` and `state` go with `produced` only. `seen_at` is when a broker last took a record that says something
    new here, by that broker's clock.
    """

    source: Source
    epoch: Epoch
    site: Site
    outcome: Outcome
    stage: Name
    reason: Name | None = None
    part: Name = "0"
    ranges: Ranges
    seen_at: Utc
    assigned: Count = 0
    state: EpochState | None = None

    def check(self) -> None:
        if (self.outcome in (Outcome.DROPPED, Outcome.ELSEWHERE)) != (self.reason is not None):
            raise InvalidRecord(
                f"AccountSet.reason is {shown(self.reason)} with outcome '{self.outcome}': expected one with 'dropped' and 'elsewhere' only"
            )

    @property
    def key(self) -> str:
        """`source/epoch/site/stage`, and what makes it one writer's one set."""
        return "/".join((self.source, self.epoch, self.site, self.stage, self.outcome, *filter(None, (self.reason,)), self.part))


def parts(pairs: Sequence[Pair], limit: int = MAX_PAIRS) -> Iterator[tuple[str, list[Pair]]]:
    """Divide a set into pieces of at most `limit` ranges, by halving the sequences: a piece keeps its name and its ranges when another one
    changes, so that only what changed is written again. A range that crosses a border is cut there.

    >>> list(parts([(0, 1), (4, 4), (6, 9)], limit=2))
    [('0.2', [(0, 1)]), ('4.2', [(4, 4), (6, 7)]), ('8.3', [(8, 9)])]
    """
    yield from _halve(list(pairs), 0, _BITS, limit)


def _halve(pairs: list[Pair], first: int, bits: int, limit: int) -> Iterator[tuple[str, list[Pair]]]:
    if not pairs:
        return
    if len(pairs) <= limit or not bits:
        yield f"{first:x}.{bits}", pairs
        return
    middle = first + (1 << (bits - 1))
    yield from _halve([(a, min(b, middle - 1)) for a, b in pairs if a < middle], first, bits - 1, limit)
    yield from _halve([(max(a, middle), b) for a, b in pairs if b >= middle], middle, bits - 1, limit)


def mark_of(known: AccountSet) -> EpochMark | None:
    """The producer's mark that a set of `produced` stands for; None for the others, and where nothing was acknowledged yet."""
    if known.outcome is not Outcome.PRODUCED or known.state is None:
        return None
    acknowledged = known.ranges.pairs[-1][1] + 1 if known.ranges.pairs else 0
    return EpochMark(
        source=known.source,
        epoch=known.epoch,
        site=known.site,
        state=known.state,
        assigned=known.assigned,
        acknowledged=acknowledged,
        started_at=known.seen_at,
    )


class AccountPast(Record, frozen=True, kw_only=True):
    """The epochs of a source that ended so long ago that only their numbers are kept. `folded` are the epochs that were added last, so
    that a crash before their sets are gone does not add them twice."""

    source: Source
    site: Site
    epochs: Count
    produced: Count
    results: Count
    dead: Count
    dropped: Count
    missing: Count
    folded: tuple[Epoch, ...] = ()
    seen_at: Utc

    @property
    def key(self) -> str:
        return f"{self.source}//{self.site}/past"


def read_entry(data: bytes | None) -> AccountSet | AccountPast:
    """A record of `accounts`; raises `InvalidRecord`."""
    try:
        return AccountSet.from_bytes(data)
    except InvalidRecord as error:
        try:
            return AccountPast.from_bytes(data)
        except InvalidRecord:
            raise error from None
