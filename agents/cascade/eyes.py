"""At which input sizes a leaf looks at a stream, learned from a higher tier's verdicts.

A larger input is not a better model: on wide views it finds the small objects, on close ones it loses the large ones, and several sizes
together are most often better than each. So frames that were asked about are looked at once more, beside the stream, at every size; the
verdict says which sizes would have answered it best. What a choice costs in time decides whether it may be chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from agents.cascade.boxes import Boxes
from agents.cascade.calibrator import Calibrator
from agents.cascade.gate import Examined, Gate
from agents.cascade.stream import rightness

Sizes = tuple[int, ...]

EAGER_TRIALS = 48  # verdicts; after so many only one of SELDOM is tried at all sizes
SELDOM = 4


class Tried(msgspec.Struct, frozen=True):
    """All that is known of a stream's choices, as plain values."""

    choices: list[Sizes]
    gate: Examined
    calibrators: list[list[list[float]]]
    verdicts: int


class Eyes:
    """The choice of one stream.

    Parameters
    ----------
    choices
        Sets of input sides, in pixels; the first is the configured one, which holds until another has shown that it is better.
    """

    def __init__(self, choices: Sequence[Sizes]) -> None:
        self.choices = tuple(choices)
        self.gate = Gate(len(self.choices))
        self.calibrators = {sizes: Calibrator() for sizes in self.choices}  # so that a change of sizes does not change what a score means
        self._verdicts = 0

    @property
    def chosen(self) -> Sizes:
        return self.choices[self.gate.chosen] if self.gate.chosen in self.gate.allowed or not self.gate.chosen else self.choices[0]

    def allow(self, seconds: Mapping[Sizes, float], at_most_s: float) -> None:
        """Bound what may be chosen by the time that a look at each choice takes; the first choice stays whatever it takes."""
        self.gate.allowed = frozenset(
            number for number, sizes in enumerate(self.choices) if number == 0 or seconds.get(sizes, float("inf")) <= at_most_s
        )

    def wants_trial(self) -> bool:
        """Whether the next frame that is asked about should be looked at in every size."""
        return len(self.gate.allowed) > 1 and (self._verdicts < EAGER_TRIALS or self._verdicts % SELDOM == 0)

    def hear(self, trial: Mapping[Sizes, Boxes] | None, truth: Boxes, sure: NDArray[np.bool_]) -> None:
        """Take in a verdict on a frame, and what each choice had seen in it, if it was tried."""
        self._verdicts += 1
        if trial is not None and all(sizes in trial for sizes in self.choices):
            for sizes in self.choices:
                self.calibrators[sizes].learn(trial[sizes].scores, rightness(trial[sizes], truth))
            self.gate.examine([trial[sizes] for sizes in self.choices], truth, sure)

    def dump(self) -> Tried:
        return Tried(list(self.choices), self.gate.dump(), [self.calibrators[sizes].dump() for sizes in self.choices], self._verdicts)

    def load(self, known: Tried) -> None:
        """Take up what `dump` gave; raises `ValueError` if it is about other choices."""
        if tuple(known.choices) != self.choices or len(known.calibrators) != len(self.choices):
            raise ValueError(f"what is known is about the sizes {known.choices}: expected {list(self.choices)}")
        self.calibrators = {sizes: Calibrator.load(table) for sizes, table in zip(self.choices, known.calibrators, strict=True)}
        self.gate.load(known.gate)
        self._verdicts = known.verdicts
