"""The weight-free distances see what they are for: blur, contrast, brightness; and nothing where there is nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_edge.data import Selection, load_images
from collafuse_edge.evaluation.pyramid import enlarged, laplacian_pyramid, pyramid_score, sliced_wasserstein
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.errors import InputError


def phantoms(first: int, count: int = 200) -> Float32Array:
    images = load_images(f"phantom:0:{first + count}", (1, 32, 32), Selection()).images
    rng = np.random.default_rng(0)
    textured = images + 0.1 * rng.standard_normal(images.shape).astype(np.float32)
    return textured[first:].clip(-1, 1)


def blurred(images: Float32Array) -> Float32Array:
    return np.mean([np.roll(images, shift, (2, 3)) for shift in ((0, 0), (0, 1), (1, 0), (1, 1))], axis=0)


def test_two_halves_of_one_set_are_at_a_floor() -> None:
    score = pyramid_score(phantoms(0), phantoms(200))
    assert score.mean < 0.05 and max(score.levels) < 0.1
    assert abs(score.sharpness - 1) < 0.05 and abs(score.brightness) < 0.05


def test_a_set_is_at_zero_from_itself() -> None:
    score = pyramid_score(phantoms(0), phantoms(0))
    assert score.levels == (0, 0, 0) and score.pixels == 0 and score.sharpness == 1 and score.brightness == 0


def test_blur_is_seen_at_the_finest_level_first() -> None:
    real, floor = phantoms(0), pyramid_score(phantoms(0), phantoms(200))
    score = pyramid_score(real, blurred(phantoms(200)))
    assert score.sharpness < 0.6
    assert score.levels[0] > 5 * floor.levels[0]
    assert score.levels[0] > 1.5 * score.levels[-1]
    assert score.pixels < 3 * floor.pixels  # nearly blind to blur


def test_less_contrast_and_more_light_are_seen() -> None:
    real = phantoms(0)
    assert pyramid_score(real, 0.7 * phantoms(200)).mean > 0.1
    brighter = pyramid_score(0.5 * real, 0.5 * phantoms(200) + 0.3)
    assert brighter.brightness == pytest.approx(0.3, abs=0.02)
    assert brighter.pixels > 0.1


def test_hand_over_tensors_are_compared_with_all_they_hold() -> None:
    """Beyond [-1, 1] too, where images are clipped."""
    real = phantoms(0)
    wider = np.where(np.abs(real) > 0.9, 3 * real, real)
    assert pyramid_score(wider, np.clip(wider, -1, 1)).pixels == 0
    assert pyramid_score(wider, np.clip(wider, -1, 1), clip=False).pixels > 0.1
    assert pyramid_score(real, phantoms(200), clip=False) == pyramid_score(real, phantoms(200))


@given(st.integers(0, 2**32 - 1), st.sampled_from([16, 32, 48]), st.sampled_from([1, 3]))
@settings(max_examples=10, deadline=None)
def test_a_pyramid_adds_up_to_its_images(seed: int, side: int, channels: int) -> None:
    images = np.random.default_rng(seed).standard_normal((2, channels, side, side))
    *levels, rest = laplacian_pyramid(images)
    for level in reversed(levels):
        rest = level + enlarged(rest)
    np.testing.assert_allclose(rest, images, atol=1e-12)


@given(st.floats(-3, 3), st.floats(0.2, 4))
@settings(max_examples=20, deadline=None)
def test_a_shift_is_as_far_as_it_is_long(shift: float, spread: float) -> None:
    """Along random directions of the plane a shift by d units of spread is |d| E|cos| = 2/pi |d| away."""
    rng = np.random.default_rng(1)
    real = spread * rng.standard_normal((2000, 2))
    found = sliced_wasserstein(real, real + np.array([shift, 0]))
    assert found == pytest.approx(2 / np.pi * abs(shift) / spread, rel=0.12, abs=1e-9)


@pytest.mark.parametrize(
    ("real", "generated", "message"),
    [
        ((4, 1, 32, 32), (4, 1, 16, 16), "one size"),
        ((1, 1, 32, 32), (4, 1, 32, 32), "N >= 2"),
        ((4, 1, 6, 6), (4, 1, 6, 6), "too small for a pyramid"),
    ],
)
def test_what_cannot_be_compared_is_refused(real: tuple[int, ...], generated: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pyramid_score(np.zeros(real, np.float32), np.zeros(generated, np.float32))


def test_images_of_one_grey_are_no_reference() -> None:
    with pytest.raises(InputError, match="no detail at all"):
        pyramid_score(np.zeros((4, 1, 16, 16), np.float32), np.ones((4, 1, 16, 16), np.float32))
