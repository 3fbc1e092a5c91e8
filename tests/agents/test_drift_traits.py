"""What a picture is like, measured on pictures whose traits are known because they were made so."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agents.drift.traits import CELLS, SIDE, SMALL, traits
from agents.drift.view import best_shift, edges, likeness

Picture = NDArray[np.uint8]


@cache
def scene(width: int = 640, height: int = 480, seed: int = 3) -> Picture:
    """A picture with detail of all sizes."""
    random = np.random.default_rng(seed)
    picture = np.zeros((height, width), np.float32)
    for size in (4, 12, 40, 120):
        coarse = random.standard_normal((height // size + 1, width // size + 1)).astype(np.float32)
        picture += 22 * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(picture + 120, 0, 255), np.uint8)


def median(values: NDArray[np.float32]) -> float:
    return float(np.median(values))


def test_its_shapes() -> None:
    seen = traits(cv2.cvtColor(scene(), cv2.COLOR_GRAY2BGR))
    assert seen.small.shape == (SMALL, SMALL)
    assert seen.brightness.shape == seen.sharpness.shape == (CELLS * CELLS,)
    assert abs(float(np.mean(seen.brightness)) - float(scene().mean())) < 1
    assert abs(seen.contrast - float(np.std(cv2.resize(scene(), (SIDE, SIDE), interpolation=cv2.INTER_AREA)))) < 0.5


@pytest.mark.parametrize("sigma", [1.0, 3.0, 8.0, 20.0])
def test_noise_is_what_was_put_in(sigma: float) -> None:
    random = np.random.default_rng(1)
    smooth = np.tile(np.linspace(60, 190, SIDE, dtype=np.float32), (SIDE, 1))
    noisy = np.clip(smooth + sigma * random.standard_normal(smooth.shape), 0, 255).astype(np.uint8)
    assert traits(noisy).noise == pytest.approx(sigma, rel=0.12)


def test_edges_are_no_noise() -> None:
    squares = np.kron(np.indices((10, 10)).sum(0) % 2, np.ones((16, 16))).astype(np.uint8) * 200
    assert traits(squares).noise == 0


@given(st.floats(0.25, 1.0))
@settings(max_examples=30, deadline=None)
def test_less_light_is_no_less_sharpness(light: float) -> None:
    seen, dark = traits(scene()), traits(np.asarray(cv2.convertScaleAbs(scene(), alpha=light), np.uint8))
    assert abs(median(dark.sharpness - seen.sharpness)) < 0.2
    assert median(dark.brightness / seen.brightness) == pytest.approx(light, abs=0.02)


def test_the_more_blur_the_less_sharpness() -> None:
    levels = [median(traits(np.asarray(cv2.GaussianBlur(scene(), (0, 0), sigma), np.uint8)).sharpness) for sigma in (0.5, 2, 4, 8)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] - levels[-1] > 1.5


def test_what_covers_a_few_cells_changes_the_medians_little() -> None:
    covered = scene().copy()
    covered[:200, :300] = 0
    seen, now = traits(scene()), traits(covered)
    assert abs(median(now.sharpness - seen.sharpness)) < 0.05
    assert abs(median(now.brightness - seen.brightness)) < 1


@pytest.mark.parametrize("scale", [0.5, 1.5, 2.0])
def test_the_scale_of_decoding_changes_little(scale: float) -> None:
    other = np.asarray(cv2.resize(scene(), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    seen, now = traits(scene()), traits(other)
    assert abs(median(now.sharpness - seen.sharpness)) < 0.3
    assert now.noise == pytest.approx(seen.noise, rel=0.15)
    assert likeness(edges(seen.small.astype(np.float32)), edges(now.small.astype(np.float32))) > 0.95


@pytest.mark.parametrize("picture", [np.zeros((1, 1), np.uint8), np.full((480, 640, 3), 255, np.uint8), scene(40, 30)])
def test_any_picture_has_traits(picture: Picture) -> None:
    seen = traits(picture)
    assert all(np.isfinite(value).all() for value in seen)


def test_a_digest_tells_the_noise_of_a_sensor_from_a_picture_that_stands_still() -> None:
    random = np.random.default_rng(4)
    digests = {traits(np.clip(scene() + 0.4 * random.standard_normal(scene().shape), 0, 255).astype(np.uint8)).digest for _ in range(20)}
    assert len(digests) == 20
    assert traits(scene()).digest == traits(scene().copy()).digest


# ---- the view


def small(picture: Picture) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(picture, (SMALL, SMALL), interpolation=cv2.INTER_AREA), np.float32)


@given(st.integers(-6, 6), st.integers(-6, 6))
@settings(max_examples=40, deadline=None)
def test_where_a_moved_view_is_found(right: int, down: int) -> None:
    wide = np.asarray(cv2.resize(scene(1000, 1000), (60, 60), interpolation=cv2.INTER_AREA), np.float32)
    before, after = wide[10:50, 10:50], wide[10 - down : 50 - down, 10 - right : 50 - right]
    found = best_shift(edges(before), edges(after))
    assert (found.right, found.down) == (right / SMALL, down / SMALL)
    assert found.correlation > 0.5


def test_the_likeness_of_a_view_with_itself_and_with_another() -> None:
    one, other = edges(small(scene(seed=1))), edges(small(scene(seed=2)))
    assert likeness(one, one) == pytest.approx(1)
    assert abs(likeness(one, other)) < 0.2
    assert likeness(one, edges(np.zeros((SMALL, SMALL), np.float32))) == 0
    inverted = edges(255 - small(scene(seed=1)))
    assert likeness(one, inverted) == pytest.approx(-1, abs=1e-3)


@pytest.mark.parametrize("light", [0.2, 0.5])
def test_the_light_changes_no_view(light: float) -> None:
    assert likeness(edges(small(scene())), edges(light * small(scene()) + 5)) == pytest.approx(1, abs=1e-3)
