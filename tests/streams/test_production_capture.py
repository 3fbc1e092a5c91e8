"""Recordings: video files made here with FFmpeg, folders of images, and the cache that lets a loop encode nothing twice."""

from __future__ import annotations

import itertools
import struct
import sys
import wave
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import simplejpeg

from streams.production.cache import FrameCache
from streams.production.capture import VideoFile
from streams.production.images import ImageFolder
from streams.production.pictures import CaptureFailed, Look, jpeg_size

FRAMES, FPS, WIDTH, HEIGHT = 24, 12, 160, 120
LOOK = Look()


def write_video(path: Path, frames: int = FRAMES, fps: int = FPS) -> Path:
    """A video whose frame k is a plain grey of brightness 10 k."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 2_000_000
        for number in range(frames):
            pixels = np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "grey.avi")


def number_of(jpeg: bytes) -> int:
    """Which frame of the test video a picture shows."""
    return round(float(simplejpeg.decode_jpeg(jpeg).mean()) / 10)


def test_a_file_gives_its_frames_in_order_at_its_own_rate(video: Path) -> None:
    file = VideoFile(video, LOOK)
    assert (file.fps, file.width, file.height, file.estimate) == (FPS, WIDTH, HEIGHT, FRAMES)
    pictures = list(file.pictures())
    assert [number_of(picture.jpeg) for picture in pictures] == list(range(FRAMES))
    assert all(jpeg_size(picture.jpeg) == (picture.width, picture.height) == (WIDTH, HEIGHT) for picture in pictures)


def test_width_scales_and_keeps_the_aspect(video: Path) -> None:
    file = VideoFile(video, Look(width=80))
    assert (file.width, file.height) == (80, 60)
    assert jpeg_size(next(file.pictures()).jpeg) == (80, 60)


def test_a_phone_held_upright_gives_upright_pictures(tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        pixels[:, WIDTH // 2 :] = 255  # dark on the left, bright on the right
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    data, at = path.read_bytes(), path.read_bytes().index(b"tkhd") + 44
    as_filmed = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    assert data[at : at + 36] == as_filmed
    turned_right = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # ISO 14496-12: show it a quarter turn clockwise
    path.write_bytes(data[:at] + turned_right + data[at + 36 :])
    file = VideoFile(path, Look(width=60))
    assert (file.width, file.height) == (60, 80)
    picture = simplejpeg.decode_jpeg(next(file.pictures()).jpeg)
    assert picture.shape[:2] == (80, 60)
    assert picture[:30].mean() < 30  # what was on the left is at the top
    assert picture[50:].mean() > 220


def test_quality_costs_bytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(7).integers(0, 255, (64, 64, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), noise)
    sizes = [len(next(ImageFolder(tmp_path, Look(quality=quality)).pictures()).jpeg) for quality in (10, 50, 95)]
    assert sizes[0] < sizes[1] < sizes[2]


def test_a_loop_encodes_every_frame_once(video: Path) -> None:
    file = VideoFile(video, LOOK, FrameCache())
    played = list(itertools.islice(file.pictures(loop=True), 3 * FRAMES + 5))
    assert [number_of(picture.jpeg) for picture in played] == [number % FRAMES for number in range(3 * FRAMES + 5)]
    assert file.recording is not None
    assert file.recording.encoded == FRAMES
    assert played[FRAMES].jpeg is played[0].jpeg


def test_sources_on_one_file_share_what_is_encoded(video: Path) -> None:
    cache = FrameCache()
    one, two, small = VideoFile(video, LOOK, cache), VideoFile(video, LOOK, cache), VideoFile(video, Look(width=80), cache)
    for pictures in zip(one.pictures(), two.pictures(start_s=1.0, loop=True), small.pictures(), strict=False):
        assert len(pictures) == 3
    assert one.recording is two.recording is not small.recording
    assert one.recording is not None
    assert one.recording.encoded == FRAMES


def test_a_preloaded_file_is_not_opened_again(tmp_path: Path) -> None:
    path = write_video(tmp_path / "gone.avi")
    file, seen = VideoFile(path, LOOK, FrameCache()), []
    assert file.preload(lambda done, total: seen.append((done, total)))
    assert seen == [(done, FRAMES) for done in range(1, FRAMES + 1)]
    path.unlink()
    assert len(list(itertools.islice(file.pictures(loop=True), 2 * FRAMES))) == 2 * FRAMES


def test_a_cache_that_is_too_small_keeps_what_fits_and_the_rest_is_encoded_again(video: Path) -> None:
    sizes = [len(picture.jpeg) for picture in VideoFile(video, LOOK).pictures()]
    cache = FrameCache(sum(sizes[:10]))
    file = VideoFile(video, LOOK, cache)
    assert not file.preload()
    played = list(itertools.islice(file.pictures(loop=True), 2 * FRAMES))
    assert [number_of(picture.jpeg) for picture in played] == [number % FRAMES for number in range(2 * FRAMES)]
    assert cache.bytes <= cache.max_bytes
    assert file.recording is not None
    assert len(file.recording) == 10
    assert FRAMES < file.recording.encoded <= 1 + 3 * FRAMES - 2 * 10


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(("start_s", "first"), [(0.0, 0), (1.0, 12), (1.5, 18), (2.0, 0), (3.5, 18)])
def test_a_position_counts_in_frames_and_goes_around(video: Path, start_s: float, first: int, *, cached: bool) -> None:
    file = VideoFile(video, LOOK, FrameCache() if cached else None)
    played = itertools.islice(file.pictures(start_s=start_s, loop=True), FRAMES)
    assert [number_of(picture.jpeg) for picture in played] == [(first + number) % FRAMES for number in range(FRAMES)]


def test_a_damaged_file_gives_what_can_be_read(video: Path, tmp_path: Path) -> None:
    data = bytearray(video.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    damaged = tmp_path / "damaged.avi"
    damaged.write_bytes(data)
    assert 5 <= len(list(VideoFile(damaged, LOOK).pictures())) <= FRAMES


def test_a_cut_off_file_gives_what_can_be_read(video: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.avi"
    cut.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    assert 1 <= len(list(VideoFile(cut, LOOK).pictures())) < FRAMES


def test_what_is_no_video_is_refused_with_the_reason(tmp_path: Path) -> None:
    text, sound = tmp_path / "notes.txt", tmp_path / "sound.wav"
    text.write_text("not a video at all " * 50)
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(text.read_bytes())
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 8000, 800, "NONE", ""))
        file.writeframes(bytes(1600))
    empty = tmp_path / "empty.mp4"
    empty.touch()
    for path, why in [
        (text, "not a video but text"),
        (garbage, "not a video that FFmpeg can read"),
        (sound, "no video in it"),
        (empty, "not a video"),
        (tmp_path / "nope.mp4", "no such file"),
        (tmp_path, f"headwater produce images {tmp_path}"),
    ]:
        with pytest.raises(CaptureFailed, match=why):
            VideoFile(path, LOOK)


def test_without_pyav_the_missing_extra_is_named(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CaptureFailed, match=r"headwater\[camera\]"):
        VideoFile(video, LOOK)


# ---- images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(["b.png", "a.jpg", "c.bmp"]):
        assert cv2.imwrite(str(tmp_path / name), np.full((48, 64, 3), 40 * (number + 1), np.uint8))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "deeper.png").mkdir()
    return tmp_path


def test_images_come_by_name_and_a_jpeg_is_its_own_bytes(folder: Path) -> None:
    images = ImageFolder(folder, LOOK)
    pictures = list(images.pictures())
    assert [round(float(simplejpeg.decode_jpeg(picture.jpeg).mean())) for picture in pictures] == [80, 40, 120]
    assert pictures[0].jpeg == (folder / "a.jpg").read_bytes()
    assert [picture[1:] for picture in pictures] == [(64, 48)] * 3
    assert len(list(itertools.islice(images.pictures(loop=True), 7))) == 7
    assert next(images.pictures(start_s=0.1)).jpeg == pictures[1].jpeg


def test_width_scales_jpegs_too(folder: Path) -> None:
    assert {jpeg_size(picture.jpeg) for picture in ImageFolder(folder, Look(width=32)).pictures()} == {(32, 24)}


def test_a_truncated_jpeg_is_sent_as_it_is_and_what_is_no_image_is_passed_over(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = (folder / "a.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(whole[:100])
    (folder / "b.png").write_bytes(b"not a png")
    images = ImageFolder(folder, LOOK)
    pictures = list(itertools.islice(images.pictures(loop=True), 4))
    assert [len(picture.jpeg) == 100 for picture in pictures] == [True, False, True, False]
    assert caplog.text.count("b.png is passed over") == 1


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CaptureFailed, match="no image in it"):
        ImageFolder(tmp_path, LOOK)
    with pytest.raises(CaptureFailed, match="no such folder"):
        ImageFolder(tmp_path / "nope", LOOK)
    with pytest.raises(CaptureFailed, match="not a folder"):
        ImageFolder(tmp_path / "notes.txt", LOOK)
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(CaptureFailed, match="not one of its 1 images"):
        list(ImageFolder(tmp_path, LOOK).pictures(loop=True))
