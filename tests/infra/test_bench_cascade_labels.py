"""Reading labels: MOTChallenge's lines and COCO's JSON as truths about each frame of a video, and what is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.bench.cascade import labels
from infra.bench.cascade.labels import read_labels
from infra.bench.cascade.truths import Truth, Truths, UnusableLabels, Video

VIDEO = Video(frames=10, width=200, height=100)


def read(tmp_path: Path, content: str | bytes, video: Video = VIDEO, **options: Any) -> Truths:
    path = tmp_path / "labels"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_labels(path, video, **options)


# ---- MOTChallenge


def test_a_line_is_a_box_in_shares_of_the_image_and_frames_count_from_1(tmp_path: Path) -> None:
    found = read(tmp_path, "1,7,20,10,100,50,1,1,0.8\n2,7,20,10,100,50,1,1,0.8\n\n")
    assert found.frames[0] == (Truth("person", 0.1, 0.1, 0.6, 0.6),)
    assert (found.known, found.labels) == ([0, 1], ["person"])
    assert "every frame from 1 to 2" in found.notes[0]


@pytest.mark.parametrize("line", ["1,7,20,10,100,50,1", "1,7,20,10,100,50,1,1", "1,7,20,10,100,50,1,-1,-1,-1", "1 7 20 10 100 50 1 1 1"])
def test_seven_to_ten_columns_by_commas_or_spaces(tmp_path: Path, line: str) -> None:
    assert read(tmp_path, line).frames[0] == (Truth("person", 0.1, 0.1, 0.6, 0.6),)


def test_ten_columns_hold_a_class_only_if_all_lines_have_one(tmp_path: Path) -> None:
    classed = "1,7,20,10,100,50,1,3,1,-1\n2,7,20,10,100,50,1,1,0.5,-1\n"
    assert read(tmp_path, classed).labels == ["car", "person"]
    world = "1,7,20,10,100,50,1,3,1,0\n2,7,20,10,100,50,1,-5.3,11.2,0\n"
    found = read(tmp_path, world)
    assert found.labels == ["person"]
    assert "world coordinates" in found.notes[1]


def test_what_counts_follows_the_challenge(tmp_path: Path) -> None:
    lines = [f"1,{kind},0,0,20,20,1,{kind},1" for kind in range(1, 14)]
    found = read(tmp_path, "\n".join([*lines, "1,99,0,0,20,20,0,1,1"]))
    here = found.frames[0] or ()
    assert [box.label for box in here if not box.ignored] == ["person", "car", "bicycle", "motorcycle"]
    assert [(box.label, box.crowd) for box in here if box.ignored] == [("person", False)] * 5 + [("person", True), ("person", False)]
    assert "3 boxes of occluders" in " ".join(found.notes)


def test_what_is_hardly_visible_can_be_ignored(tmp_path: Path) -> None:
    found = read(tmp_path, "1,1,0,0,20,20,1,1,0.2\n1,2,0,0,20,20,1,1,0.3", min_visibility=0.25)
    assert [box.ignored for box in found.frames[0] or ()] == [True, False]


def test_boxes_are_cut_at_the_edge_and_those_beyond_it_left_out(tmp_path: Path) -> None:
    found = read(tmp_path, "1,1,-20,-10,40,20,1,1,1\n1,2,190,90,40,40,1,1,1\n1,3,200,10,40,20,1,1,1\n1,4,10,10,0,20,1,1,1")
    assert found.frames[0] == (Truth("person", 0, 0, 0.1, 0.1), Truth("person", 0.95, 0.9, 1, 1))
    assert "2 boxes without an area" in found.notes[1]


@pytest.mark.parametrize(
    ("frames", "known", "said"),
    [
        ([2, 3, 5], [1, 2, 3, 4], "every frame from 2 to 5 is labelled, 1 of them"),
        ([1, 4, 10], [0, 3, 6, 9], "one frame in 3 from 1 to 10 is labelled, 1 of them"),
        ([1, 2, 9], [0, 1, 8], "3 frames with boxes are labelled, without a pattern"),
        ([4], [3], "one frame is labelled"),
    ],
)
def test_only_frames_that_the_labels_cover_are_known(tmp_path: Path, frames: list[int], known: list[int], said: str) -> None:
    found = read(tmp_path, "\n".join(f"{frame},1,0,0,20,20,1,1,1" for frame in frames))
    assert found.known == known
    assert said in found.notes[0]


def test_labels_may_count_from_0_if_that_is_said(tmp_path: Path) -> None:
    lines = "0,1,0,0,20,20,1,1,1\n9,1,0,0,20,20,1,1,1\n"
    with pytest.raises(UnusableLabels, match="frame is 0: expected a whole number from 1; these labels count from 0: say so"):
        read(tmp_path, lines)
    assert read(tmp_path, lines, first=0).frames[9]


def test_one_frame_beyond_the_end_is_left_out_and_more_are_another_videos(tmp_path: Path) -> None:
    line = "{},1,0,0,20,20,1,1,1"
    found = read(tmp_path, "\n".join(map(line.format, range(1, 12))))
    assert len(found.known) == 10
    assert "1 frame beyond" in found.notes[-1]
    with pytest.raises(UnusableLabels, match=r"frame 12 \(counted from 1\) is labelled, and 2 of 12 .* video's 10: are these"):
        read(tmp_path, "\n".join(map(line.format, range(1, 13))))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("1,1,0,0,20", "line 1: 5 columns: expected 7 to 10"),
        ("1,1,0,0,20,20,1,1,1\n1,1,0,0,20,20,1", "line 2: 7 columns where the lines before have 9"),
        ("1,1,0,0,wide,20,1", "line 1: width is 'wide': expected a number"),
        ("1,1,0,0,20,nan,1", "line 1: height is nan: expected a finite number"),
        ("1,1,0,0,-20,20,1", "line 1: width is -20: expected pixels from 0"),
        ("1.5,1,0,0,20,20,1", "line 1: frame is 1.5: expected a whole number"),
        ("1,1,0,0,20,20,0.83,-1,-1,-1", "consider is 0.83: expected 0 or 1; other values are scores of detections"),
        ("1,1,0,0,20,20,1,14,1", "class is 14: expected MOTChallenge's 1 to 13"),
        ("", "is empty"),
        ("# nothing", "has no boxes"),
        (b"\xff\xfe\x00", "is not text"),
        ("\n".join(["1,1,0,0,20,20,1"] * 1001), "more than 1000 boxes in frame 0"),
    ],
)
def test_a_line_that_cannot_be_meant_is_refused_with_its_place(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(UnusableLabels, match=said):
        read(tmp_path, content)


@pytest.mark.parametrize(("name", "said"), [("none.txt", "there is no such file"), ("", r"is a folder: name the file in it, .*gt\.txt")])
def test_a_path_that_is_no_file_is_said(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UnusableLabels, match=said):
        read_labels(tmp_path / name, VIDEO)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "MAX_BYTES", 10)
    with pytest.raises(UnusableLabels, match="has more than"):
        read(tmp_path, "1,1,0,0,20,20,1")


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text("0123456789.,-\n e", max_size=200))
def test_whatever_is_in_a_file_it_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes | str) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        found = read_labels(path, VIDEO)
    except UnusableLabels:
        return
    assert len(found.frames) == VIDEO.frames
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for boxes in found.frames for box in boxes or ())


# ---- COCO


def document(images: list[dict[str, Any]], annotations: list[dict[str, Any]] | None = None, **changes: Any) -> bytes:
    whole = {
        "images": [{"id": number, "width": 200, "height": 100, **image} for number, image in enumerate(images)],
        "annotations": [{"image_id": 0, "category_id": 1, "bbox": [20, 10, 100, 50], **each} for each in annotations or [{}]],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "traffic_light"}, {"id": 3, "name": "Pedestrian"}],
    }
    return msgspec.json.encode({**whole, **changes})


def test_an_annotation_is_a_box_in_shares_of_its_own_image(tmp_path: Path) -> None:
    images = [{"file_name": "frame_000001.jpg", "width": 400}, {"file_name": "frame_000004.jpg"}]
    marks: list[dict[str, Any]] = [
        {"segmentation": [[1, 2]], "area": 3, "id": 5},
        {"category_id": 2, "iscrowd": 1},
        {"category_id": 3, "ignore": 1},
    ]
    found = read(tmp_path, document(images, marks))
    assert found.frames[0] == (
        Truth("person", 0.05, 0.1, 0.3, 0.6),
        Truth("traffic light", 0.05, 0.1, 0.3, 0.6, ignored=True, crowd=True),
        Truth("person", 0.05, 0.1, 0.3, 0.6, ignored=True),
    )
    assert found.known == [0, 3], "an image without a box is one in which nothing must be found"
    assert found.frames[3] == ()
    assert "2 of 10 frames are labelled, and only they are scored" in found.notes[0]


NAMES = [f"{number:06d}.png" for number in range(1, 11)]


@pytest.mark.parametrize(
    ("images", "places"),
    [
        ([{"frame_index": 3, "file_name": "9.jpg"}], [3]),
        ([{"frame_index": 10}, {"frame_index": 2}], [1, 9]),  # 10 of ten frames: counted from 1
        ([{"frame_id": 1}, {"frame_id": 4}], [0, 3]),
        ([{"frame_id": 0}, {"frame_id": 4}], [0, 4]),
        ([{"frame": "cam-a", "file_name": "a/7/cam2_frame-03.jpg"}], [2]),
        ([{"file_name": "frame_0003_jpg.rf.0badc0de99.jpg"}], [2]),
        ([{"file_name": "vtest_0.jpg"}, {"file_name": "vtest_9.jpg"}], [0, 9]),
        ([{"file_name": name} for name in NAMES], list(range(10))),
        ([{"file_name": f"{1_600_000_000 + 40 * number}.jpg"} for number in range(10)], list(range(10))),
        ([{"file_name": f"{letter}.jpg"} for letter in "qwertzuiop"], list(range(10))),
    ],
)
def test_an_image_is_the_frame_that_its_field_or_its_name_says(tmp_path: Path, images: list[dict[str, Any]], places: list[int]) -> None:
    assert read(tmp_path, document(images)).known == places


def test_times_as_names_put_images_in_their_order(tmp_path: Path) -> None:
    images = [{"file_name": f"{1_600_000_000 - 40 * number}.jpg"} for number in range(10)]
    assert read(tmp_path, document(images)).frames[9], "the first image is the latest"


def test_the_number_of_the_first_frame_can_be_said(tmp_path: Path) -> None:
    assert read(tmp_path, document([{"file_name": "5.jpg"}]), first=5).known == [0]
    with pytest.raises(UnusableLabels, match="file_name is 4: expected numbers from 5"):
        read(tmp_path, document([{"file_name": "4.jpg"}]), first=5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (document([]), "images is empty"),
        (document([{"file_name": "1.jpg"}], [{"image_id": 9}]), r"annotations\[0\].image_id is 9: expected the id of one of the images"),
        (document([{"file_name": "1.jpg"}], [{}, {"category_id": 9}]), r"annotations\[1\].category_id is 9: expected the id of a category"),
        (document([{"file_name": "1.jpg"}], [{"bbox": [1, 2, -3, 4]}]), r"annotations\[0\].bbox is \[1.0, 2.0, -3.0, 4.0\]: expected left"),
        (document([{"file_name": "1.jpg"}], [{"bbox": [1, 2, 3]}]), r"not COCO's JSON.*\$\.annotations\[0\]\.bbox"),
        (document([{"file_name": "a1.jpg"}, {"file_name": "b1.jpg"}]), "images 'a1.jpg' and 'b1.jpg' both are frame 1"),
        (document([{"file_name": "a.jpg"}]), "1 images for a video of 10 frames, .* give each its frame_index"),
        (document([{"file_name": "1.jpg", "id": 0}, {"file_name": "2.jpg", "id": 0}]), "two of images"),
        (
            document([{"file_name": "1.jpg", "video_id": 1}, {"file_name": "2.jpg", "video_id": 2}]),
            "names 2 videos: keep the images of one",
        ),
        (document([{"file_name": "999.jpg"}, {"file_name": "998.jpg"}]), "frame 999 .* are these the labels of this video"),
        (document([{"file_name": "1.jpg", "width": -5}]), "an image is -5 x 100"),
        (b"[1, 2]", "is not COCO's JSON"),
        (b'{"images": [' * 2000, "is not COCO's JSON"),
        (document([{"file_name": "1.jpg"}], categories=[{"id": 1, "name": "x" * 65}]), "a label is 'xxx.* 1 to 64 characters"),
    ],
)
def test_a_document_that_cannot_be_meant_is_refused_with_its_field(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(UnusableLabels, match=said):
        read(tmp_path, content)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["file_name", "frame_index", "frame_id", "width"]), st.integers() | st.text() | st.floats(), max_size=4)
)
def test_whatever_an_image_says_it_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, image: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(document([image]))
    with contextlib.suppress(UnusableLabels):
        assert len(read_labels(path, VIDEO).frames) == VIDEO.frames
