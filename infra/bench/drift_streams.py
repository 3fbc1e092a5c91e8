"""Streams of numbers such as a detector's mean confidence gives, frame by frame, with a memory as real ones have it and no drift in them.

Each is an endless iterator of arrays. What is true of the real video's own figures is in `bootstrap` and `looped`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CHUNK = 1 << 18  # frames at a time
_BLOCK = 256


class Stream(Protocol):
    """Makes an endless stream of frames' values."""

    def __call__(self, random: np.random.Generator) -> Iterator[Floats]: ...


def independent(random: np.random.Generator) -> Iterator[Floats]:
    """No memory: Beta(8, 2), whose mean is .8 and deviation .12."""
    while True:
        yield random.beta(8, 2, CHUNK)


def fading(random: np.random.Generator, *, frames: float) -> Iterator[Floats]:
    """An autoregressive part, of which 1/e is left after so many frames, and noise of each frame's own."""
    keep = float(np.exp(-1 / frames))
    powers = keep ** np.arange(_BLOCK)
    response = np.tril(powers[np.subtract.outer(np.arange(_BLOCK), np.arange(_BLOCK)).clip(0)])
    carried = 0.0
    while True:
        driven = random.standard_normal((CHUNK // _BLOCK, _BLOCK)) * np.sqrt(1 - keep * keep) @ response.T
        for block in driven:
            block += carried * keep * powers
            carried = float(block[-1])
        yield (0.7 + 0.07 * driven.ravel() + 0.05 * random.standard_normal(CHUNK)).clip(0, 1)


def crowd(random: np.random.Generator, *, stay_s: float, people: float, fps: float = 10.0, counted: bool = False) -> Iterator[Floats]:
    """People come by chance, stay for a time of widely different length (lognormal), and are each seen with a confidence of their own.

    The value is the mean confidence of who is there (of the last who was, where nobody is), or their number.
    """
    stay = stay_s * fps
    rate = people / stay
    sums, counts = np.zeros(0), np.zeros(0)
    last = 0.7
    for _ in range(20):  # who came before the beginning
        sums, counts = _add_people(random, sums, counts, stay, rate)
        sums, counts = sums[CHUNK:], counts[CHUNK:]
    while True:
        sums, counts = _add_people(random, sums, counts, stay, rate)
        there = np.rint(counts[:CHUNK])
        if counted:
            seen = random.binomial(there.astype(np.int64), 0.9).astype(np.float64)
        else:
            mean = np.where(there > 0, sums[:CHUNK] / np.maximum(there, 1), np.nan)
            known = np.maximum.accumulate(np.where(there > 0, np.arange(CHUNK), -1))
            mean = np.where(known >= 0, mean[known.clip(0)], last)
            last = float(mean[-1])
            seen = (mean + 0.08 * random.standard_normal(CHUNK) / np.sqrt(np.maximum(there, 1))).clip(0, 1)
        yield seen
        sums, counts = sums[CHUNK:], counts[CHUNK:]


def _add_people(random: np.random.Generator, sums: Floats, counts: Floats, stay: float, rate: float) -> tuple[Floats, Floats]:
    """Who comes within the next chunk of frames, added to what is known of the frames ahead."""
    came = random.poisson(rate * CHUNK)
    begins = random.integers(0, CHUNK, came)
    lasts = np.maximum(1, random.lognormal(np.log(stay) - 0.32, 0.8, came)).astype(np.int64)
    ends = np.minimum(begins + lasts, 8 * CHUNK - 1)
    confidence = random.beta(8, 3.4, came)
    size = max(len(sums), int(ends.max(initial=0)) + 2, 2 * CHUNK)
    change, number = np.zeros(size), np.zeros(size)
    np.add.at(change, begins, confidence)
    np.add.at(change, ends, -confidence)
    np.add.at(number, begins, 1.0)
    np.add.at(number, ends, -1.0)
    total, there = np.cumsum(change), np.cumsum(number)
    total[: len(sums)] += sums
    there[: len(counts)] += counts
    return total, there


def bootstrap(random: np.random.Generator, *, series: Floats, block: float = 200.0) -> Iterator[Floats]:
    """A real series in pieces of random length, 200 frames on average, put together anew.

    References
    ----------
    Politis & Romano, "The stationary bootstrap", Journal of the American Statistical Association 89 (1994).
    """
    size = len(series)
    while True:
        jumps = random.random(CHUNK) < 1 / block
        jumps[0] = True
        starts = random.integers(0, size, CHUNK)
        since = np.arange(CHUNK) - np.maximum.accumulate(np.where(jumps, np.arange(CHUNK), 0))
        yield series[(starts[np.arange(CHUNK) - since] + since) % size]


def looped(random: np.random.Generator, *, series: Floats) -> Iterator[Floats]:
    """A real series over and over, as a video that is played in a loop."""
    place = int(random.integers(0, len(series)))
    while True:
        yield series[(place + np.arange(CHUNK)) % len(series)]
        place += CHUNK


def streams(real: Floats | None) -> dict[str, Stream]:
    """All of them by name; `real` is the mean confidence of a real video's frames."""
    made: dict[str, Stream] = {
        "independent": independent,
        "fading, 10 frames": partial(fading, frames=10),
        "fading, 60 frames": partial(fading, frames=60),
        "fading, 400 frames": partial(fading, frames=400),
        "crowd of 12, 15 s each": partial(crowd, stay_s=15, people=12),
        "crowd of 3, 8 s each": partial(crowd, stay_s=8, people=3),
        "passers-by, 5 s each": partial(crowd, stay_s=5, people=0.8),
        "count of a crowd": partial(crowd, stay_s=10, people=8, counted=True),
    }
    if real is not None:
        made["the video, in pieces"] = partial(bootstrap, series=real)
        made["the video, looped"] = partial(looped, series=real)
    return made
