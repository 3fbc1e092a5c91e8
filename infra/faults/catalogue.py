"""Every fault by name, and the order of the long form's rounds."""

from __future__ import annotations

import random
from collections.abc import Iterator

from infra.faults.disk import DISK
from infra.faults.kills import CHAOS, FREEZES, KILLS, REBALANCE, STOPS
from infra.faults.links import LINKS
from infra.faults.records import POISON, RECORDS
from infra.faults.rounds import Fault
from infra.faults.storage import STORAGE
from infra.faults.wrong_clock import CLOCK

SHARED = (*KILLS, *STOPS, *FREEZES, REBALANCE, CHAOS, *LINKS, *RECORDS, *STORAGE)  # on one pair of sites, one after the other
REAL = (*KILLS, REBALANCE, CHAOS, *LINKS)  # with real frames too
OWN = (*POISON, DISK, CLOCK)  # each with sites of its own


def rounds(faults: tuple[Fault, ...], chance: random.Random) -> Iterator[Fault]:
    """The faults again and again, each time in another order."""
    while faults:
        yield from chance.sample(faults, len(faults))
