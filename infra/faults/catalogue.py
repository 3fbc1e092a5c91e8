"""Every fault by name, and the order of the long form's rounds."""

from __future__ import annotations

import random
from collections.abc import Iterator

from infra.faults.disk import DISK, LOW_DISK
from infra.faults.kills import CHAOS, FREEZES, KILLS, REBALANCE, STOPS
from infra.faults.links import LINKS
from infra.faults.network.scenarios import SCENARIOS
from infra.faults.records import POISON, RECORDS
from infra.faults.rounds import Fault
from infra.faults.storage import STORAGE
from infra.faults.wrong_clock import CLOCK

SHARED = (*KILLS, *STOPS, *FREEZES, REBALANCE, CHAOS, *LINKS, *RECORDS, *STORAGE)  # on one pair of sites, one after the other
REAL = (*KILLS, REBALANCE, CHAOS, *LINKS)  # with real frames too
OWN = (*POISON, DISK, LOW_DISK, CLOCK)  # each with sites of its own
NETWORKS = SCENARIOS  # sites in network namespaces, with a bad wire between them


def rounds(faults: tuple[Fault, ...], chance: random.Random) -> Iterator[Fault]:
    """The faults again and again, each time in another order."""
    while faults:
        yield from chance.sample(faults, len(faults))
