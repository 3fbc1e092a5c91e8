"""Labels as COCO writes them [1]_: images, annotations with boxes, categories; here the images are frames of one video.

An image's place in the video is the field `frame_index`, `frame_id`, `frame_number` or `frame` (the first that every image has as a whole
number), else the last number in its `file_name`. Numbers are counted from 0 if one of them is 0, or if it is a `frame_index`; else from 1.
If the numbers do not fit (times, names without any) and there are as many images as frames, the images are taken in their order.
Each image that is listed is known, also one without annotations; other frames are not.

`iscrowd` marks a crowd and `ignore` a box that counts neither way; both are ignored, a crowd by COCO's own overlap.

References
----------
.. [1] T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; the format and the rules are those of cocodataset/cocoapi.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

import msgspec

from agents.models.labels import COCO_80
from infra.bench.cascade.truths import Truth, Truths, UnusableLabels, Video, clipped, collected, within
from schemas.records import MAX_MESSAGE, shown

SAME = {
    "pedestrian": "person", "pedestrians": "person", "people": "person", "persons": "person", "human": "person", "cyclist": "person",
    "motorbike": "motorcycle", "aeroplane": "airplane", "bike": "bicycle", "sofa": "couch", "tvmonitor": "tv",
}  # fmt: skip
"""What other data sets call the classes of COCO."""

Id = int | str


class _Image(msgspec.Struct, kw_only=True):
    id: Id
    file_name: str = ""
    width: float | None = None
    height: float | None = None
    video_id: Id | None = None
    frame_index: int | float | str | None = None
    frame_id: int | float | str | None = None
    frame_number: int | float | str | None = None
    frame: int | float | str | None = None


class _Annotation(msgspec.Struct, kw_only=True):
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    iscrowd: int | bool | None = 0
    ignore: int | bool | None = 0


class _Category(msgspec.Struct, kw_only=True):
    id: Id
    name: str


class _Document(msgspec.Struct, kw_only=True):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


_decoder = msgspec.json.Decoder(_Document)
_PLACES = ("frame_index", "frame_id", "frame_number", "frame")
_EXPORTED = re.compile(r"\.rf\.[0-9a-fA-F]+$")  # a digest that one tool puts after the name
_NUMBER = re.compile(r"\d+")


def parse(data: bytes, video: Video, *, where: str, first: int | None = None) -> Truths:
    """Read the labels of a video; `labels.read_labels` says what the parameters are and what is raised."""
    try:
        document = _decoder.decode(data)
    except (ValueError, RecursionError) as error:
        raise UnusableLabels(f"{where} is not COCO's JSON with images, annotations and categories: {str(error)[:MAX_MESSAGE]}") from None
    if not document.images:
        raise UnusableLabels(f"{where}: images is empty: expected one entry for each labelled frame")
    if len(videos := {image.video_id for image in document.images}) > 1:
        raise UnusableLabels(f"{where}: images[].video_id names {len(videos)} videos: keep the images of one")
    places, first, told = _places(document.images, video, where, first)
    if double := [place for place, count in Counter(places).items() if count > 1]:
        names = [shown(image.file_name or image.id) for image, place in zip(document.images, places, strict=True) if place == double[0]]
        raise UnusableLabels(
            f"{where}: images {' and '.join(names[:2])} both are frame {double[0] + first}: expected one image for a frame"
        )
    inside, beyond = within(places, video, where=where, first=first)
    boxes, empty = _boxes(document, places, video, where)
    notes = [f"{len(inside)} of {video.frames} frames are labelled, and only they are scored; {told}"]
    notes += [beyond] if beyond else []
    notes += [f"{empty} boxes without an area within the image were left out"] if empty else []
    frames = collected((pair for pair in boxes if pair[0] in inside), sorted(inside), video.frames, where=where)
    return Truths(frames=frames, origin=f"{where} (COCO)", notes=tuple(notes))


def _places(images: Sequence[_Image], video: Video, where: str, first: int | None) -> tuple[list[int], int, str]:
    """Each image's frame from 0, what the numbers are counted from, and a sentence that says how they were found."""
    source, numbers = _numbers(images)
    if numbers is not None:
        if first is None:
            first = 0 if min(numbers) == 0 or (source == "frame_index" and max(numbers) < video.frames) else 1
        if min(numbers) < first:
            raise UnusableLabels(f"{where}: {source} is {min(numbers)}: expected numbers from {first}")
        if max(numbers) - first < video.frames or len(images) != video.frames:
            return [number - first for number in numbers], first, f"the number in {source} is the frame, counted from {first}"
        ranks = {number: rank for rank, number in enumerate(sorted(numbers))}
        return [ranks[number] for number in numbers], 0, f"the images are the frames in the order of the numbers in {source}"
    if len(images) != video.frames:
        raise UnusableLabels(
            f"{where}: {len(images)} images for a video of {video.frames} frames, and not each has a whole number in frame_index or in its "
            "file_name: give each its frame_index, from 0"
        )
    return list(range(len(images))), 0, "the images are the frames in the order of the file"


def _numbers(images: Sequence[_Image]) -> tuple[str, list[int] | None]:
    for field in _PLACES:
        values = [getattr(image, field) for image in images]
        if all(type(value) is int for value in values):
            return field, values
    found = [_NUMBER.findall(_EXPORTED.sub("", PurePosixPath(image.file_name).stem)) for image in images]
    return "file_name", [int(numbers[-1][-15:]) for numbers in found] if all(found) else None


def _boxes(document: _Document, places: Sequence[int], video: Video, where: str) -> tuple[list[tuple[int, Truth]], int]:
    """Each box with its frame, and how many had no area within the image."""
    names = {category.id: _name(category.name) for category in document.categories}
    found = {image.id: (place, image) for image, place in zip(document.images, places, strict=True)}
    if len(found) < len(document.images):
        raise UnusableLabels(f"{where}: two of images[].id are the same: expected an id for each")
    boxes: list[tuple[int, Truth]] = []
    empty = 0
    for at, each in enumerate(document.annotations):
        if each.image_id not in found:
            raise UnusableLabels(f"{where}: annotations[{at}].image_id is {shown(each.image_id)}: expected the id of one of the images")
        if each.category_id not in names:
            raise UnusableLabels(f"{where}: annotations[{at}].category_id is {shown(each.category_id)}: expected the id of a category")
        left, top, width, height = each.bbox
        if not all(map(math.isfinite, each.bbox)) or width < 0 or height < 0:
            raise UnusableLabels(f"{where}: annotations[{at}].bbox is {list(each.bbox)}: expected left, top, width, height in pixels")
        place, image = found[each.image_id]
        wide, high = image.width or video.width, image.height or video.height
        if wide < 0 or high < 0:
            raise UnusableLabels(f"{where}: an image is {wide:g} x {high:g}: expected its width and height in pixels")
        box = clipped(
            names[each.category_id],
            left / wide,
            top / high,
            (left + width) / wide,
            (top + height) / high,
            ignored=bool(each.iscrowd or each.ignore),
            crowd=bool(each.iscrowd),
        )
        if box is None:
            empty += 1
        else:
            boxes.append((place, box))
    return boxes, empty


def _name(name: str) -> str:
    """A category's name as detectors have it."""
    plain = " ".join(name.replace("_", " ").split())
    lower = plain.lower()
    lower = SAME.get(lower, lower)
    return lower if lower in COCO_80 else plain
