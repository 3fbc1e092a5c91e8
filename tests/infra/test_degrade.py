"""Faults of pictures, on purpose: that each does what it says, and only for as long as it says."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.degrade import KINDS, Degradation, Degrader, Picture, UnknownDegradation, add_noise, blur, darken, move
from infra.degraded import DegradedRecording
from streams.production.pictures import Look, encode
from streams.production.pictures import Picture as JpegPicture

RANDOM = np.random.default_rng(1)
PICTURE: Picture = RANDOM.integers(0, 256, (60, 80, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", KINDS)
def test_a_fault_holds_for_its_time_and_leaves_the_picture_that_it_was_given_alone(name: str) -> None:
    degrader = Degrader(Degradation.parse(f"{name}@2-4"))
    given = PICTURE.copy()
    for at in (0.0, 1.9, 4.0, 9.0):
        assert degrader(given, at) is given
    for at in (2.0, 3.9):
        changed = degrader(given, at)
        assert (changed.shape, changed.dtype) == (given.shape, np.uint8)
        assert name == "frozen" or np.abs(changed.astype(int) - given).mean() > 5
    assert np.array_equal(given, PICTURE)


def test_frozen_is_the_picture_that_it_began_with() -> None:
    degrader = Degrader(Degradation.parse("frozen@2-4"))
    pictures = [np.full_like(PICTURE, number) for number in range(7)]
    assert [int(degrader(picture, at)[0, 0, 0]) for at, picture in enumerate(pictures)] == [0, 1, 2, 2, 4, 5, 6]


def test_what_the_faults_do() -> None:
    assert darken(PICTURE, 0.75).mean() == pytest.approx(PICTURE.mean() / 4, abs=0.5)
    assert blur(PICTURE, 0.05).std() < PICTURE.std() / 3
    grey = np.full_like(PICTURE, 128)
    assert add_noise(grey, 20, np.random.default_rng(1)).std() == pytest.approx(20, rel=0.05)
    moved = move(PICTURE, 0.25)
    assert np.array_equal(moved[:50, :60], PICTURE[10:, 20:])


def test_the_same_seed_is_the_same_noise() -> None:
    one, other = (Degrader(Degradation.parse("noise@0"), seed=3) for _ in range(2))
    assert all(np.array_equal(one(PICTURE, at), other(PICTURE, at)) for at in range(3))
    assert not np.array_equal(one(PICTURE, 3), one(PICTURE, 4))


@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 100),
    st.integers(0, 10_000_000),
    st.one_of(st.none(), st.integers(1, 1000)),
)
def test_what_is_written_is_read(name: str, percent: int, from_s: int, lasts: int | None) -> None:
    until = "" if lasts is None else f"-{(from_s + lasts) / 10}"
    degradation = Degradation.parse(f"{name}={percent / 500}@{from_s / 10}{until}")
    assert (degradation.name, degradation.strength, degradation.from_s) == (name, percent / 500, from_s / 10)
    assert degradation.to_s == (None if lasts is None else (from_s + lasts) / 10)
    assert Degradation.parse(str(degradation)) == degradation


@pytest.mark.parametrize(
    "text", ["", "blur", "fog@3", "blur@", "blur=0@3", "blur=2@3", "blur@9-3", "blur@3-3", "blur=x@3", "@3", "blur@-3"]
)
def test_what_is_no_fault_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(UnknownDegradation, match=r"expected|strength|ends"):
        Degradation.parse(text)


class Film:
    """A recording of ten grey pictures, each a little brighter."""

    width, height, fps = 80, 60, 5.0

    def pictures(self, *, start_s: float = 0.0, loop: bool = False) -> Iterator[JpegPicture]:
        for number in range(10):
            pixels = np.full((60, 80, 3), 100 + 10 * number, np.uint8)
            yield encode(pixels, Look(quality=90), "BGR")


def test_a_recording_is_spoiled_while_the_fault_holds_and_else_untouched() -> None:
    """Played at ten a second: the fault, from .3 to .6 s, is of the pictures 3 to 5, whatever the film's own rate is."""
    film = Film()
    spoiled = DegradedRecording(film, Degradation.parse("darkness=0.5@0.3-0.6"), fps=10.0, quality=90)
    assert (spoiled.width, spoiled.height, spoiled.fps) == (80, 60, 5.0)
    for number, (plain, seen) in enumerate(zip(film.pictures(), spoiled.pictures(), strict=True)):
        if 3 <= number < 6:
            assert cv2.imdecode(np.frombuffer(seen.jpeg, np.uint8), 1).mean() == pytest.approx((100 + 10 * number) / 2, abs=3)
        else:
            assert seen == plain
