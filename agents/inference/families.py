"""The detector families by their names in the configuration."""

from __future__ import annotations

from collections.abc import Sequence

from agents.inference import classifier, detr, nanodet, yolov8
from agents.inference.layouts import Family, Misfit
from agents.inference.network import Output

FAMILIES: dict[str, Family] = {family.NAME: family for family in (nanodet, yolov8, detr, classifier)}


def fitting(outputs: Sequence[Output], side: int, classes: int) -> list[str]:
    """The names of the families that can read these outputs."""
    names = []
    for name, family in FAMILIES.items():
        try:
            family.fit(outputs, side, classes)
        except Misfit:
            continue
        names.append(name)
    return names


def guesses(outputs: Sequence[Output], side: int) -> list[tuple[str, int]]:
    """The families that could read these outputs, each with the count of classes that it would take, for a network without labels."""
    lengths = {length for output in outputs for length in output.shape[1:]}
    counts = sorted({length - other for length in lengths for other in (0, 1, 4)})
    return [(name, classes) for classes in counts if classes > 0 for name in fitting(outputs, side, classes)]
