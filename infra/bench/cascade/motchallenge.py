"""Labels as MOTChallenge writes them (gt.txt): one box a line, `frame, id, left, top, width, height, consider, class, visibility`.

Frames are counted from 1, boxes are in pixels and taken as they stand. The columns from `class` on may be missing (MOT15, other tools);
then every box is a person. With ten columns the last three are world coordinates, unless each line has a class of MOT16 and a visibility
there.

What counts follows the challenge's own rules for persons [1]_ [2]_: class 1 is to be found; classes that stand for what looks like a person
(on a vehicle, static, distractor, reflection, non-motorised vehicle, crowd) are ignored, and so is what has 0 under `consider`. Cars,
bicycles and motorcycles keep their own labels. Occluders are no objects and are left out.

Lines tell only of frames with boxes. If these lie on a grid (each frame, each tenth, ...) every frame of the grid from the first to the
last is known, also those without a box; if they fill less than half of it, only the frames with lines are.

References
----------
.. [1] A. Milan et al., "MOT16: A Benchmark for Multi-Object Tracking", arXiv:1603.00831, 2016.
.. [2] P. Dendorfer et al., "MOT20: A benchmark for multi object tracking in crowded scenes", arXiv:2003.09003, 2020.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from infra.bench.cascade.truths import Truth, Truths, UnusableLabels, Video, clipped, collected, within
from schemas.records import shown

PERSON = 1
LABELS = {PERSON: "person", 3: "car", 4: "bicycle", 5: "motorcycle"}
LIKE_PERSONS = frozenset({2, 6, 7, 8, 12, 13})  # on a vehicle, non-motorised vehicle, static, distractor, reflection, crowd
CROWD = 13
CLASSES = range(1, 14)
_FIELDS = ("frame", "id", "left", "top", "width", "height", "consider", "class", "visibility")
_COLUMNS = range(7, 11)


class _Row(NamedTuple):
    line: int
    values: list[float]


def parse(text: str, video: Video, *, where: str, first: int = 1, min_visibility: float = 0.0) -> Truths:
    """Read the labels of a video; `labels.read_labels` says what the parameters are and what is raised."""
    rows = list(_rows(text, where))
    if not rows:
        raise UnusableLabels(f"{where} has no boxes: expected lines of {', '.join(_FIELDS)}")
    classed = len(rows[0].values) > 7 and (len(rows[0].values) < 10 or all(map(_has_class, rows)))
    boxes: list[tuple[int, Truth]] = []
    numbered: list[int] = []
    empty = others = 0
    for row in rows:
        index = _frame(row, where, first)
        numbered.append(index)
        truth = _truth(row, video, where, classed=classed, min_visibility=min_visibility)
        if isinstance(truth, Truth):
            boxes.append((index, truth))
        elif truth is None:
            empty += 1
        else:
            others += 1
    inside, beyond = within(numbered, video, where=where, first=first)
    known, covered = _grid(sorted(inside))
    notes = [covered]
    if len(rows[0].values) == 10 and not classed:
        notes.append("columns 8 to 10 were read as world coordinates: every box is a person")
    notes += [beyond] if beyond else []
    notes += [f"{empty} boxes without an area within the image were left out"] if empty else []
    notes += [f"{others} boxes of occluders were left out"] if others else []
    return Truths(
        frames=collected((pair for pair in boxes if pair[0] in inside), known, video.frames, where=where),
        origin=f"{where} (MOTChallenge)",
        notes=tuple(notes),
    )


def _rows(text: str, where: str) -> Iterator[_Row]:
    columns = 0
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        cells = line.split(",") if "," in line else line.split()
        if cells[-1].strip() == "" and len(cells) > 7:  # a comma at the end
            cells.pop()
        if len(cells) not in _COLUMNS:
            raise UnusableLabels(f"{where} line {number}: {len(cells)} columns: expected 7 to 10, {', '.join(_FIELDS)}")
        if columns and len(cells) != columns:
            raise UnusableLabels(f"{where} line {number}: {len(cells)} columns where the lines before have {columns}: expected as many")
        columns = len(cells)
        try:
            values = [float(cell) for cell in cells]
        except ValueError:
            name, cell = next((_name(at), cell) for at, cell in enumerate(cells) if not _is_number(cell))
            raise UnusableLabels(f"{where} line {number}: {name} is {shown(cell.strip())}: expected a number") from None
        if not all(map(math.isfinite, values)):
            at = next(at for at, value in enumerate(values) if not math.isfinite(value))
            raise UnusableLabels(f"{where} line {number}: {_name(at)} is {values[at]}: expected a finite number")
        yield _Row(number, values)


def _frame(row: _Row, where: str, first: int) -> int:
    """The frame, from 0."""
    frame = row.values[0]
    if frame != int(frame) or frame < first:
        hint = "; these labels count from 0: say so" if frame == 0 and first == 1 else ""
        raise UnusableLabels(f"{where} line {row.line}: frame is {frame:g}: expected a whole number from {first}{hint}")
    return int(frame) - first


def _truth(row: _Row, video: Video, where: str, *, classed: bool, min_visibility: float) -> Truth | int | None:
    """The box; None if it has no area within the image, or the class if it is of none that is found."""
    left, top, width, height, consider = row.values[2:7]
    for name, value in (("width", width), ("height", height)):
        if value < 0:
            raise UnusableLabels(f"{where} line {row.line}: {name} is {value:g}: expected pixels from 0")
    if consider not in (0, 1):
        raise UnusableLabels(
            f"{where} line {row.line}: consider is {consider:g}: expected 0 or 1; other values are scores of detections, not labels"
        )
    kind = int(row.values[7]) if classed else PERSON
    if classed:
        if kind == -1:  # not set
            kind = PERSON
        if row.values[7] not in (-1, *CLASSES):
            raise UnusableLabels(
                f"{where} line {row.line}: class is {row.values[7]:g}: expected MOTChallenge's 1 to {CLASSES[-1]}, where 1 is a person; "
                "labels of other classes can be given in COCO's format"
            )
    if kind not in LABELS and kind not in LIKE_PERSONS:
        return kind
    seen = row.values[8] if classed and len(row.values) > 8 else 1.0
    return clipped(
        LABELS.get(kind, LABELS[PERSON]),
        left / video.width,
        top / video.height,
        (left + width) / video.width,
        (top + height) / video.height,
        ignored=consider == 0 or kind in LIKE_PERSONS or 0 <= seen < min_visibility,
        crowd=kind == CROWD,
    )


def _has_class(row: _Row) -> bool:
    """Whether a line of ten columns has MOT16's class and visibility where MOT15 has world coordinates."""
    return row.values[7] in CLASSES and 0 <= row.values[8] <= 1


def _grid(frames: Sequence[int]) -> tuple[Sequence[int], str]:
    """The frames that are known, and a sentence that says so."""
    if len(frames) < 2:
        return frames, "one frame is labelled, and only it is scored"
    step = math.gcd(*(later - earlier for earlier, later in pairwise(frames)))
    grid = range(frames[0], frames[-1] + 1, step)
    if 2 * len(frames) < len(grid):
        return frames, f"{len(frames)} frames with boxes are labelled, without a pattern, and only they are scored"
    every = "every frame" if step == 1 else f"one frame in {step}"
    return grid, f"{every} from {grid[0] + 1} to {grid[-1] + 1} is labelled, {len(grid) - len(frames)} of them without a box"


def _name(column: int) -> str:
    return _FIELDS[column] if column < len(_FIELDS) else f"column {column + 1}"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
