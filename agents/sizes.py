"""The sets of input sides that a leaf may look at a stream in, and the detectors at those that are not the configured one.

Which of them serves a stream best is learned (`agents.cascade.eyes`). Here they are loaded, beside the stream, and timed, so that none is
chosen that the leaf could not keep up with. One that fails or hangs is not looked with again: the ladder's steps go on without it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import msgspec

from agents.cascade.evidence.redaction import watch_of
from agents.inference.detector import Detector, load, name_of
from agents.models import store
from schemas.config import Detector as Settings
from schemas.config import SiteConfig

log = logging.getLogger("headwater.sizes")

Sizes = tuple[int, ...]

LADDER = (224, 320, 416)  # input sides that the sets of our own model are made of
BUSY = 0.35  # share of the time that the looks' threads may be at work for another set to be chosen
_SMOOTH = 0.1


def choices(leaf: Settings) -> list[Settings]:
    """The leaf's detector as it is configured, and those at other sets of input sides that `detector.compute` allows: each of `LADDER` and
    each pair. A model that takes one input size has no other."""
    if leaf.model != store.OWN_MODEL:
        return [leaf]
    sides = sorted({*LADDER, *leaf.sizes})
    bound = leaf.compute * pixels(leaf.sizes)
    sets = [leaf.sizes, *((side,) for side in sides), *combinations(sides, 2)]
    return [
        leaf if each == leaf.sizes else msgspec.structs.replace(leaf, sizes=each, name=_name(leaf, each))
        for each in dict.fromkeys(sets)
        if each == leaf.sizes or pixels(each) <= bound
    ]


def pixels(sizes: Sizes) -> float:
    """What a look costs, in pixels of input: the time of a look grows with them, on every machine alike."""
    return float(sum(side * side for side in sizes))


def _name(leaf: Settings, sizes: Sizes) -> str:
    return f"{leaf.name[:100]} {'+'.join(map(str, sizes))}" if leaf.name else ""


class OtherSizes:
    """The detectors at the sets that are not the configured one, loaded one after the other.

    Parameters
    ----------
    faint_from
        As in `agents.inference.detector.load`.
    """

    def __init__(self, config: SiteConfig, models: Path, *, faint_from: float | None = None) -> None:
        first, *others = choices(config.detector)
        self.configured: Sizes = first.sizes
        self._waiting = {each.sizes: each for each in others}
        self._config, self._models, self._faint_from = config, models, faint_from
        self._detectors: dict[Sizes, Detector] = {}
        self._seconds: dict[Sizes, float] = {}
        self._order = [each.sizes for each in others]
        self._lock = threading.Lock()

    @property
    def sets(self) -> tuple[Sizes, ...]:
        """All sets, the configured one first."""
        return (self.configured, *self._order)

    def index(self, sizes: Sizes) -> int:
        return self._order.index(sizes)

    def find(self, sizes: Sizes) -> Detector | None:
        """The detector at a set, if it is loaded and works."""
        return self._detectors.get(sizes)

    @property
    def waiting(self) -> bool:
        """Whether one has still to be loaded."""
        return bool(self._waiting)

    def load_next(self) -> None:
        """Load the next one, and time it. One that cannot be loaded is left out."""
        with self._lock:
            if not self._waiting:
                return
            sizes, settings = next(iter(self._waiting.items()))
            del self._waiting[sizes]
        try:
            detector = load(settings, self._config.engine, self._models, watch_of(self._config.redact), self._faint_from)
            self.took(sizes, detector.warm_up(3))
        except Exception as error:  # noqa: BLE001 - whatever keeps it from being loaded, the configured sizes serve
            log.warning("frames are not looked at in %s: %s", settings.name or name_of(settings), error)
            return
        self._detectors[sizes] = detector

    def took(self, sizes: Sizes, seconds: float) -> None:
        """A look at a set has come to its end."""
        before = self._seconds.get(sizes, seconds)
        self._seconds[sizes] = before + _SMOOTH * (seconds - before)

    def broke(self, sizes: Sizes, reason: str) -> None:
        """A look at a set has failed, or did not come back: it is not looked with again."""
        if self._detectors.pop(sizes, None) is not None:
            log.warning("frames are not looked at in %s any more: %s", "+".join(map(str, sizes)), reason)

    def hung(self, index: int, reason: str) -> None:
        """A look at a set did not come back, or, beyond the last, loading one."""
        if index < len(self._order):
            self.broke(self._order[index], reason)
        else:
            log.warning("another set of sizes could not be loaded in time: the others are left out")
            self._waiting.clear()

    def seconds(self) -> Mapping[Sizes, float]:
        """How long a look takes at each set that can be looked with, the configured one besides."""
        return {sizes: each for sizes, each in self._seconds.items() if sizes == self.configured or sizes in self._detectors}
