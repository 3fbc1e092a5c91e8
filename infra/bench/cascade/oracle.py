"""The best that choosing frames alone could do: frames taken greedily by what the truth says each would gain.

It knows the truth of the whole video, so nothing that runs can reach it; it has no memory and teaches nobody. Frames are taken a few at a
time, since each choice asks for the average precision of every frame's candidate set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from infra.bench.cascade.matching import match, stacked
from infra.bench.cascade.scoring import average_precision
from infra.bench.cascade.truths import Truths
from schemas.detections import Detections

STEPS = 40


def greedy(
    truths: Truths, leaf: Sequence[Detections], region: Sequence[Detections], shares: Sequence[float], labels: Sequence[str] | None = None
) -> dict[float, NDArray[np.bool_]]:
    """For each share of the frames, which of them to ask the region about.

    Parameters
    ----------
    leaf, region
        The answers of both for each frame.
    shares
        0 to 1.
    """
    total = len(leaf)
    both = stacked(match(truths, leaf), match(truths, region))
    chosen = np.zeros(total, bool)
    order: list[int] = []
    wanted = {share: round(share * total) for share in shares}
    step = max(1, max(wanted.values(), default=0) // STEPS)
    while len(order) < max(wanted.values(), default=0):
        left = np.flatnonzero(~chosen)
        masks = np.repeat(chosen[None], len(left), axis=0)
        masks[np.arange(len(left)), left] = True
        gains = average_precision(both, np.concatenate([~masks, masks], axis=1).astype(np.float64), labels=labels)
        best = left[np.argsort(-gains, kind="stable")[:step]]
        chosen[best] = True
        order += best.tolist()
    found = {}
    for share, count in wanted.items():
        mask = np.zeros(total, bool)
        mask[order[:count]] = True
        found[share] = mask
    return found
