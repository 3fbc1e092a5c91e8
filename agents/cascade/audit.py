"""The audit sample: which records are judged by the next tier whatever the leaf thinks of them, so that what is measured on them is true
of all.

A record is in the sample by its id alone: every tier, and every repetition, finds the same ones. The sample of a higher rate holds that of
a lower one, so a rate that changes throws nothing away. What is sent, and what comes of it, does not live here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from hashlib import blake2b

import msgspec
import numpy as np
from numpy.typing import NDArray

RATE = 0.01
BUDGET_SHARE = 0.5  # of either budget that audits may use
_STEPS = 1_000_000  # a rate has six digits, so that it travels as text unchanged
_SIZE = 1 << 64


def audited(record_id: str, rate: float, salt: str) -> bool:
    """Whether a record is in the audit sample.

    Parameters
    ----------
    rate
        The share of records that is, 0 to 1; the one in force travels with the record.
    salt
        The same in the whole fleet. A new one draws a new sample.

    Examples
    --------
    >>> sum(audited(f"gate/0190/{n}", 0.01, "a fleet's salt") for n in range(10_000))
    104
    """
    return _draw(record_id, salt) < _limit(rate)


def audited_rows(record_id: str, rows: int, rate: float, salt: str) -> NDArray[np.intp]:
    """The indexes of a request batch's rows that are in the audit sample. Rows are drawn one by one, as neighbours in a batch often
    resemble each other."""
    if rows <= 0:
        return np.empty(0, np.intp)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64
        mixed = np.uint64(_draw(record_id, salt)) + np.arange(1, rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # splitmix64 (Steele, Lea, Flood, 2014)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    limit = _limit(rate)
    return np.arange(rows) if limit >= _SIZE else np.flatnonzero(mixed < np.uint64(limit))


def _draw(record_id: str, salt: str) -> int:
    return int.from_bytes(blake2b(record_id.encode(), key=_key(salt), digest_size=8).digest())


@functools.lru_cache(maxsize=64)
def _key(salt: str) -> bytes:
    return blake2b(salt.encode(), digest_size=32).digest()


def _limit(rate: float) -> int:
    if not 0 <= rate <= 1:
        raise ValueError(f"an audit rate of {rate}: expected 0 to 1")
    return int(rate * _SIZE)


class Demand(msgspec.Struct, frozen=True):
    """What auditing one stream takes: the rate that is wanted, the records (or rows) a second that it is a share of, and the bytes on the
    link that one of them costs."""

    records_per_s: float
    bytes_per_look: float
    rate: float = RATE


def rates_in_force(
    demands: Mapping[str, Demand], *, budget_bytes_per_s: float, inferences_per_s: float, budget_share: float = BUDGET_SHARE
) -> dict[str, float]:
    """The rate of each stream's audits, such that all together they pass their share of neither budget.

    If they would, all rates fall by the same factor: a stream whose rate was raised (it drifts) stays above the others. A rate is rounded
    down to six digits.

    Examples
    --------
    >>> rates_in_force({"gate": Demand(30, 10_000), "dock": Demand(30, 10_000, 0.05)}, budget_bytes_per_s=1e6, inferences_per_s=1.8)
    {'gate': 0.005, 'dock': 0.025}
    """
    looks = sum(each.rate * each.records_per_s for each in demands.values())
    sent = sum(each.rate * each.records_per_s * each.bytes_per_look for each in demands.values())
    factor = min(1.0, _part(budget_share * inferences_per_s, looks), _part(budget_share * budget_bytes_per_s, sent))
    return {name: _rounded_down(each.rate * factor) for name, each in demands.items()}


def _part(budget: float, wanted: float) -> float:
    return max(budget, 0.0) / wanted if wanted > 0 else 1.0


def _rounded_down(rate: float) -> float:
    return math.floor(rate * _STEPS + 1e-6) / _STEPS  # the little more: .01 * .5 is to stay .005
