"""Phantoms are heads, the same everywhere and always, and populations differ."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_edge.data import Selection, load_images
from collafuse_edge.data.phantom import POPULATION_TYPES, TOFT, _Heads, draw, phantoms
from collafuse_runtimes.errors import InputError

SHAPE = (1, 32, 32)


def at(image: np.ndarray, x: float, y: float) -> float:
    """Grey value in [0, 1] at a point of the unit square [-1, 1]^2, y up."""
    height, width = image.shape
    return float(image[int((1 - y) / 2 * height), int((x + 1) / 2 * width)])


def plain(ellipses: np.ndarray, side: int, angle: float = 0.0) -> np.ndarray:
    """The ellipses alone: no lesion, no shading, no texture."""
    pose = np.array([[angle, 1.0, 0.0, 0.0]])
    heads = _Heads(ellipses[np.newaxis], np.zeros((1, 0, 6)), pose, np.zeros((1, 2)), np.zeros((1, 0, 3)))
    return draw(heads, side, side)[0]


def test_without_randomisation_it_is_the_modified_shepp_logan_phantom() -> None:
    image = plain(TOFT, 256)
    points = {
        (0.98, 0.98): 0.0,  # air
        (0.0, 0.9): 1.0,  # skull
        (0.5, -0.3): 0.2,  # brain
        (0.22, 0.0): 0.0,  # right ventricle: 0.2 - 0.2
        (-0.22, 0.0): 0.0,
        (0.0, 0.45): 0.3,  # upper disc
        (0.0, 0.08): 0.3,
        (0.0, -0.1): 0.3,
        (-0.08, -0.605): 0.3,
        (0.06, -0.605): 0.3,
    }
    for (x, y), grey in points.items():
        assert at(image, x, y) == pytest.approx(grey, abs=1e-5), (x, y)


def test_edges_cover_pixels_in_part_so_the_light_is_that_of_the_ellipses() -> None:
    """The sum of A pi a b over skull and brain, at any size and rotation."""
    outer = TOFT[:2]
    expected = float((outer[:, 0] * np.pi * outer[:, 1] * outer[:, 2]).sum() / 4)
    for side in (32, 64, 128):
        assert plain(outer, side, angle=0.3).mean() == pytest.approx(expected, rel=0.01)
    assert len(np.unique(plain(TOFT, 32))) > 100


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 64, 64), (3, 32, 32), (1, 24, 40), (1, 40, 24)])
def test_every_shape_is_filled_in_range_by_a_head_on_black(shape: tuple[int, int, int]) -> None:
    drawn = phantoms(0, 6, 0, shape)
    assert drawn.images.shape == (6, *shape) and drawn.images.dtype == np.float32
    assert drawn.images.min() == -1 and drawn.images.max() <= 1
    corners = drawn.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    np.testing.assert_array_equal(corners, -1)
    assert (drawn.images == drawn.images[:, :1]).all(), "grey: channels are equal"
    assert (drawn.images.max(axis=(1, 2, 3)) > 0.4).all()


@pytest.mark.parametrize("side", [32, 64])
def test_a_head_is_a_bright_ring_around_darker_tissue_with_dark_ventricles(side: int) -> None:
    for image in (phantoms(2, 12, 1, (1, side, side)).images[:, 0] + 1) / 2:
        lit = image > 0.1
        assert 0.2 < lit.mean() < 0.7
        rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
        middle = image[rows[0] : rows[-1] + 1, (columns[0] + columns[-1]) // 2]
        assert max(middle[:3].max(), middle[-3:].max()) > 1.3 * np.median(image[lit]), "skull"
        assert middle[len(middle) // 3 : 2 * len(middle) // 3].min() < 0.5 * np.median(image[lit]), "ventricles"


def test_lesions_stay_inside_the_brain() -> None:
    lesion = np.array([[[1.0, 0.3, 0.3, 0.66, 0.0, 0.0]]])
    pose = np.array([[0.0, 1.0, 0.0, 0.0]])
    heads = _Heads(TOFT[np.newaxis], lesion, pose, np.zeros((1, 2)), np.zeros((1, 0, 3)))
    image = draw(heads, 128, 128)[0]
    assert at(image, 0.55, 0.0) == 1 and at(image, 0.75, 0.0) == 0


def test_same_numbers_same_bytes_and_other_numbers_other_heads() -> None:
    first = phantoms(0, 4, 7, SHAPE).images
    assert first.tobytes() == phantoms(0, 4, 7, SHAPE).images.tobytes()
    flat = np.concatenate([first, phantoms(0, 4, 8, SHAPE).images, phantoms(4, 4, 7, SHAPE).images]).reshape(12, -1)
    distance = np.abs(flat[:, None] - flat[None]).mean(axis=2)
    assert distance[~np.eye(12, dtype=bool)].min() > 0.02


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(1, 5), st.integers(1, 80))
def test_a_sample_does_not_depend_on_how_many_are_drawn(population: int, seed: int, few: int, more: int) -> None:
    shape = (1, 16, 16)
    small, large = phantoms(population, few, seed, shape), phantoms(population, few + more, seed, shape)
    np.testing.assert_array_equal(small.images, large.images[:few])
    assert set(large.labels.tolist()) == {population % len(POPULATION_TYPES)}


def test_populations_show_their_type() -> None:
    lesion, ring, ventricles, paired = ((phantoms(p, 32, 0, (1, 64, 64)).images[:, 0] + 1) / 2 for p in range(4))
    mean = {name: group.mean(axis=0) for name, group in zip("lrvp", (lesion, ring, ventricles, paired), strict=True)}
    left, right = (-0.33, 0.18), (0.33, 0.18)
    assert at(mean["l"], *left) > at(mean["l"], *right) + 0.2, "bright on the left"
    assert abs(at(mean["p"], *left) - at(mean["p"], *right)) < 0.1, "bright on both sides"
    assert at(mean["p"], *right) > at(mean["l"], *right) + 0.1
    dark = [(group[:, 20:44, 20:44] < 0.12).mean() for group in (ventricles, lesion)]
    assert dark[0] > 1.5 * dark[1], "large ventricles"
    assert (lesion[:, 8:56, 12:52] > 0.7).mean() > 1.2 * (ring[:, 8:56, 12:52] > 0.7).mean(), "a ring is hollow"


def test_populations_differ_more_between_than_within() -> None:
    """Distance of two populations' means against that of two draws of one population; three variants of each type."""
    means = np.array([[phantoms(p, 128, seed, (1, 16, 16)).images.mean(axis=0) for seed in (0, 1)] for p in range(12)])
    within = np.abs(means[:, 0] - means[:, 1]).mean(axis=(1, 2, 3))
    for p in range(12):
        for q in range(p):
            between = np.abs(means[p, 0] - means[q, 0]).mean()
            assert between > 1.2 * (within[p] + within[q]) / 2, (p, q)


@pytest.mark.parametrize("large", [2**53 + 1, 2**63 + 1, 2**64 - 1])
def test_large_numbers_are_not_rounded(large: int) -> None:
    assert not np.array_equal(phantoms(0, 1, large, SHAPE).images, phantoms(0, 1, large - 1, SHAPE).images)
    assert not np.array_equal(phantoms(large, 1, 0, SHAPE).images, phantoms(large - 4, 1, 0, SHAPE).images)


def test_phantoms_are_a_source_like_any_other() -> None:
    loaded = load_images("phantom:5:9:3", (3, 16, 16))
    direct = phantoms(5, 9, 3, (3, 16, 16))
    np.testing.assert_allclose(loaded.images, direct.images, atol=1e-6)
    assert loaded.labels.tolist() == [1] * 9 and loaded.label_names == POPULATION_TYPES
    assert len(load_images("phantom:5:100000:3", (1, 16, 16), Selection(limit=3, classes=("ring_lesion",)))) == 3
    assert len(load_images("phantom:1", (1, 8, 8))) == 512


@pytest.mark.parametrize(
    ("population", "count", "seed", "found"), [(-1, 1, 0, "population -1"), (0, 0, 0, "count 0"), (0, 1, -2, "seed -2")]
)
def test_numbers_out_of_range(population: int, count: int, seed: int, found: str) -> None:
    with pytest.raises(InputError, match=f"phantom {found} out of range: must be"):
        phantoms(population, count, seed, SHAPE)
