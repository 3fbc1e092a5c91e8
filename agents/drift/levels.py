"""What a stream's pictures are like, learnt second by second, and how far those of one second are from it."""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from agents.drift.change import pack, unpack
from agents.drift.traits import CELLS, SMALL, Traits
from agents.drift.view import Edges, Shift, best_shift, edges, likeness
from schemas.drift import Cause

Values = NDArray[np.float32]

FLAT = 2.0  # grey levels: with less contrast a picture shows nothing
UNSTEADY = 0.35  # below such a usual correlation a camera has no view that could be lost
_LIGHT = np.float32(8.0)  # grey levels added before logarithms: near black small differences mean nothing
_GRAIN = 1.0  # the same for noise


class Second(NamedTuple):
    """What the pictures of one second were like, on average."""

    brightness: Values  # of each cell
    sharpness: Values  # of each cell, logarithm
    small: Values
    noise: float
    contrast: float

    @property
    def flat(self) -> bool:
        return self.contrast < FLAT


class SumsState(msgspec.Struct):
    """A second that is not over: sums over its frames."""

    begun_at: float
    frames: int
    moving: int
    brightness: bytes
    sharpness: bytes
    small: bytes
    noise: float
    contrast: float


class Sums:
    """Gathers the frames of one second."""

    def __init__(self, begun_at: float) -> None:
        self.begun_at, self.frames, self.moving = begun_at, 0, 0
        self._brightness, self._sharpness = np.zeros(CELLS * CELLS, np.float32), np.zeros(CELLS * CELLS, np.float32)
        self._small, self._noise, self._contrast = np.zeros(SMALL * SMALL, np.float32), 0.0, 0.0

    def add(self, seen: Traits, *, moving: bool) -> None:
        self.frames += 1
        self.moving += moving
        self._brightness += seen.brightness
        self._sharpness += seen.sharpness
        self._small += seen.small.ravel()
        self._noise += seen.noise
        self._contrast += seen.contrast

    def mean(self) -> Second:
        n = np.float32(self.frames)
        return Second(self._brightness / n, self._sharpness / n, self._small / n, self._noise / self.frames, self._contrast / self.frames)

    def state(self) -> SumsState:
        return SumsState(
            begun_at=self.begun_at,
            frames=self.frames,
            moving=self.moving,
            brightness=pack(self._brightness),
            sharpness=pack(self._sharpness),
            small=pack(self._small),
            noise=self._noise,
            contrast=self._contrast,
        )

    @classmethod
    def restored(cls, state: SumsState) -> Sums:
        sums = cls(state.begun_at)
        sums.frames, sums.moving, sums._noise, sums._contrast = state.frames, state.moving, state.noise, state.contrast
        sums._brightness, sums._sharpness, sums._small = unpack(state.brightness), unpack(state.sharpness), unpack(state.small)
        return sums


class LevelState(msgspec.Struct):
    """What was learnt from so many seconds."""

    seconds: int = 0
    brightness: bytes = b""
    sharpness: bytes = b""
    small: bytes = b""
    noise: float = 0.0
    contrast: float = 0.0
    view: float = 0.0


class Level:
    """A level of all traits: the mean of all seconds at first, later one that forgets.

    Attributes
    ----------
    seconds
        That it was learnt from.
    view
        The usual correlation of a second's edges with the background's.
    """

    def __init__(self, state: LevelState | None = None) -> None:
        state = state or LevelState()
        self.seconds, self.noise, self.contrast, self.view = state.seconds, state.noise, state.contrast, state.view
        self.brightness, self.sharpness, self._small = unpack(state.brightness), unpack(state.sharpness), unpack(state.small)
        self._edges = _edges(self._small) if state.seconds else None

    def learn(self, seen: Second, *, memory: float, view_memory: float) -> None:
        """Take a second in; memories are in seconds."""
        self.seconds += 1
        if self.seconds == 1:
            self.brightness, self.sharpness, self._small = seen.brightness.copy(), seen.sharpness.copy(), seen.small.copy()
            self.noise, self.contrast, self.view = seen.noise, seen.contrast, 1.0
        else:
            share = 1 / min(self.seconds, memory)
            self.view += (self.correlation(seen) - self.view) * share
            self.brightness += (seen.brightness - self.brightness) * np.float32(share)
            self.sharpness += (seen.sharpness - self.sharpness) * np.float32(share)
            self.noise += (seen.noise - self.noise) * share
            self.contrast += (seen.contrast - self.contrast) * share
            self._small += (seen.small - self._small) * np.float32(1 / min(self.seconds, view_memory))
        self._edges = _edges(self._small)

    def correlation(self, seen: Second) -> float:
        """Of a second's edges with the background's."""
        assert self._edges is not None
        return likeness(self._edges, _edges(seen.small))

    def shift(self, seen: Second) -> Shift:
        """Where in a second's pictures the background is found."""
        assert self._edges is not None
        return best_shift(self._edges, _edges(seen.small))

    def distances(self, seen: Second) -> dict[Cause, float]:
        """How far a second is from this level: logarithms of ratios, for the view the share of the usual correlation that it has more or
        less.

        They are medians over the cells, so that what covers less than half of the picture does not count. The view's is NaN where there is
        nothing to compare: in the dark, or with a camera that is always turning.
        """
        shown = not seen.flat and self.contrast >= FLAT and self.view >= UNSTEADY
        return {
            Cause.VIEW: self.correlation(seen) / self.view - 1 if shown else math.nan,
            Cause.BRIGHTNESS: float(np.median(np.log((seen.brightness + _LIGHT) / (self.brightness + _LIGHT)))),
            Cause.NOISE: math.log((seen.noise + _GRAIN) / (self.noise + _GRAIN)),
            Cause.BLUR: float(np.median(seen.sharpness - self.sharpness)),
        }

    def state(self) -> LevelState:
        return LevelState(
            seconds=self.seconds,
            brightness=pack(self.brightness),
            sharpness=pack(self.sharpness),
            small=pack(self._small),
            noise=self.noise,
            contrast=self.contrast,
            view=self.view,
        )


def _edges(small: Values) -> Edges:
    return edges(small.reshape(SMALL, SMALL))
