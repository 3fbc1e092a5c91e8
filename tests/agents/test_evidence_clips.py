"""Clips: each can be decoded alone and gives back its frames, and what is none is refused before or while it is decoded."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from types import ModuleType
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.cascade.evidence.annexb import InvalidClip, outline, units
from agents.cascade.evidence.clip import ClipEncoder, NoPyAV, pyav
from agents.cascade.evidence.playback import MAX_CLIP_BYTES, check, pictures
from schemas.config_cascade import MAX_CLIP_FRAMES, MAX_CLIP_SIDE


def scene(number: int, width: int = 64, height: int = 48) -> Any:
    """A white bar whose place tells the number, on a ramp that moves."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, :, 0] = (np.arange(width) + 3 * number) % 200
    at = number * 4 % (width - 4)
    pixels[:, at : at + 4] = 255
    return pixels


def clip(count: int, width: int = 64, height: int = 48, crf: int = 20, first: int = 0) -> bytes:
    encoder = ClipEncoder(width, height, crf)
    sizes = [encoder.add(scene(first + n, width, height)) for n in range(count)]
    data = encoder.finish()
    assert sum(sizes) == len(data), "what is said of each frame is what is sent"
    return data


def made_by(codec: str, container: str, **options: Any) -> bytes:
    """A video that PyAV makes, without any of our code."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=Fraction(10), options=options.pop("options", {}))
        stream.width, stream.height, stream.pix_fmt = options.get("width", 64), options.get("height", 48), options.get("pix_fmt", "yuv420p")
        for number in range(options.get("count", 3)):
            frame = av.VideoFrame.from_ndarray(scene(number, stream.width, stream.height), format="bgr24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


# ---- what is sent


@pytest.mark.parametrize(("count", "width", "height"), [(1, 16, 16), (3, 64, 48), (10, 98, 66), (7, 130, 34), (60, 32, 32), (2, 2048, 16)])
def test_another_reader_finds_every_frame(count: int, width: int, height: int) -> None:
    data = clip(count, width, height)
    with av.open(io.BytesIO(data), format="h264") as container:
        found = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in found] == [(height, width, 3)] * count
    first = next(iter(units(data)))
    assert first.kind == 7, "a clip begins with what a decoder needs"


@given(st.integers(1, 8), st.integers(8, 40), st.integers(8, 40), st.integers(10, 40))
@settings(max_examples=25, deadline=None)
def test_its_frames_come_back_in_order_and_the_same_each_time(count: int, wide: int, high: int, crf: int) -> None:
    width, height = 2 * wide, 2 * high
    data = clip(count, width, height, crf)
    found = list(pictures(data, count))
    assert len(found) == count
    for number, pixels in enumerate(found):
        assert (pixels.shape, pixels.dtype) == ((height, width, 3), np.uint8)
        at = number * 4 % (width - 4)
        bright = pixels[:, :, 1].mean(axis=0)
        assert int(np.convolve(bright, np.ones(4), "valid").argmax()) == pytest.approx(at, abs=1)
    assert all((one == other).all() for one, other in zip(found, pictures(data, count), strict=True))


def test_colours_are_those_that_went_in() -> None:
    encoder = ClipEncoder(64, 64, 10)
    plain = [np.full((64, 64, 3), colour, np.uint8) for colour in ((200, 40, 40), (40, 200, 40), (40, 40, 200), (0, 0, 0), (255, 255, 255))]
    for pixels in plain:
        encoder.add(pixels)
    for pixels, found in zip(plain, pictures(encoder.finish(), len(plain)), strict=True):
        assert np.abs(pixels.astype(int) - found).max() <= 6


def test_nothing_in_a_clip_is_about_the_encoder() -> None:
    kinds = [unit.kind for unit in units(clip(4))]
    assert kinds == [7, 8, 5, 1, 1, 1]
    assert b"x264" not in clip(4)


def test_a_coarser_clip_is_smaller_and_a_frame_of_another_size_is_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    sizes = []
    for crf in (20, 28, 36):
        encoder = ClipEncoder(64, 64, crf)
        encoder.add(noise)
        sizes.append(len(encoder.finish()))
    assert sizes == sorted(sizes, reverse=True)
    encoder = ClipEncoder(64, 64, 28)
    with pytest.raises(ValueError, match="a frame of 64 x 48 in a clip of 64 x 64"):
        encoder.add(scene(0))


# ---- what is refused


def test_there_must_be_one_frame_for_each_record() -> None:
    data = clip(5)
    assert len(list(pictures(data, 5))) == 5
    for count in (1, 4, 6, 60):
        with pytest.raises(InvalidClip, match=f"a clip of 5 frames for {count} records"):
            next(pictures(data, count))
    with pytest.raises(InvalidClip, match="61 records in one clip"):
        next(pictures(data, 61))
    with pytest.raises(InvalidClip, match=f"more than {MAX_CLIP_FRAMES} frames"):
        next(pictures(clip(MAX_CLIP_FRAMES + 1, 32, 32), MAX_CLIP_FRAMES))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda tools: b"", "not H.264: 0 bytes"),
        (lambda tools: tools.picture(3), "not H.264: .* begin with ff d8"),
        (lambda tools: b"\0\0\1", "an empty unit"),
        (lambda tools: made_by("mpeg4", "m4v"), "expected pictures and their headers only|a unit of kind|not H.264"),
        (lambda tools: made_by("libx264", "mp4"), "not H.264"),
        (lambda tools: made_by("libx264", "h264", pix_fmt="yuv444p"), "profile 244"),
        (lambda tools: made_by("libx264", "h264", options={"x264-params": "interlaced=1"}), "interlaced"),
        (lambda tools: made_by("libx264", "h264", width=MAX_CLIP_SIDE + 16, height=16), f"at most {MAX_CLIP_SIDE} x {MAX_CLIP_SIDE}"),
        (lambda tools: made_by("libx264", "h264", width=16, height=MAX_CLIP_SIDE + 2), f"at most {MAX_CLIP_SIDE} x {MAX_CLIP_SIDE}"),
        (lambda tools: clip(3)[2000:], "expected|not H.264|there is no frame|not a whole picture"),
        (lambda tools: b"\0\0\1\x67\x42\0\x0a\0\0\3\0\0\3\0\0\3\1\0\0\1\x68\1\0\0\1\x65\x88", "far too large"),
        (lambda tools: b"\0\0\1\x67\x42\0\x0a\xff\0\0\1\x68\1\0\0\1\x65\x88", "ends too early"),
        (lambda tools: b"\0\0\1\x61\x80\x80" * 5000, "more than 4096 units"),
        (lambda tools: clip(2) + clip(1, 32, 32), "two different headers"),
        (lambda tools: bytes(MAX_CLIP_BYTES + 1), "a clip of 4194305 bytes: at most 4194304"),
    ],
)
def test_what_is_no_plain_clip_is_refused_before_it_is_decoded(
    tools: ModuleType, monkeypatch: pytest.MonkeyPatch, make: Callable[[ModuleType], bytes], said: str
) -> None:
    data = make(tools)
    monkeypatch.setattr("agents.cascade.evidence.playback._decoded", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(InvalidClip, match=said):
        next(pictures(data, 3))


def sps(profile: int, blocks_wide: int, blocks_high: int, cut: int = 0) -> bytes:
    """A sequence header written by hand, after clause 7.3.2.1.1."""

    def ue(number: int) -> str:
        binary = f"{number + 1:b}"
        return "0" * (len(binary) - 1) + binary

    bits = f"{profile:08b}{0:08b}{30:08b}" + ue(0) + ue(0) + ue(2) + ue(1) + "0" + ue(blocks_wide - 1) + ue(blocks_high - 1) + "1" + "0"
    bits += "1" + ue(0) + ue(cut) + ue(0) + ue(cut) if cut else "0"
    bits += "01"
    bits += "0" * (-len(bits) % 8)
    escaped = bytearray()
    for byte in int(bits, 2).to_bytes(len(bits) // 8, "big"):
        if byte <= 3 and escaped[-2:] == b"\0\0":
            escaped.append(3)
        escaped.append(byte)
    return b"\0\0\0\1\x67" + bytes(escaped)


@pytest.mark.parametrize(
    ("blocks", "cut", "said"),
    [
        ((4, 3), 0, None),
        ((60_000, 60_000), 0, "960000 x 960000 pixels: at most"),
        ((1 << 30, 1), 0, "at most"),
        ((60_000, 60_000), 479_900, "more is cut off"),  # a small picture out of an absurd one
    ],
)
def test_absurd_dimensions_are_seen_in_the_header(blocks: tuple[int, int], cut: int, said: str | None) -> None:
    data = sps(66, *blocks, cut) + b"\0\0\1\x68\xce\x38\x80" + b"\0\0\1\x65\x88\x84\x21\xff"
    if said is None:
        assert outline(data, max_frames=1, max_side=MAX_CLIP_SIDE)[:2] == (64, 48)
        return
    with pytest.raises(InvalidClip, match=said):
        outline(data, max_frames=1, max_side=MAX_CLIP_SIDE)


@pytest.mark.parametrize("profile", ["baseline", "main", "high"])
@pytest.mark.parametrize("size", [(16, 16), (18, 34), (98, 66), (640, 480), (1022, 766)])
def test_the_size_that_is_seen_from_outside_is_the_one_that_the_encoder_was_given(profile: str, size: tuple[int, int]) -> None:
    width, height = size
    data = made_by("libx264", "h264", width=width, height=height, options={"profile": profile, "tune": "zerolatency"}, count=2)
    assert outline(data, max_frames=2, max_side=MAX_CLIP_SIDE)[:2] == size
    assert check(data, 2).width == width


def test_slices_of_one_frame_count_as_one() -> None:
    data = made_by("libx264", "h264", options={"x264-params": "slices=3:bframes=0"}, count=4)
    found = outline(data, max_frames=4, max_side=MAX_CLIP_SIDE)
    assert len(found.frames) == 4
    assert b"".join(found.frames).count(b"\0\0\1") == data.count(b"\0\0\1")


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_give_a_whole_clip_or_an_error_that_says_so(data: st.DataObject) -> None:
    """All frames or none: an answer to a part of a clip would be one to the wrong question."""
    whole = clip(6, 64, 48, 30)
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(broken[: data.draw(st.integers(0, len(broken)))]) if data.draw(st.booleans()) else bytes(broken)
    seen = []
    try:
        seen += pictures(cut, 6)
    except InvalidClip:
        assert seen == []
        return
    assert len(seen) == 6
    assert all((one == other).all() for one, other in zip(seen, pictures(cut, 6), strict=True))


@pytest.mark.parametrize("frame", [0, 3, 5])
def test_a_frame_that_is_cut_short_is_not_filled_in(frame: int) -> None:
    parts = list(outline(clip(6, 256, 256, 18), max_frames=6, max_side=512).frames)
    parts[frame] = parts[frame][: len(parts[frame]) // 2]
    with pytest.raises(InvalidClip, match=f"frame {frame} "):
        next(pictures(b"".join(parts), 6))


@pytest.mark.parametrize("frame", [0, 3, 5])
def test_a_frame_that_was_overwritten_in_its_middle_is_refused(frame: int) -> None:
    parts = list(outline(clip(6, 256, 256, 18), max_frames=6, max_side=512).frames)
    middle = len(parts[frame]) // 2
    parts[frame] = parts[frame][:middle] + b"\x55" * 12 + parts[frame][middle + 12 :]
    with pytest.raises(InvalidClip, match=f"frame {frame} "):
        next(pictures(b"".join(parts), 6))


def test_a_clip_without_one_of_its_frames_is_refused() -> None:
    parts = list(outline(clip(6), max_frames=6, max_side=512).frames)
    with pytest.raises(InvalidClip):
        next(pictures(b"".join(parts[1:]), 5))  # not decodable alone
    with pytest.raises(InvalidClip, match="a clip of 5 frames for 6 records"):
        next(pictures(b"".join(parts[:2] + parts[3:]), 6))


def test_without_pyav_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(NoPyAV, match=r"pip install 'headwater\[camera\]'.*evidence.form = 'frame'"):
        pyav()


def test_the_pictures_of_the_demo_lose_little(street: list[bytes]) -> None:
    frames = [cv2.resize(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), (512, 512)) for jpeg in street[:4]]
    encoder = ClipEncoder(512, 512, 28)
    for pixels in frames:
        encoder.add(pixels)
    for pixels, found in zip(frames, pictures(encoder.finish(), 4), strict=True):
        assert np.abs(pixels.astype(int) - found).mean() < 5
