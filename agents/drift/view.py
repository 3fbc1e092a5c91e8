"""Whether a camera still looks where it looked: its picture's edges held against those of its background."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]  # a small grey picture, the mean of some
Edges = NDArray[np.complex64]


class Shift(NamedTuple):
    """Where a picture fits best: the share of its side by which its contents have moved, and the correlation there (-1 to 1)."""

    right: float
    down: float
    correlation: float


def edges(picture: Picture) -> Edges:
    """How the brightness changes at each place, as a complex number: strength and direction."""
    real, imaginary = cv2.Sobel(picture, cv2.CV_32F, 1, 0), cv2.Sobel(picture, cv2.CV_32F, 0, 1)
    return np.asarray(real + 1j * imaginary, np.complex64)


def likeness(one: Edges, other: Edges) -> float:
    """The correlation of two pictures' edges at the same place, -1 to 1.

    Direction counts as well as strength, so light, blur and noise change it little, a camera that was moved by a few hundredths of its view
    a lot (Argyriou & Vlachos's gradient correlation).

    References
    ----------
    Argyriou & Vlachos, "Estimation of sub-pixel motion using gradient cross-correlation", Electronics Letters 39 (2003).
    """
    return float(np.vdot(one, other).real) / _size(one, other)


def best_shift(reference: Edges, now: Edges) -> Shift:
    """Where the edges of now fit those of the reference best."""
    side = reference.shape[0]
    spectrum = np.fft.fft2(now, (2 * side, 2 * side)) * np.conj(np.fft.fft2(reference, (2 * side, 2 * side)))
    fit: NDArray[Any] = np.fft.ifft2(spectrum).real
    down, right = (int(place) for place in np.unravel_index(int(fit.argmax()), fit.shape))
    return Shift(
        right=((right + side) % (2 * side) - side) / side,
        down=((down + side) % (2 * side) - side) / side,
        correlation=float(fit[down, right]) / _size(reference, now),
    )


def _size(one: Edges, other: Edges) -> float:
    return float(np.linalg.norm(one)) * float(np.linalg.norm(other)) + 1e-9
