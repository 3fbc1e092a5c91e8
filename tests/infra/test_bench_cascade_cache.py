"""Looks that are kept: a video is looked at once, whatever interrupts it, and what is damaged is looked at again."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from infra.bench.cascade.cache import PART, Key, file_digest, folder, looks
from schemas.detections import Detection, Detections

KEY = Key(video="v" * 64, frames="all", evidence="jpeg 416x416 q20", model="m" * 64)
PICTURES = [b"picture %d" % number for number in range(2 * PART + 5)]


class Model:
    """Counts its looks; stops, as by Ctrl-C, before the look of a given number."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.seen: list[bytes] = []
        self.stop_at = stop_at

    def __call__(self, picture: bytes) -> Detections:
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(picture)
        return answer(picture)


def answer(picture: bytes) -> Detections:
    number = int(picture.split()[-1])
    return Detections([Detection("person", 0.5, 0.0, 0.0, number / 1000, 1.0, number)])


ANSWERS = [answer(picture) for picture in PICTURES]


def ask(
    cache: Path, model: Model, key: Key = KEY, pictures: Sequence[bytes] = PICTURES, console: Console | None = None
) -> list[Detections]:
    console = console or Console(file=io.StringIO(), force_terminal=False)
    return looks(key, lambda: pictures, model, what="square.avi", count=len(pictures), cache=cache, console=console)


def parts(cache: Path) -> list[str]:
    return sorted(path.name for path in (folder(cache) / KEY.name).iterdir())


def test_a_video_is_looked_at_once(tmp_path: Path) -> None:
    model = Model()
    assert ask(tmp_path, model) == ANSWERS
    assert model.seen == PICTURES

    def no_pictures() -> Iterator[bytes]:
        raise AssertionError("nothing needs to be decoded")

    again = looks(KEY, no_pictures, Model(stop_at=0), what="square.avi", cache=tmp_path)
    assert again == ANSWERS
    assert parts(tmp_path) == ["00000000", "00000032", "00000064"]


@pytest.mark.parametrize("field", ["video", "frames", "evidence", "model"])
def test_whatever_decides_the_answers_is_in_the_key(tmp_path: Path, field: str) -> None:
    ask(tmp_path, Model())
    model = Model()
    changed = {name: getattr(KEY, name) for name in KEY.__struct_fields__} | {field: "another"}
    ask(tmp_path, model, Key(**changed))
    assert model.seen == PICTURES


@pytest.mark.parametrize("stop_at", [0, 1, PART, PART + 7, len(PICTURES) - 1])
def test_an_interrupted_run_keeps_what_it_has_seen(tmp_path: Path, stop_at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path, Model(stop_at))
    model = Model()
    assert ask(tmp_path, model) == ANSWERS
    assert model.seen == PICTURES[stop_at:]


def test_an_interruption_while_it_reads_what_is_known_loses_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path, Model(2 * PART))

    def interrupted() -> Iterator[bytes]:
        yield from PICTURES[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        looks(KEY, interrupted, Model(), what="square.avi", cache=tmp_path, console=Console(file=io.StringIO()))
    model = Model()
    assert ask(tmp_path, model) == ANSWERS
    assert model.seen == PICTURES[2 * PART :]


def test_what_ends_a_run_otherwise_keeps_it_too(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield from PICTURES[:10]
        raise OSError("the video ends in garbage")

    with pytest.raises(OSError, match="garbage"):
        looks(KEY, broken, Model(), what="square.avi", cache=tmp_path, console=Console(file=io.StringIO()))
    model = Model()
    ask(tmp_path, model)
    assert model.seen == PICTURES[10:]


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "gone"])
def test_a_damaged_part_is_looked_at_again(tmp_path: Path, damage: str) -> None:
    ask(tmp_path, Model())
    part = folder(tmp_path) / KEY.name / "00000032"
    data = bytearray(part.read_bytes())
    data[data.rindex(b"person") + 8] ^= 8  # a score of .5 becomes .75: only the digest tells
    if damage == "gone":
        part.unlink()
    else:
        part.write_bytes({"cut": bytes(data[:-7]), "flipped": bytes(data), "emptied": b""}[damage])
    model = Model()
    assert ask(tmp_path, model) == ANSWERS
    assert model.seen == PICTURES[PART:], "parts after it have no place without it"
    assert ask(tmp_path, Model(stop_at=0)) == ANSWERS


def test_a_part_of_another_place_is_not_taken_for_this_one(tmp_path: Path) -> None:
    ask(tmp_path, Model())
    entry = folder(tmp_path) / KEY.name
    (entry / "00000032").write_bytes((entry / "00000000").read_bytes())
    assert ask(tmp_path, Model()) == ANSWERS


def test_pictures_that_changed_under_one_key_are_looked_at_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path, Model(10))
    others = [b"other 77", *PICTURES[1:]]
    model = Model()
    assert ask(tmp_path, model, pictures=others) == [answer(others[0]), *ANSWERS[1:]]
    assert model.seen == [others[0], *PICTURES[10:]]


def test_pixels_can_be_looked_at_too(tmp_path: Path) -> None:
    frames = [np.full((2, 3, 3), value, np.uint8) for value in (1, 2)]
    seen: list[int] = []

    def look(pixels: np.ndarray) -> Detections:
        seen.append(int(pixels[0, 0, 0]))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return Detections()

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            looks(KEY, lambda: [frames[0], frames[1]], look, what="pixels", cache=tmp_path, console=Console(file=io.StringIO()))
        seen[:] = seen[-1:]
    assert seen == [2], "the first frame was known"


def test_an_empty_video_is_complete(tmp_path: Path) -> None:
    assert ask(tmp_path, Model(), pictures=[]) == []
    assert looks(KEY, lambda: PICTURES, Model(), what="", cache=tmp_path) == []


def test_without_room_it_goes_on_and_says_so_once(tmp_path: Path) -> None:
    (tmp_path / "looks").write_text("a file where the folder should be")
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    assert ask(tmp_path, Model(), console=console) == ANSWERS
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("cannot be kept") == 1
    assert said.startswith(f"looking at square.avi (0 of {len(PICTURES)} frames are known)\n")


def test_nothing_unfinished_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("infra.bench.cascade.cache.os.replace", full)
    assert ask(tmp_path, Model()) == ANSWERS
    assert parts(tmp_path) == []


def test_a_terminal_shows_a_bar(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    ask(tmp_path, Model(), console=console)
    assert "looking at square.avi" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_files_digest_is_of_its_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"video")
    second.write_bytes(b"video")
    assert file_digest(first) == file_digest(second) != file_digest(Path(__file__))
