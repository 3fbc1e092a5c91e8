"""What one picture is like: how bright, sharp and noisy, cell by cell, so that who walks through it changes little. No memory lives here.

Everything is measured at one size whatever the picture's, because a leaf under load decodes at another scale.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 160  # of the square that is measured: the smallest input of the leaf's detectors
CELLS = 10  # a side
SMALL = 40  # of the square that motion and the camera's view are judged by

# Immerkaer's mask: the difference of two Laplacians. Flat areas, ramps and straight edges along its axes give 0, noise does not.
_MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
_NOISE_SCALE = 1 / (6 * 0.6745)  # the mask's gain, and the median of |N(0, 1)|
_FLAT = 4.0  # grey levels squared: below such a variance a cell has nothing that could be sharp


class Traits(NamedTuple):
    """A picture's traits. Cells are in rows, from the upper left."""

    small: NDArray[np.uint8]  # [SMALL, SMALL]
    brightness: NDArray[np.float32]  # of each cell: mean grey level
    sharpness: NDArray[np.float32]  # of each cell: log of the variance of the Laplacian over the grey levels' own
    noise: float  # deviation, grey levels
    contrast: float  # deviation of the grey levels
    digest: int  # CRC-32 of what is measured: two pictures with one digest are the same, noise included


def traits(pixels: NDArray[np.uint8]) -> Traits:
    """Measure a picture, BGR or grey.

    Sharpness is the variance of the Laplacian (Pech-Pacheco et al., 2000) over that of the grey levels, so that less light leaves it alone.
    Noise is the median of Immerkaer's mask instead of its mean, which edges would raise.

    References
    ----------
    Immerkaer, "Fast noise variance estimation", Computer Vision and Image Understanding 64 (1996).
    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a comparative study", ICPR (2000).
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY) if pixels.ndim == 3 else pixels
    middle = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    levels = np.asarray(middle, np.float32)
    mean = _cells(levels)
    spread = np.maximum(_cells(levels * levels) - mean * mean, 0)
    edges = np.asarray(cv2.Laplacian(levels, cv2.CV_32F), np.float32)
    bend = np.maximum(_cells(edges * edges) - _cells(edges) ** 2, 0)
    residue = np.abs(cv2.filter2D(middle, cv2.CV_16S, _MASK)[::2, ::2])
    return Traits(
        small=np.asarray(cv2.resize(middle, (SMALL, SMALL), interpolation=cv2.INTER_AREA), np.uint8),
        brightness=mean,
        sharpness=np.log((bend + 0.1) / (spread + _FLAT)).astype(np.float32),
        noise=float(np.median(residue)) * _NOISE_SCALE,
        digest=zlib.crc32(np.ascontiguousarray(middle).data),
        contrast=float(np.sqrt(max(0.0, float(np.mean(spread + mean * mean)) - float(np.mean(mean)) ** 2))),
    )


def _cells(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of each cell."""
    return np.asarray(cv2.resize(values, (CELLS, CELLS), interpolation=cv2.INTER_AREA), np.float32).ravel()
