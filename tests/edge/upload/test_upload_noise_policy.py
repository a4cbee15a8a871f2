"""One image has one noise path, however often, at whatever levels, in whatever order and company it is uploaded."""

import hmac
import math
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_edge.settings import UploadSettings
from collafuse_edge.upload import make_shard, upload_images
from collafuse_edge.upload.brownian import grid_index, level_time, path_value, path_weights
from collafuse_edge.upload.key import image_digest
from collafuse_runtimes.diffusion.plan import SplitPlan

KEY = bytes(range(32))
SHAPE = (1, 8, 8)
PLAN = SplitPlan(SHAPE, cut_ratio=0.3)
IMAGES = np.random.default_rng(1).uniform(-1, 1, (12, *SHAPE)).astype(np.float32)


def row(image: npt.NDArray[np.float32], plan: SplitPlan = PLAN, key: bytes = KEY) -> bytes:
    return make_shard(image[None], plan, key).images.tobytes()


def path(x_0: npt.NDArray[np.float32], plan: SplitPlan, key: bytes = KEY) -> npt.NDArray[np.float64]:
    """W(s_n) = x_n / sqrt(alpha_bar_n) - x_0."""
    alpha_bar_n = plan.alpha_bar_at(plan.handover_level)
    x_n = np.concatenate([make_shard(image[None], plan, key).images for image in x_0])
    return x_n.astype(np.float64) / alpha_bar_n**0.5 - x_0


def time_of(plan: SplitPlan) -> float:
    return level_time(plan.alpha_bar_at(plan.handover_level))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(IMAGES) - 1), min_size=1, max_size=30))
def test_any_order_subset_and_repetition_gives_the_same_rows(chosen: list[int]) -> None:
    shard = make_shard(IMAGES[chosen], PLAN, KEY)
    assert sorted(x_n.tobytes() for x_n in shard.images) == sorted(row(IMAGES[i]) for i in chosen)


def test_uploading_again_writes_the_same_file(tmp_path: Path) -> None:
    for name, order in (("first", slice(None)), ("again", slice(None)), ("reversed", slice(None, None, -1))):
        upload_images(tmp_path / name, IMAGES[order], PLAN, UploadSettings(key=tmp_path / "key"))
    first = (tmp_path / "first").read_bytes()
    assert (tmp_path / "again").read_bytes() == first
    assert (tmp_path / "reversed").read_bytes() == first


def test_a_rounding_error_of_a_resizer_is_the_same_image() -> None:
    eight_bits = (np.arange(64, dtype=np.float32).reshape(SHAPE) / 127.5) - 1
    x_n, again = (np.frombuffer(row(x), np.float32) for x in (eight_bits, eight_bits + np.float32(1e-6)))
    assert np.abs(x_n - again).max() < 2e-6


def correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize("cut_ratio", [0.31, 0.4, 0.6, 0.9])
def test_a_noisier_release_is_the_cleanest_one_and_fresh_noise(cut_ratio: float) -> None:
    noisier = PLAN.with_cut_ratio(cut_ratio)
    here, there = path(IMAGES, PLAN), path(IMAGES, noisier)
    s, t, bound = time_of(PLAN), time_of(noisier), 4 / IMAGES.size**0.5
    assert abs(correlation(there - here, here)) < bound
    assert abs(np.var(there - here) / (t - s) - 1) < bound * 2**0.5
    assert abs(correlation(here, there) - (s / t) ** 0.5) < bound


def test_another_key_or_image_gets_an_independent_path() -> None:
    here, bound = path(IMAGES, PLAN), 4 / IMAGES.size**0.5
    assert abs(correlation(here, path(IMAGES, PLAN, key=KEY[:31] + b"\xff"))) < bound
    one_pixel_off = IMAGES.copy()
    one_pixel_off[:, 0, 0, 0] += np.where(one_pixel_off[:, 0, 0, 0] < 0, 0.01, -0.01)
    assert abs(correlation(here, path(one_pixel_off, PLAN))) < bound
    assert abs(correlation(here[:-1], here[1:])) < bound


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_level_is_what_counts_not_the_ratio_or_schedule_that_led_to_it(schedule: str) -> None:
    plan = SplitPlan(SHAPE, schedule=schedule, cut_ratio=0.3)
    assert row(IMAGES[0], plan.with_cut_ratio(0.301)) == row(IMAGES[0], plan)
    weights = path_weights(time_of(plan))
    expected = path_value(image_digest(KEY, IMAGES[0]), weights, SHAPE)
    assert path(IMAGES[:1], plan)[0] == pytest.approx(expected, abs=1e-5)


def test_the_noise_at_one_level_is_standard_normal() -> None:
    x_0 = np.random.default_rng(2).uniform(-1, 1, (8, 1, 64, 64)).astype(np.float32)
    for cut_ratio in (0.02, 0.2, 0.8):
        plan = SplitPlan((1, 64, 64), cut_ratio=cut_ratio)
        z = np.sort((path(x_0, plan) / time_of(plan) ** 0.5).ravel())
        normal = np.array([0.5 * (1 + math.erf(value / 2**0.5)) for value in z])
        distance = np.abs(normal - (np.arange(z.size) + 0.5) / z.size).max()
        assert distance < 1.95 / z.size**0.5  # Kolmogorov-Smirnov at p = 0.001


def test_the_noise_is_the_same_on_every_machine_and_in_every_release() -> None:
    """Numbers that must never change: a client's second release of an image would be a second look at it."""
    x_0 = np.linspace(-1, 1, 6, dtype=np.float32).reshape(1, 2, 3)
    pixels = bytes([0, 51, 102, 153, 204, 255])
    message = b"collafuse path " + struct.pack("<3I", 1, 2, 3) + pixels
    digest = image_digest(KEY, x_0)
    assert digest == hmac.new(KEY, message, "sha256").digest()
    alpha_bar_n = PLAN.alpha_bar_at(29)
    expected = [0.75090259, 0.04090989, -1.42701084, 0.08200848, 0.04176996, 0.13367601]
    assert path_value(digest, path_weights(level_time(alpha_bar_n)), (1, 2, 3)).ravel().tolist() == pytest.approx(
        expected, rel=1e-6
    )
    for neighbour in (np.nextafter(alpha_bar_n, 0), np.nextafter(alpha_bar_n, 1)):  # another machine's cosine
        assert path_weights(level_time(float(neighbour))) == path_weights(level_time(alpha_bar_n))
    assert image_digest(KEY, x_0.reshape(1, 3, 2)) != digest


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_every_level_of_a_plan_has_a_time_of_its_own(schedule: str) -> None:
    times = [level_time(float(a)) for a in SplitPlan((1, 1, 1), timesteps=1000, schedule=schedule).alpha_bar]
    assert len({grid_index(s) for s in times}) == 1000
