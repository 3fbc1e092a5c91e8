"""Decoding: at the scale that the model needs, and refusing what is not a whole JPEG of a bearable size."""

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.inference.images import MAX_PIXELS, UndecodableImage, decode


def _gradient(width: int, height: int) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)


JPEG = simplejpeg.encode_jpeg(_gradient(640, 480), quality=90, colorspace="BGR")


@settings(deadline=None)  # the machine may be busy
@given(width=st.integers(16, 900), height=st.integers(16, 900), side=st.sampled_from([32, 224, 416, 640]))
def test_it_decodes_no_smaller_than_asked_unless_the_image_is(width: int, height: int, side: int) -> None:
    image = decode(simplejpeg.encode_jpeg(_gradient(width, height), quality=80, colorspace="BGR"), side)
    rows, columns, _ = image.pixels.shape
    assert (image.width, image.height) == (width, height)
    assert columns >= min(side, width)
    assert rows >= min(side, height)


def test_it_decodes_at_a_reduced_scale_in_bgr() -> None:
    image = decode(JPEG, 200)
    assert image.pixels.shape == (240, 320, 3)  # 4/8: at 3/8 the height would be 180
    assert np.abs(image.pixels.astype(int) - _gradient(320, 240)).mean() < 3


@settings(deadline=None)  # the machine may be busy
@given(cut=st.integers(0, len(JPEG) - 1))
def test_a_truncated_jpeg_is_refused_wherever_it_ends(cut: int) -> None:
    with pytest.raises(UndecodableImage, match="JPEG"):
        decode(JPEG[:cut], 224)


def test_a_damaged_scan_is_refused() -> None:
    damaged = bytearray(JPEG)
    damaged[len(JPEG) // 2 : len(JPEG) // 2 + 2] = b"\xff\xc4"  # a table where picture data should be
    with pytest.raises(UndecodableImage, match="damaged or truncated"):
        decode(bytes(damaged), 224)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n" + bytes(64), b"hello", bytes(1000)], ids=["empty", "png", "text", "zeros"])
def test_what_is_not_a_jpeg_is_refused_and_said_so(data: bytes) -> None:
    with pytest.raises(UndecodableImage, match="not a JPEG"):
        decode(data, 224)


def test_a_header_that_promises_too_many_pixels_is_refused_before_decoding() -> None:
    start = JPEG.index(b"\xff\xc0")  # SOF0: marker, length (2), precision (1), height (2), width (2)
    huge = JPEG[: start + 5] + (65_000).to_bytes(2, "big") * 2 + JPEG[start + 9 :]
    with pytest.raises(UndecodableImage, match=f"65000 x 65000 pixels: at most {MAX_PIXELS // 1_000_000} million"):
        decode(huge, 224)


def test_a_grey_jpeg_is_an_image_too() -> None:
    grey = _gradient(320, 240)[..., :1].copy()
    image = decode(simplejpeg.encode_jpeg(grey, quality=90, colorspace="GRAY"), 224)
    assert image.pixels.shape == (240, 320, 3)
    assert (image.pixels[..., 0] == image.pixels[..., 2]).all()
