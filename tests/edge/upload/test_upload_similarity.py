"""The perceptual hash finds copies of an image and, at its threshold, seldom anything else; figures on real images."""

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from collafuse_edge.data import Selection, load_images
from collafuse_edge.upload.similarity import alike, perceptual_hashes

SIZE = (32, 32)
Images = npt.NDArray[np.float32]


def pairs_of(images: Images, others: Images) -> list[tuple[int, int]]:
    a, b = perceptual_hashes(images), perceptual_hashes(others)
    sizes = [(x.shape[2], x.shape[3]) for x in (images, others)]
    return [(start + int(i), int(j)) for start, m in alike(a, sizes[0], b, sizes[1]) for i, j in np.argwhere(m)]


def share_alike(images: Images, others: Images) -> float:
    """Of images whose own copy in ``others`` is found."""
    return sum(i == j for i, j in pairs_of(images, others)) / len(images)


def false_alarms(images: Images, group: npt.NDArray[np.int16] | None = None) -> float:
    """Share of images that look like another one, known copies apart."""
    pairs = [(i, j) for i, j in pairs_of(images, images) if i != j]
    if group is not None:
        pairs = [(i, j) for i, j in pairs if group[i] < 0 or group[i] != group[j]]
    return len({i for i, _ in pairs}) / len(images)


def resized(images: Images, side: int) -> Images:
    """As a resizer gives them, at 8 bits."""
    pixels = np.round((images[:, 0] + 1) * 127.5).astype(np.uint8)
    small = [np.asarray(Image.fromarray(x).resize((side, side), Image.Resampling.LANCZOS)) for x in pixels]
    return (np.stack(small)[:, None] / 127.5 - 1).astype(np.float32)


@pytest.fixture(scope="module")
def phantoms() -> Images:
    return load_images("phantom:0:200:3", (1, 64, 64)).images


def test_copies_are_alike(phantoms: Images) -> None:
    small = resized(phantoms, 32)
    noise = np.random.default_rng(0).normal(0, 2 / 127.5, small.shape).astype(np.float32)
    assert share_alike(small, np.clip(small + noise, -1, 1)) == 1
    assert share_alike(small, phantoms) == 1
    assert share_alike(resized(phantoms, 16), phantoms) > 0.99
    assert share_alike(small, 0.9 * small) == 1
    assert share_alike(small, np.clip(small + 0.05, -1, 1)) > 0.99


def test_what_is_not_claimed_crops_turns_and_mirror_images(phantoms: Images) -> None:
    assert share_alike(phantoms, phantoms[..., ::-1]) < 0.1
    assert share_alike(phantoms, phantoms.swapaxes(2, 3)) < 0.1
    assert share_alike(phantoms, resized(phantoms[:, :, 8:-8, 8:-8], 64)) < 0.1


def test_different_phantoms_are_not_alike(phantoms: Images) -> None:
    assert false_alarms(phantoms) <= 0.01
    assert false_alarms(resized(phantoms, 32)) <= 0.01


def test_flat_images_have_one_hash_on_every_machine() -> None:
    flat = np.full((3, 1, 17, 23), [[[[-1.0]]], [[[0.1]]], [[[1.0]]]], np.float32)
    assert not perceptual_hashes(flat).any()


def test_images_too_small_to_be_told_apart_are_not_compared() -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (4, 1, 7, 30)).astype(np.float32)
    hashes = perceptual_hashes(images)
    assert list(alike(hashes, (7, 30), hashes, (7, 30))) == []


def test_ten_thousand_against_ten_thousand_is_seconds() -> None:
    random = np.random.default_rng(0)
    new, released = random.integers(0, 256, (2, 10_000, 32), np.uint8)
    new[77] = released[9_001]
    new[78, :2] ^= 255
    begun = time.process_time()
    found = [(start + i, j) for start, block in alike(new, SIZE, released, SIZE) for i, j in np.argwhere(block)]
    assert found == [(77, 9_001)]
    assert time.process_time() - begun < 30


def test_false_alarms_on_brain_mri(data_dir: Path) -> None:
    """Slices of one head are alike without being listed as copies."""
    source = data_dir / "brain_mri_64.npz"
    with np.load(source) as arrays:
        group, split = arrays["near_dup_group"], arrays["split"]
    images = load_images(str(source), (1, *SIZE), Selection("test")).images
    assert false_alarms(images, group[split == "test"]) < 0.02
    other = load_images(str(data_dir / "brain_mri_128.npz"), (1, *SIZE), Selection("test")).images
    assert share_alike(images, other) == 1


def test_false_alarms_on_fashion_mnist(data_dir: Path) -> None:
    source = data_dir / "fashion_mnist" / "t10k-images-idx3-ubyte.gz"
    images = load_images(str(source), (1, 28, 28), Selection(limit=2_000)).images
    assert false_alarms(images) < 0.002
