"""Truths made from the detections of a reference model, where a video has no labels: what is then measured is agreement with it.

A reference is not sure of everything. What it saw with a high score must be found; what it saw with a middling one counts neither way; the
rest it did not see. Agreement is not accuracy: where the reference is wrong, whoever errs as it does is praised.
"""

from __future__ import annotations

from collections.abc import Iterable

from infra.bench.cascade.truths import Truth, Truths
from schemas.detections import Detections

TRUE_FROM = 0.45
UNSURE_FROM = 0.25


def truths(
    detections: Iterable[Detections | None], *, reference: str, true_from: float = TRUE_FROM, unsure_from: float = UNSURE_FROM
) -> Truths:
    """What a reference saw, as truths.

    Parameters
    ----------
    detections
        The reference's answer for each frame; None where it was not asked, so that nothing is known.
    reference
        Its name, for people.
    true_from
        Detections with this score or more must be found.
    unsure_from
        Those with this score or more, and less than `true_from`, are ignored.
    """
    if not 0 <= unsure_from <= true_from <= 1:
        raise ValueError(f"unsure_from is {unsure_from:g} and true_from {true_from:g}: expected 0 <= unsure_from <= true_from <= 1")
    frames = tuple(
        None
        if seen is None
        else tuple(
            Truth(each.label, each.x0, each.y0, each.x1, each.y1, ignored=each.score < true_from)
            for each in seen
            if each.score >= unsure_from and each.x1 > each.x0 and each.y1 > each.y0
        )
        for seen in detections
    )
    return Truths(
        frames=frames,
        origin=f"agreement with {reference}",
        notes=(f"what it saw with a score of {true_from:g} or more is true, from {unsure_from:g} on it counts neither way",),
    )
