"""The ledger of one epoch: which sequences were given out, which are on the broker, which were dropped and why. Pure; it sends nothing."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.intervals import Intervals, Pair
from schemas.messages import Ranges

MAX_RANGES = 10_000  # in one Drop record: keeps it far below the size that a record may have


class Ledger:
    """What became of each sequence of one epoch.

    A sequence is *open* until it is acknowledged (on the broker) or dropped. A dropped one is *undeclared* until a record on `drops`
    that names it is on the broker itself; only then does it count as settled.

    >>> ledger = Ledger(); [ledger.assign() for _ in range(3)]
    [0, 1, 2]
    >>> ledger.acknowledge(0); ledger.drop(1, "broker-slow"); ledger.acknowledge(2); ledger.prefix
    1
    >>> reason, ranges = ledger.declare(); ledger.declared(reason, ranges); ledger.prefix
    3
    """

    __slots__ = ("_declaring", "_settled", "_undeclared", "acknowledged", "assigned", "dropped")

    def __init__(self) -> None:
        self.assigned = 0
        self.acknowledged = 0
        self.dropped = 0
        self._settled = Intervals()
        self._undeclared: dict[str, Intervals] = {}
        self._declaring = Intervals()

    def assign(self) -> int:
        """Give out the next sequence."""
        sequence = self.assigned
        self.assigned += 1
        return sequence

    def acknowledge(self, sequence: int) -> None:
        """The broker has this one."""
        self.acknowledged += 1
        self._settled.add(sequence)

    def drop(self, sequence: int, reason: str) -> None:
        """This one will not be sent (again)."""
        self.dropped += 1
        self._undeclared.setdefault(reason, Intervals()).add(sequence)

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

    def declared(self, reason: str, ranges: Ranges) -> None:
        """The record that names these drops is on the broker."""
        taken = Intervals(ranges.pairs)
        self._declaring = self._declaring - taken
        self._settled = self._settled | taken

    def undeclared(self, reason: str, ranges: Ranges) -> None:
        """The record that names these drops did not arrive: they wait to be declared again."""
        taken = Intervals(ranges.pairs)
        self._declaring = self._declaring - taken
        self._undeclared[reason] = self._undeclared.get(reason, Intervals()) | taken

    @property
    def prefix(self) -> int:
        """How many sequences from 0 on, without a gap, are on the broker or declared dropped."""
        first: Pair = next(iter(self._settled.pairs()), (1, 0))
        return first[1] + 1 if first[0] == 0 else 0

    @property
    def settled(self) -> bool:
        """Nothing is open and nothing is undeclared."""
        return self.prefix == self.assigned

    def unaccounted(self) -> Intervals:
        """Sequences that were given out but are neither on the broker nor declared dropped."""
        return Intervals([(0, self.assigned - 1)]) - self._settled if self.assigned else Intervals()

    def reasons(self) -> Iterator[tuple[str, int]]:
        """Undeclared drops: reason and count."""
        return ((reason, waiting.count()) for reason, waiting in self._undeclared.items())
