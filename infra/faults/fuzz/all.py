"""All harnesses: importing this module registers them."""

from __future__ import annotations

from infra.faults.fuzz import batches, clips, envelopes, images, records, recovery, screens, sites
from infra.faults.fuzz.harness import REGISTRY, Harness

MODULES = (records, envelopes, batches, images, clips, sites, screens, recovery)


def harnesses() -> list[Harness]:
    """Every harness, in the order of their names."""
    return [REGISTRY[name] for name in sorted(REGISTRY)]
