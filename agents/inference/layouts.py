"""What a detector family needs to know of a network before it can read it: the names and shapes of its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from agents.inference.candidates import Candidates
from agents.inference.network import Output
from agents.inference.tensors import Pixels, Placement, Prepared
from schemas.errors import Fault

Outputs = Sequence[NDArray[Any]]


class Misfit(Fault, ValueError):
    """The network's inputs, outputs or labels are not those of the family; the message says what was found and what was expected."""


class Family(Protocol):
    """A way to feed a network and to read its outputs: three pure functions. Each family is one module."""

    NAME: str
    EXPECTS: str  # the outputs, in words

    def fit(self, outputs: Sequence[Output], side: int, classes: int) -> Any:
        """How these outputs are to be read, worked out once; raises `Misfit`."""

    def prepare(self, pixels: Pixels, side: int, layout: Any) -> Prepared:
        """BGR pixels to the network's input."""

    def unpack(self, outputs: Outputs, layout: Any, placement: Placement, min_score: float) -> Candidates:
        """The network's outputs for one picture to boxes in shares of the picture; doubles are still among them."""
