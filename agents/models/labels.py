"""Names of classes: those of COCO, and those that a user lists in a file, one a line."""

from __future__ import annotations

from pathlib import Path

from schemas.errors import Fault

_COCO_BY_CATEGORY = [
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic_light",
    "fire_hydrant",
    "-",
    "stop_sign",
    "parking_meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "-",
    "backpack",
    "umbrella",
    "-",
    "-",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports_ball",
    "kite",
    "baseball_bat",
    "baseball_glove",
    "skateboard",
    "surfboard",
    "tennis_racket",
    "bottle",
    "-",
    "wine_glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot_dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted_plant",
    "bed",
    "-",
    "dining_table",
    "-",
    "-",
    "toilet",
    "-",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell_phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "-",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy_bear",
    "hair_drier",
    "toothbrush",
]

COCO_80 = tuple(name.replace("_", " ") for name in _COCO_BY_CATEGORY if name != "-")
"""The 80 classes that detectors are trained on, in their usual order: 0 is person."""

COCO_91 = ("unused", *(name.replace("_", " ").replace("-", "unused") for name in _COCO_BY_CATEGORY))
"""By COCO's category number, 0 to 90, as DETR and its kin count; eleven numbers name nothing."""


class InvalidLabels(Fault, ValueError):
    """A file of labels that cannot be used; the message says which line."""


def read_labels(path: Path) -> tuple[str, ...]:
    """One name a line, in the order of the network's classes; empty lines at the end do not count.

    Raises
    ------
    InvalidLabels
        If the file cannot be read, is empty, or a name is empty or longer than 64 characters.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidLabels(f"labels: {path} cannot be read: {error}") from None
    names = tuple(line.strip() for line in lines)
    for number, name in enumerate(names, 1):
        if not 0 < len(name) <= 64 or "\0" in name:
            raise InvalidLabels(f"labels: line {number} of {path} is {name!r:.80}: expected a name of 1 to 64 characters")
    return names
