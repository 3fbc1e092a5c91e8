"""Simulated streams whose true accuracy is known: objects that come and go, are missed for a time, and things that are taken for one.

Errors of video are not independent of each other. Here they hang together in three ways that real scenes show: all objects are harder to
see for a while (light, rain), an object that was missed is missed again as long as it is there, and something in the scene is taken for an
object again and again. Times are in frames; at 30 frames a second 1,800 are a minute.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import expit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_NODES, _MASSES = np.polynomial.hermite_e.hermegauss(64)
GHOST_SEEN = 0.8  # share of frames in which a detector falls for something that it falls for


class Frames(NamedTuple):
    """What is right and wrong in each frame of a stream."""

    tp: Ints
    fp: Ints
    fn: Ints


class Truth(NamedTuple):
    """The shares that a stream has in the long run."""

    precision: float
    recall: float
    f1: float

    @classmethod
    def of(cls, tp: float, fp: float, fn: float) -> Truth:
        return cls(tp / (tp + fp), tp / (tp + fn), 2 * tp / (2 * tp + fp + fn))


class _Happens(NamedTuple):
    """What happens in a run: the frame of each sight of an object and how easy it is, false detections to expect, and what is there."""

    when: Ints
    ease: Floats
    ghosts: Floats
    there: NDArray[np.bool_]


class Scene(NamedTuple):
    """A kind of stream.

    Parameters
    ----------
    objects, stay
        How many there are in the mean, and how long one stays; 0: each frame has others.
    seen
        The logit of the probability that an object is seen; `weather` is the standard deviation of what all objects share, and `person` of
        what an object keeps. Weather turns over in `turn` frames (an Ornstein-Uhlenbeck process; 0: each frame has its own).
    ghosts
        The logarithm of the mean number of other false detections in a frame, and `haunted` the standard deviation of its own weather.
    there, away
        How long something that is taken for an object is there, and how long it is not; 0: never.
    """

    name: str
    what: str
    objects: float = 2.0
    stay: float = 300.0
    seen: float = 1.5
    weather: float = 0.8
    person: float = 0.0
    turn: float = 300.0
    ghosts: float = -1.5
    haunted: float = 0.7
    there: float = 0.0
    away: float = 0.0

    @property
    def episode(self) -> float:
        """The frames that one independent episode of errors takes: a window holds as many as it is times as long."""
        return max(2 * self.turn, 2 * self.stay if self.person else 0.0, self.there + self.away, 1.0)

    def truth(self, harder: float = 0.0) -> Truth:
        spread = math.hypot(self.weather, self.person)
        seen = float(_MASSES @ expit(self.seen - harder + spread * _NODES) / _MASSES.sum())
        false = math.exp(self.ghosts + self.haunted**2 / 2)
        if self.there:
            false += GHOST_SEEN * self.there / (self.there + self.away)
        return Truth.of(self.objects * seen, false, self.objects * (1 - seen))

    def play(self, frames: int, rng: np.random.Generator) -> Frames:
        """One run of the stream."""
        return self._seen(self._happens(frames, rng), 0.0, rng)

    def play_pair(self, frames: int, rng: np.random.Generator, harder: float) -> tuple[Frames, Frames]:
        """One run as two models see it, the second less well by `harder` on the scale of the logit: what is hard for one is for both."""
        happens = self._happens(frames, rng)
        return self._seen(happens, 0.0, rng), self._seen(happens, harder, rng)

    def _happens(self, frames: int, rng: np.random.Generator) -> _Happens:
        when, who = self._present(frames, rng)
        weather, person = drift(frames, self.turn, rng), rng.standard_normal(who.max(initial=0) + 1)
        ease = self.seen + self.weather * weather[when] + self.person * person[who]
        there = _switch(frames, self.there, self.away, rng) if self.there else np.zeros(frames, bool)
        return _Happens(when, ease, np.exp(self.ghosts + self.haunted * drift(frames, self.turn, rng)), there)

    def _seen(self, happens: _Happens, harder: float, rng: np.random.Generator) -> Frames:
        when, ease, ghosts, there = happens
        tp = np.bincount(when[rng.random(len(when)) < expit(ease - harder)], minlength=len(there))
        fp = rng.poisson(ghosts) + (there & (rng.random(len(there)) < GHOST_SEEN))
        return Frames(tp, fp.astype(np.int64), np.bincount(when, minlength=len(there)) - tp)

    def _present(self, frames: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """For each time that an object is in a frame: the frame, and which object it is."""
        if not self.stay:
            when = np.repeat(np.arange(frames), rng.poisson(self.objects, frames))
            return when, np.arange(len(when))
        first, later = rng.poisson(self.objects), rng.poisson(self.objects / self.stay * frames)
        come = np.concatenate([np.zeros(first), rng.uniform(0, frames, later)])
        gone = come + rng.exponential(self.stay, first + later)
        start, end = (np.minimum(np.ceil(each), frames).astype(np.int64) for each in (come, gone))
        length = end - start
        before = np.cumsum(length) - length
        return np.arange(length.sum()) + np.repeat(start - before, length), np.repeat(np.arange(len(length)), length)


def drift(frames: int, turn: float, rng: np.random.Generator) -> Floats:
    """A process of mean 0 and variance 1 whose correlation falls as exp(-t/turn)."""
    noise = rng.standard_normal(frames)
    if not turn:
        return noise
    kept = math.exp(-1 / turn)
    noise[1:] *= math.sqrt(1 - kept * kept)
    return np.asarray(lfilter([1.0], [1.0, -kept], noise))


def _switch(frames: int, on: float, off: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Something that is there and away in turn, for times that no memory bounds."""
    state = np.zeros(frames, bool)
    there, at = bool(rng.random() < on / (on + off)), 0
    while at < frames:
        length = math.ceil(rng.exponential(on if there else off))
        state[at : at + length] = there
        at, there = at + length, not there
    return state


SCENES = (
    Scene("independent", "each frame has its own objects and errors", stay=0, turn=0),
    Scene("a second", "objects stay 2 s, difficulty turns over in 1 s", stay=60, turn=30),
    Scene("ten seconds", "objects stay 10 s, difficulty turns over in 10 s"),
    Scene("a minute", "objects stay 30 s, difficulty turns over in 1 min", stay=900, turn=1800),
    Scene(
        "persons",
        "some persons are missed as long as they are there (20 s); a shadow is taken for one for 30 s every 5 min",
        stay=600,
        seen=2.0,
        weather=0.0,
        person=1.8,
        turn=0,
        ghosts=-6.0,
        haunted=0.0,
        there=900,
        away=9000,
    ),
    Scene(
        "rare errors",
        "one object in 30 is missed, and a reflection of 10 s every 5 min is all that is wrong",
        seen=4.0,
        weather=0.8,
        person=0.5,
        turn=300,
        ghosts=-9.0,
        haunted=0.0,
        there=300,
        away=9000,
    ),
)
