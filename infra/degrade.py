"""What goes wrong with a camera's picture, on purpose: blur, darkness, noise, a moved or a frozen camera, by name and of a stated strength.

For tests of what notices it, and for a demonstration of it. Each fault but the frozen camera is a function from picture to picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import MappingProxyType

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.errors import Fault

Picture = NDArray[np.uint8]  # [height, width, 3], BGR
_Change = Callable[[Picture, float, np.random.Generator], Picture]


class UnknownDegradation(Fault, ValueError):
    """A text that names no fault of a picture; the message says what is expected."""


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One fault: what its strength means, the strength that it has unless one is stated, and the largest that makes sense."""

    strength: str
    default: float
    most: float
    change: _Change | None  # None: the picture stays as it was when the fault began


def blur(picture: Picture, share: float) -> Picture:
    """Out of focus: a Gaussian whose deviation is that share of the picture's width."""
    sigma = share * picture.shape[1]
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.uint8) if sigma > 0 else picture


def darken(picture: Picture, lost: float) -> Picture:
    """That share of the light is lost."""
    return np.asarray(cv2.convertScaleAbs(picture, alpha=1 - lost), np.uint8)


def add_noise(picture: Picture, levels: float, random: np.random.Generator) -> Picture:
    """Gaussian noise of that deviation, in grey levels, new in every picture and at every pixel."""
    noise = random.standard_normal(picture.shape, np.float32) * np.float32(levels)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def move(picture: Picture, share: float) -> Picture:
    """The camera looks that share of the width further to the right, and half as far down; at the edges the picture is mirrored."""
    x = round(share * picture.shape[1])
    y = round(share * picture.shape[1] / 2)
    height, width = picture.shape[:2]
    y = min(y, height - 1)
    wider = cv2.copyMakeBorder(picture, 0, y, 0, min(x, width - 1), cv2.BORDER_REFLECT_101)
    return np.ascontiguousarray(wider[y : y + height, x : x + width], np.uint8)


KINDS = MappingProxyType(
    {
        "blur": Kind(strength="share of the width", default=0.01, most=0.2, change=lambda p, s, _: blur(p, s)),
        "darkness": Kind(strength="share of the light that is lost", default=0.7, most=1.0, change=lambda p, s, _: darken(p, s)),
        "noise": Kind(strength="grey levels", default=25.0, most=255.0, change=add_noise),
        "moved": Kind(strength="share of the width", default=0.15, most=0.9, change=lambda p, s, _: move(p, s)),
        "frozen": Kind(strength="has none", default=1.0, most=1.0, change=None),
    }
)


class Degradation(msgspec.Struct, frozen=True, kw_only=True):
    """A fault of a stated strength that holds from one time to another, in seconds of the video.

    >>> Degradation.parse("blur@20")
    Degradation(name='blur', strength=0.01, from_s=20.0, to_s=None)
    >>> str(Degradation.parse("noise=40@20-35"))
    'noise=40@20-35'
    """

    name: str
    strength: float
    from_s: float = 0.0
    to_s: float | None = None

    @classmethod
    def parse(cls, text: str) -> Degradation:
        """Read `NAME[=STRENGTH]@FROM[-TO]`; raises `UnknownDegradation`."""
        match = _form.fullmatch(text)
        kind = KINDS.get(match["name"]) if match else None
        if match is None or kind is None:
            raise UnknownDegradation(
                f"{text!r:.80}: expected NAME[=STRENGTH]@FROM[-TO] in seconds, such as blur@20; names: {', '.join(KINDS)}"
            )
        strength = float(match["strength"] or kind.default)
        if not 0 < strength <= kind.most:
            raise UnknownDegradation(
                f"{text!r:.80}: the strength of {match['name']} ({kind.strength}) is above 0 and at most {kind.most:g}"
            )
        from_s, to_s = float(match["from"]), float(match["to"]) if match["to"] else None
        if to_s is not None and to_s <= from_s:
            raise UnknownDegradation(f"{text!r:.80}: it ends before it begins")
        return cls(name=match["name"], strength=strength, from_s=from_s, to_s=to_s)

    def __str__(self) -> str:
        until = "" if self.to_s is None else f"-{self.to_s:.12g}"
        return f"{self.name}={self.strength:.12g}@{self.from_s:.12g}{until}"

    def holds(self, at_s: float) -> bool:
        """Whether it is under way at that time."""
        return self.from_s <= at_s and (self.to_s is None or at_s < self.to_s)


_form = re.compile(r"(?P<name>[a-z]+)(=(?P<strength>\d+(\.\d+)?))?@(?P<from>\d+(\.\d+)?)(-(?P<to>\d+(\.\d+)?))?")


class Degrader:
    """Does a fault to the pictures of one camera, in their order.

    Parameters
    ----------
    seed
        Of the noise: the same pictures give the same pictures.
    """

    def __init__(self, degradation: Degradation, seed: int = 0) -> None:
        self.degradation = degradation
        self._random = np.random.default_rng(seed)
        self._kept: Picture | None = None

    def __call__(self, picture: Picture, at_s: float) -> Picture:
        """The picture as the camera gives it at that time of the video."""
        if not self.degradation.holds(at_s):
            self._kept = None
            return picture
        change = KINDS[self.degradation.name].change
        if change is not None:
            return change(picture, self.degradation.strength, self._random)
        if self._kept is None:
            self._kept = picture.copy()
        return self._kept
