"""The ledger of one epoch: which sequences were given out, which are on a broker, which were dropped and why. Pure; it sends nothing."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.intervals import Intervals, Pair
from schemas.messages import Ranges, RangesBySite

MAX_RANGES = 10_000  # in one record: keeps it far below the size that a record may have


class Ledger:
    """What became of each sequence of one epoch.

    A sequence is *open* until it is acknowledged (on a site's broker) or dropped. A dropped one is *undeclared* until a record on a site's
    `drops` that names it is on the broker itself; only then does it count as settled. A sequence may be settled at several sites.

    >>> ledger = Ledger(); [ledger.assign() for _ in range(3)]
    [0, 1, 2]
    >>> ledger.acknowledge(0, "gate"); ledger.drop(1, "broker-slow"); ledger.acknowledge(2, "hall"); ledger.prefix
    1
    >>> reason, ranges = ledger.declare(); ledger.declared(reason, ranges, "hall"); ledger.prefix
    3
    >>> ledger.elsewhere("gate").to_json()
    '{"hall":[[1,2]]}'
    """

    __slots__ = ("_at", "_declaring", "_dropped", "_settled", "_undeclared", "acknowledged", "assigned", "dropped")

    def __init__(self) -> None:
        self.assigned = 0
        self.acknowledged = 0
        self.dropped = 0
        self._settled = Intervals()
        self._at: dict[str, Intervals] = {}
        self._dropped = Intervals()
        self._undeclared: dict[str, Intervals] = {}
        self._declaring = Intervals()

    def assign(self) -> int:
        """Give out the next sequence."""
        sequence = self.assigned
        self.assigned += 1
        return sequence

    def acknowledge(self, sequence: int, site: str = "") -> bool:
        """A site's broker has this one; False if it was known to be at one, or dropped, before."""
        new = sequence not in self._settled and sequence not in self._dropped
        self.acknowledged += new
        self._settled.add(sequence)
        self._at.setdefault(site, Intervals()).add(sequence)
        return new

    def drop(self, sequence: int, reason: str) -> bool:
        """This one will not be sent (again); False if it has ended already."""
        if sequence in self._settled or sequence in self._dropped:
            return False
        self.dropped += 1
        self._dropped.add(sequence)
        self._undeclared.setdefault(reason, Intervals()).add(sequence)
        return True

    def ended(self, sequence: int) -> bool:
        """It was acknowledged or dropped."""
        return sequence in self._settled or sequence in self._dropped

    def declare(self) -> tuple[str, Ranges] | None:
        """Take some undeclared drops of one reason, to be published; `declared` or `undeclared` must follow. None if there are none."""
        if not self._undeclared:
            return None
        reason, waiting = next(iter(self._undeclared.items()))
        taken = Intervals(waiting.pairs()[:MAX_RANGES])
        rest = waiting - taken
        if rest:
            self._undeclared[reason] = rest
        else:
            del self._undeclared[reason]
        self._declaring = self._declaring | taken
        return reason, taken.to_ranges()

    def declared(self, reason: str, ranges: Ranges, site: str = "") -> None:
        """The record that names these drops is on the site's broker."""
        taken = Intervals(ranges.pairs)
        self._declaring = self._declaring - taken
        self._settled = self._settled | taken
        self._at[site] = self._at.get(site, Intervals()) | taken

    def undeclared(self, reason: str, ranges: Ranges) -> None:
        """The record that names these drops did not arrive: they wait to be declared again."""
        taken = Intervals(ranges.pairs)
        self._declaring = self._declaring - taken
        self._undeclared[reason] = self._undeclared.get(reason, Intervals()) | taken

    @property
    def prefix(self) -> int:
        """How many sequences from 0 on, without a gap, are on a broker or declared dropped."""
        first: Pair = next(iter(self._settled.pairs()), (1, 0))
        return first[1] + 1 if first[0] == 0 else 0

    @property
    def settled(self) -> bool:
        """Nothing is open and nothing is undeclared."""
        return self.prefix == self.assigned

    def unaccounted(self) -> Intervals:
        """Sequences that were given out but are neither on a broker nor declared dropped."""
        return Intervals([(0, self.assigned - 1)]) - self._settled if self.assigned else Intervals()

    def elsewhere(self, site: str) -> RangesBySite:
        """Sequences that are settled at other sites and not at this one, by site; of very many ranges the newest."""
        here = self._at.get(site, Intervals())
        found = {other: (there - here).pairs()[-MAX_RANGES:] for other, there in self._at.items() if other != site}
        return RangesBySite({other: Ranges(pairs) for other, pairs in found.items() if pairs})

    def reasons(self) -> Iterator[tuple[str, int]]:
        """Undeclared drops: reason and count."""
        return ((reason, waiting.count()) for reason, waiting in self._undeclared.items())
