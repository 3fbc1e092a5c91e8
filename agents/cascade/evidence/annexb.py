"""An H.264 byte stream (Annex B of ITU-T H.264) seen from outside: where its units lie, how many frames it has, and how large they are.

It is what stands between bytes from elsewhere and a decoder: what has too many frames, absurd dimensions, or anything else in it than the
plain video that our leaves make, is refused before any of it is decoded. Nothing here decodes a picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_UNITS = 4096  # slices and headers of one clip
MAX_REFERENCES = 16
_BLOCK = 16  # pixels a side
_START = re.compile(rb"\x00\x00\x01")
_SLICE, _IDR, _SEI, _SPS, _PPS, _DELIMITER = 1, 5, 6, 7, 8, 9
_KNOWN = {_SLICE, _IDR, _SEI, _SPS, _PPS, _DELIMITER}
_PICTURE = {_SLICE, _IDR}
_PLAIN_PROFILES = {66: "baseline", 77: "main", 100: "high"}


class InvalidClip(ValueError):
    """Bytes that are not a clip that may be decoded. A record that carries them will never succeed."""


class Outline(NamedTuple):
    """What is known of a clip before it is decoded: the size of its frames in pixels, and the bytes of each frame with its headers."""

    width: int
    height: int
    frames: tuple[bytes, ...]


class Unit(NamedTuple):
    """A unit (NAL unit) of the stream: its kind, and where it lies, from its start code to the next one."""

    kind: int
    start: int
    body: int  # where its first byte after the start code lies
    end: int


def units(data: bytes) -> Iterator[Unit]:
    """The units of a stream, in order; raises `InvalidClip` if it does not begin with one, or has more than `MAX_UNITS`."""
    starts = []
    for found in _START.finditer(data):
        starts.append(found.start())
        if len(starts) > MAX_UNITS:
            raise InvalidClip(f"more than {MAX_UNITS} units in one clip")
    if not starts or data[: starts[0]].strip(b"\0"):
        raise InvalidClip(f"not H.264: {len(data)} bytes that begin with {data[:4].hex(' ') or 'nothing'} (expected 00 00 01)")
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        body = start + 3
        if body >= end or not data[body:end].strip(b"\0"):
            raise InvalidClip(f"an empty unit at byte {start}")
        yield Unit(data[body] & 31, start, body, end)


def outline(data: bytes, *, max_frames: int, max_side: int) -> Outline:
    """What a clip is, seen from outside.

    It begins with a whole picture (IDR) and the headers that a decoder needs; all headers of one kind are the same; it is progressive, with
    eight bits and colours at half the resolution.

    Raises
    ------
    InvalidClip
        If it is anything else, or has more than `max_frames` frames or a side of more than `max_side` pixels.
    """
    headers: dict[int, bytes] = {}
    frames: list[bytearray] = []
    waiting = bytearray()  # headers that belong to the next picture
    for kind, start, body, end in units(data):
        if kind not in _KNOWN:
            raise InvalidClip(f"a unit of kind {kind} at byte {start}: expected pictures and their headers only")
        if kind in (_SPS, _PPS):
            content = data[body:end].rstrip(b"\0")
            if headers.setdefault(kind, content) != content:
                raise InvalidClip(f"two different headers of kind {kind}: expected one for all frames")
        if kind not in _PICTURE:
            waiting += data[start:end]
            continue
        if body + 1 >= end:
            raise InvalidClip(f"an empty picture at byte {start}")
        if data[body + 1] & 0x80:  # first_mb_in_slice is 0: a new picture
            if not frames and (kind != _IDR or len(headers) < 2):
                raise InvalidClip("the first frame is not a whole picture with its headers: a clip must be decodable alone")
            if len(frames) == max_frames:
                raise InvalidClip(f"more than {max_frames} frames")
            frames.append(bytearray())
        elif not frames or waiting:
            raise InvalidClip(f"the rest of a picture at byte {start}, without its beginning")
        frames[-1] += waiting
        frames[-1] += data[start:end]
        waiting.clear()
    if not frames:
        raise InvalidClip("there is no frame in it")
    width, height = _size(headers[_SPS])
    if not (0 < width <= max_side and 0 < height <= max_side):
        raise InvalidClip(f"frames of {width} x {height} pixels: at most {max_side} x {max_side} are decoded")
    return Outline(width, height, tuple(map(bytes, frames)))


def without_remarks(data: bytes) -> bytes:
    """A stream without what decodes to nothing: the encoder's remarks on itself take more bytes than a frame of a quiet scene."""
    return b"".join(b"\0" + data[unit.start : unit.end].rstrip(b"\0") for unit in units(data) if unit.kind != _SEI)


class _Bits:
    """Reads the fields of a header (clause 7.2), the bytes that keep start codes out of it removed."""

    def __init__(self, data: bytes) -> None:
        plain = data.replace(b"\0\0\3", b"\0\0")
        self._bits = int.from_bytes(plain, "big")
        self._left = 8 * len(plain)

    def u(self, count: int) -> int:
        if count > self._left:
            raise InvalidClip("a header that ends too early")
        self._left -= count
        return (self._bits >> self._left) & ((1 << count) - 1)

    def ue(self) -> int:
        """An Exp-Golomb number (clause 9.1)."""
        zeros = 0
        while not self.u(1):
            zeros += 1
            if zeros > 31:
                raise InvalidClip("a number in a header that is far too large")
        return (1 << zeros) - 1 + self.u(zeros)


def _size(sps: bytes) -> tuple[int, int]:
    """Width and height that a sequence parameter set (clause 7.3.2.1.1) says."""
    bits = _Bits(sps[1:])
    profile = bits.u(8)
    if profile not in _PLAIN_PROFILES:
        raise InvalidClip(f"profile {profile}: expected one of {', '.join(_PLAIN_PROFILES.values())}")
    bits.u(16)  # constraints and level
    bits.ue()
    if profile == 100:
        chroma, luma_bits, chroma_bits = bits.ue(), bits.ue(), bits.ue()
        if (chroma, luma_bits, chroma_bits) != (1, 0, 0) or bits.u(1):
            raise InvalidClip("colours at another resolution than half, or with more than eight bits")
        if bits.u(1):
            raise InvalidClip("scaling matrices, which our encoder does not write")
    bits.ue()
    order = bits.ue()
    if order == 0:
        bits.ue()
    elif order != 2:
        raise InvalidClip(f"pictures ordered by rule {order}: expected 0 or 2")
    if bits.ue() > MAX_REFERENCES:
        raise InvalidClip("more frames to refer to than there may be")
    bits.u(1)
    width, height = _BLOCK * (bits.ue() + 1), _BLOCK * (bits.ue() + 1)
    if not bits.u(1):
        raise InvalidClip("interlaced")
    bits.u(1)
    left, right, top, bottom = (bits.ue() for _ in range(4)) if bits.u(1) else (0, 0, 0, 0)
    if left + right >= _BLOCK // 2 or top + bottom >= _BLOCK // 2:  # else a small picture might be cut out of an absurd one
        raise InvalidClip(f"more is cut off from {width} x {height} pixels than what fills the last blocks")
    return width - 2 * (left + right), height - 2 * (top + bottom)
