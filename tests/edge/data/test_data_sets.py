"""The real data sets are read whole: counts, classes, values. Skipped where the data is absent."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from collafuse_edge.data import Selection, load_images

CLASSES = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")


@pytest.mark.parametrize(("split", "counts"), [("train", [802, 710, 244, 797]), ("test", [63, 85, 56, 30])])
def test_brain_mri_classes_per_split(data_dir: Path, split: str, counts: list[int]) -> None:
    loaded = load_images(str(data_dir / "brain_mri_64.npz"), (1, 64, 64), Selection(split=split))
    assert loaded.label_names == CLASSES
    assert np.bincount(loaded.labels).tolist() == counts
    assert loaded.images.shape == (sum(counts), 1, 64, 64)
    assert loaded.images.min() == -1 and loaded.images.max() == 1


def test_brain_mri_pixels_are_those_of_the_file(data_dir: Path) -> None:
    path = data_dir / "brain_mri_64.npz"
    with np.load(path) as arrays:
        rows = np.flatnonzero((arrays["labels"] == 3) & (arrays["split"] == "train"))
        stored = arrays["images"][rows]
    loaded = load_images(str(path), (1, 64, 64), Selection(classes=("pituitary_tumor",)))
    assert set(loaded.labels.tolist()) == {3}
    np.testing.assert_array_equal(np.rint((loaded.images[:, 0] + 1) * 127.5).astype(np.uint8), stored)


def test_brain_mri_jpegs_match_the_prepared_arrays(data_dir: Path) -> None:
    """The folder holds the originals of test images that the npz holds padded and resized to 64 in 8 bits."""
    folder, shape = data_dir / "brain_mri_jpeg", (1, 64, 64)
    loaded = load_images(str(folder), shape)
    assert np.bincount(loaded.labels).tolist() == [63, 75, 56, 30]
    assert (len(loaded), loaded.label_names) == (224, CLASSES)
    prepared = load_images(str(data_dir / "brain_mri_64.npz"), shape, Selection(split="test")).images
    for image in loaded.images[::20]:
        closest = np.abs(prepared - image).mean(axis=(1, 2, 3)).min()
        assert closest < 0.004, "half an 8-bit step on average"


def test_sixty_thousand_fashion_images(data_dir: Path) -> None:
    source = str(data_dir / "fashion_mnist" / "train-images-idx3-ubyte.gz")
    loaded = load_images(source, (1, 28, 28))
    assert loaded.images.shape == (60000, 1, 28, 28)
    assert np.bincount(loaded.labels).tolist() == [6000] * 10
    assert (loaded.images.mean() + 1) / 2 == pytest.approx(0.2860, abs=1e-4), "the published mean"
    trousers = load_images(source, (1, 32, 32), Selection(classes=("1",), limit=50))
    assert trousers.images.shape == (50, 1, 32, 32) and set(trousers.labels.tolist()) == {1}


@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [
        ("breastmnist.npz", None, [147, 399]),
        ("breastmnist.npz", "val", [21, 57]),
        ("breastmnist.npz", "test", [42, 114]),
        ("pneumoniamnist_train3882.npz", None, [388, 3494]),
        ("pneumoniamnist_train3882.npz", "val", [135, 389]),
        ("pneumoniamnist_train3882.npz", "test", [234, 390]),
    ],
)
def test_medmnist(data_dir: Path, name: str, split: str | None, counts: list[int]) -> None:
    loaded = load_images(str(data_dir / "medmnist" / name), (1, 28, 28), Selection(split=split))
    assert np.bincount(loaded.labels).tolist() == counts
    assert loaded.images.shape == (sum(counts), 1, 28, 28)


def test_a_jpeg_is_padded_as_documented(data_dir: Path) -> None:
    """A wide original keeps its aspect ratio: bars above and below are black."""
    path = next(p for p in sorted((data_dir / "brain_mri_jpeg").rglob("*.jpg")) if _wide(p))
    rank = sorted((data_dir / "brain_mri_jpeg").rglob("*.jpg")).index(path)
    image = load_images(str(data_dir / "brain_mri_jpeg"), (1, 64, 64), Selection(limit=rank + 1)).images[rank, 0]
    with Image.open(path) as original:
        bar = int(64 * (1 - original.height / original.width) / 2) - 3  # the filter reaches 3 pixels into the bar
    assert bar >= 2
    np.testing.assert_allclose(image[:bar], -1, atol=0.02)
    np.testing.assert_allclose(image[-bar:], -1, atol=0.02)


def _wide(path: Path) -> bool:
    with Image.open(path) as image:
        return image.width > 1.3 * image.height
