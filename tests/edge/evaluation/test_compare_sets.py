"""Several sets in one call: differences on equal noise, held-out images, and scores without an extractor."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import done, refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from small_product import product

from collafuse_edge.evaluation.compare import compare
from collafuse_edge.evaluation.evaluate import Generated, real_images
from collafuse_edge.evaluation.kid import kid_difference, kid_on_reference_scale


def draws(seed: int, count: int, dimensions: int = 8) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).standard_normal((count, dimensions))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_a_difference_is_that_of_the_scores(seed: int, paired: bool) -> None:
    real, first, second = draws(seed, 40), draws(seed + 1, 30), draws(seed + 2, 30) + 0.3
    found = kid_difference(real, first, second, paired=paired)
    a, b = kid_on_reference_scale(real, first), kid_on_reference_scale(real, second)
    assert found.value == pytest.approx(b.value - a.value, abs=1e-9)
    assert found.error is not None and found.error > 0


def test_equal_noise_makes_a_difference_surer() -> None:
    real, first = draws(0, 200), draws(1, 200)
    second = first + 0.05 * draws(2, 200)
    paired, other = (kid_difference(real, first, second, paired=yes) for yes in (True, False))
    assert paired.value == other.value
    assert paired.error is not None and other.error is not None
    assert paired.error < 0.3 * other.error


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_of_a_difference_holds_zero_for_equal_sets_in_95_of_100_draws(paired: bool) -> None:
    """Two heads equally far from the real images, on the same noise or on other."""
    inside = 0
    for seed in range(200):
        real, noise = draws(3 * seed, 60), draws(3 * seed + 1, 60)
        other = noise if paired else draws(10_000 + seed, 60)
        first = 0.5 + noise + 0.2 * draws(20_000 + seed, 60)
        second = 0.5 + other + 0.2 * draws(30_000 + seed, 60)
        low, high = kid_difference(real, first, second, paired=paired).interval or (1, 0)
        inside += low <= 0 <= high
    assert inside >= 180  # 95 % of 200 is 190, P(fewer than 180) is 1 in 1000


def test_few_images_give_a_difference_and_no_interval() -> None:
    found = kid_difference(draws(0, 40), draws(1, 19), draws(2, 40), paired=False)
    assert (found.error, found.interval) == (None, None)


def test_without_an_extractor_the_pyramid_is_measured_and_the_rest_has_a_reason() -> None:
    options = ("--data", product() / "data.npz", "--json")
    found = json.loads(done("evaluate", product() / "images", *options))
    assert found["pyramid"] > 0 and found["pyramid_floor"] > 0
    assert found["sharpness"] > 0 and -2 <= found["brightness"] <= 2
    assert (found["kid_mean"], found["manifold_precision"], found["extractor"]) == (None, None, None)
    assert found["kid_error_reason"] == "no feature extractor was given: --extractor"
    first = done("evaluate", product() / "images", "--data", product() / "data.npz").splitlines()[0]
    assert first.startswith(f"pyramid   {found['pyramid']:.3f} ")


def test_one_set_against_itself_has_no_difference_and_is_paired() -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (30, 1, 16, 16)).astype(np.float32)
    read = json.loads(done("evaluate", product() / "images", "--data", product() / "data.npz", "--json"))
    assert read["seed"] is not None
    real = real_images("real", images, None)
    found = compare([real], {"a": Generated(images, None), "b": Generated(images, None)}, None)
    (difference,) = found.differences
    assert (difference.pyramid, difference.kid, difference.paired) == (0.0, None, False)


def test_several_sets_and_held_out_images_in_one_call(tmp_path: Path) -> None:
    again = tmp_path / "again"
    done("infer", product() / "edge.head", product() / "x.tc.safetensors", "--out", again)
    options = ("--data", product() / "data.npz", "--extractor", product() / "extractor.onnx")
    found = json.loads(done("evaluate", product() / "images", again, *options, "--json"))
    assert [one["generated"] for one in found["scores"]] == [str(product() / "images"), str(again)]
    (difference,) = found["differences"]
    assert difference["paired"]
    assert difference["kid"] == pytest.approx(found["scores"][1]["kid_mean"] - found["scores"][0]["kid_mean"], abs=1e-9)
    line = done("evaluate", product() / "images", again, *options).splitlines()[0]
    assert line.startswith(f"{again} less {product() / 'images'}, on the same noise, against ")


def test_a_set_given_twice_or_of_another_size_is_refused(tmp_path: Path) -> None:
    images = product() / "images"
    assert "given twice" in refusal("evaluate", images, images, "--data", product() / "data.npz")
    np.savez(tmp_path / "images.npz", images=np.zeros((4, 1, 24, 24), np.float32))
    said = refusal("evaluate", images, tmp_path / "images.npz", "--data", product() / "data.npz")
    assert "compare one size" in said
