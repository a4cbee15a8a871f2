"""Stored pixels become the plan's tensor: exact values, kept depth, right channels, aspect ratio and size."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from collafuse_edge.data import load_images
from collafuse_edge.data.pixels import fit


def fitted(image: np.ndarray, *shape: int) -> np.ndarray:
    out = np.full(shape, np.nan, np.float32)
    fit(image.astype(np.float32), out)
    return out


def npz(folder: Path, images: np.ndarray) -> str:
    path = folder / "set.npz"
    np.savez(path, images=images)
    return str(path)


def test_every_uint8_level_maps_to_its_place_in_minus_one_to_one(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    loaded = load_images(npz(tmp_path, levels), (1, 16, 16))
    assert loaded.images.dtype == np.float32
    expected = 2 * (np.arange(256, dtype=np.float32) / np.float32(255)) - 1
    np.testing.assert_array_equal(loaded.images.ravel(), expected)
    assert loaded.images.min() == -1 and loaded.images.max() == 1


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_every_uint16_level_is_kept_apart(tmp_path: Path, dtype: str) -> None:
    levels = np.arange(65536).astype(dtype).reshape(1, 256, 256)
    loaded = load_images(npz(tmp_path, levels), (1, 256, 256)).images.ravel()
    np.testing.assert_allclose(loaded, 2 * np.arange(65536) / 65535 - 1, atol=2e-7)
    assert len(np.unique(loaded)) == 65536


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
def test_floats_in_zero_to_one_keep_their_value(tmp_path: Path, dtype: str) -> None:
    values = np.array([0, 0.25, 0.5, 1]).astype(dtype).reshape(1, 2, 2)
    loaded = load_images(npz(tmp_path, values), (1, 2, 2))
    np.testing.assert_array_equal(loaded.images.ravel(), np.float32([-1, -0.5, 0, 1]))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_files_keep_their_depth(tmp_path: Path, suffix: str) -> None:
    levels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)  # all within 16 of the 256 8-bit levels
    Image.fromarray(levels).save(tmp_path / f"deep.{suffix}")
    loaded = load_images(str(tmp_path), (1, 64, 64)).images[0, 0]
    np.testing.assert_allclose(loaded, 2 * levels / 65535.0 - 1, atol=2e-7)
    assert len(np.unique(loaded)) == 64 * 64


def test_colour_becomes_grey_by_luma_and_grey_becomes_three_equal_channels() -> None:
    colours = np.eye(3)[np.newaxis]  # one row: red, green, blue
    np.testing.assert_allclose(fitted(colours, 1, 1, 3)[0, 0], 2 * np.array([0.299, 0.587, 0.114]) - 1, atol=1e-6)
    grey = fitted(np.array([[0.0, 0.3], [0.6, 1.0]]), 3, 2, 2)
    assert np.array_equal(grey[0], grey[1]) and np.array_equal(grey[0], grey[2])
    np.testing.assert_allclose(grey[0], [[-1, -0.4], [0.2, 1]], atol=1e-6)


def test_colour_channels_keep_their_order(tmp_path: Path) -> None:
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[..., 0], image[..., 1] = 255, 51
    loaded = load_images(npz(tmp_path, image), (3, 2, 2)).images[0]
    np.testing.assert_allclose(loaded[:, 0, 0], [1, -0.6, -1], atol=1e-6)


def test_wide_image_gets_equal_black_bars_above_and_below() -> None:
    out = fitted(np.ones((32, 64)), 1, 64, 64)[0]
    np.testing.assert_array_equal(out[:16], -1)
    np.testing.assert_array_equal(out[16:48], 1)
    np.testing.assert_array_equal(out[48:], -1)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(1, 24))
def test_light_is_kept_when_padded_and_resized(h: int, w: int, height: int, width: int) -> None:
    """The share of light equals the share of the padded canvas that the image covers, whatever the sizes."""
    out = fitted(np.full((h, w), 0.5), 1, height, width)
    assert np.isfinite(out).all() and out.min() >= -1 and out.max() <= 1
    rows, columns = max(h, half_up(w * height, width)), max(w, half_up(h * width, height))
    covered = h * w / (rows * columns)
    assert (out.mean() + 1) / 2 == pytest.approx(0.5 * covered, abs=0.055)  # all 921,600 cases: at most 0.0529


def half_up(numerator: int, denominator: int) -> int:
    return math.floor(Fraction(numerator, denominator) + Fraction(1, 2))


def test_resizing_keeps_the_mean_and_a_constant_exactly() -> None:
    image = np.random.default_rng(0).uniform(0.3, 0.7, (96, 96)).astype(np.float32)
    assert fitted(image, 1, 32, 32).mean() == pytest.approx(2 * image.mean() - 1, abs=1e-3)
    np.testing.assert_allclose(fitted(np.full((96, 96), 0.7), 1, 40, 40), 0.4, atol=1e-6)


def test_resizing_does_not_round_to_eight_bits() -> None:
    ramp = np.linspace(0, 1 / 255, 64 * 64).reshape(64, 64)
    out = fitted(ramp, 1, 32, 32)
    assert len(np.unique(out)) > 500
    assert out.max() <= 2 / 255 - 1 + 1e-4


def test_overshoot_of_the_filter_is_clipped() -> None:
    step = np.zeros((16, 16))
    step[:, 8:] = 1
    out = fitted(step, 1, 64, 64)
    assert out.min() == -1 and out.max() == 1


def test_right_size_is_not_resampled() -> None:
    noise = np.random.default_rng(1).random((20, 30)).astype(np.float32)
    np.testing.assert_array_equal(fitted(noise, 1, 20, 30)[0], noise * 2 - 1)
