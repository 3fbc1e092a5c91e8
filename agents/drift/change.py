"""What a watch says: an alarm opens or closes, with what moved and by how much; and how arrays are kept as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.drift import Cause


class Change(NamedTuple):
    """An alarm that opens (`opened`) or closes. `at` is in seconds, as everywhere here, by the one clock of all that a watch is told.

    Of a closed one `after` is the level now; `recovered` tells whether it is what it was, else the stream is stable at a new level.
    """

    cause: Cause
    opened: bool
    at: float
    before: float
    after: float
    evidence: Mapping[str, float]
    recovered: bool = False


def pack(array: NDArray[np.float32]) -> bytes:
    """An array as bytes, which JSON carries in base64: exact, where rounding would let a restart change an alarm."""
    return array.astype("<f4").tobytes()


def unpack(data: bytes) -> NDArray[np.float32]:
    """The array again."""
    return np.frombuffer(data, "<f4").astype(np.float32)
